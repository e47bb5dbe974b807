"""Valid is not enough: how far each sampler's texts are from the distribution that was asked for.

Toy models whose texts can all be listed, under a constraint (an odd sum) that no next-token mask
sees coming. The total-variation distance of n (weighted) texts to the model given the constraint,
for every sampler of texts there is, against n. Beside them stands what n independent draws from the
target itself would show: a sampler that is exact comes down with it, one that is not stays up.

    python benchmarks/exactness.py [--samples 1000] [--json] [--out FILE.json] [--figure FILE.png]
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from tokenry.core.errors import TokenryError
from tokenry.core.files import write_whole
from tokenry.decode.samplers.guard import Guard
from tokenry.decode.samplers.rejection import Rejection
from tokenry.decode.samplers.request import TextSampler, text_sampler
from tokenry.decode.samplers.smc import SMC
from tokenry.lab.enumeration import TOY_LIMIT, odd_sum_distance
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum

MODELS, SIZES = (0, 1, 2), (10, 30, 100, 300, 1000, 3000, 10_000)
DRAWS = 200  # simulated samples of the target for the band


def prompted(model: ToyLM) -> ToyState:
    return ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))


def samplers() -> dict[str, Callable[[], TextSampler]]:
    """Every registered sampler of texts as it comes, and variants that need an argument."""
    found: dict[str, Callable[[], TextSampler]] = {
        entry.key: entry.value for entry in text_sampler if entry.key != "guard"
    }
    found["rejection"] = lambda: Rejection(rows=256, max_trials=10**6)
    found["smc, weighted masks"] = lambda: SMC("mask", ess_threshold=0.0)
    found["smc, bootstrap"] = lambda: SMC("plain")
    found["guard, another model"] = lambda: Guard(
        decoding=prompted(ToyLM(scale=0.7, seed=77)), rows=256, max_trials=10**6
    )
    return found


def distance(build: Callable[[], TextSampler], seed: int, count: int) -> float:
    """Of `count` texts to the target, on one toy model."""
    model = ToyLM(vocab_size=4, order=2, eos=0, seed=seed)
    return odd_sum_distance(build(), model, count, seed + count)


def band(count: int) -> dict[str, float]:
    """Mean and central nine tenths of the distance of `count` draws from the target itself."""
    found = []
    for seed in MODELS:
        truth, _ = ToyLM(vocab_size=4, order=2, eos=0, seed=seed).conditional(odd_sum, TOY_LIMIT)
        p = torch.tensor(list(truth.values()), dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(p.expand(DRAWS, -1), count, True, generator=generator)
        shares = torch.zeros(DRAWS, len(p), dtype=torch.float64)
        shares.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count, dtype=torch.float64))
        found.append(0.5 * (shares - p).abs().sum(-1))
    means = torch.stack(found).mean(0)  # as below, over the toy models
    low, high = means.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return {"mean": float(means.mean()), "low": low, "high": high}


def measure(most: int) -> dict[str, Any]:
    sizes = [size for size in SIZES if size < most] + [most]
    rows, skipped = {}, {}
    for name, build in samplers().items():
        try:
            means = [mean(distance(build, seed, count) for seed in MODELS) for count in sizes]
            rows[name] = {"exact": build().exact, "distance": means}
        except (TokenryError, TypeError) as error:
            skipped[name] = str(error)
        print(f"{name}: {'skipped' if name in skipped else 'done'}", file=sys.stderr)
    return {
        "models": len(MODELS),
        "sizes": sizes,
        "draws from the target": [band(size) for size in sizes],
        "samplers": rows,
        "skipped": skipped,
    }


def draw(found: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    sizes, bands = found["sizes"], found["draws from the target"]
    low, high = ([size[end] for size in bands] for end in ("low", "high"))
    axes.fill_between(sizes, low, high, color="0.85", label="draws from the target itself, 90%")
    for name, row in found["samplers"].items():
        style = "-o" if row["exact"] else "--s"
        label = name if row["exact"] else f"{name} (not exact)"
        axes.plot(sizes, row["distance"], style, markersize=3, label=label)
    # a search that is as wide as the language lists it: its line leaves the picture
    axes.set(xscale="log", yscale="log", xlabel="texts", ylim=(0.5 * min(low), 1.0))
    axes.set_ylabel("total variation to the model given the constraint")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000, help="most texts of a sampler")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="write the result to this file")
    parser.add_argument("--figure", type=Path, help="draw the result to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.samples)
    if options.out:
        write_whole(options.out, json.dumps(found, indent=1) + "\n")
    if options.figure:
        draw(found, options.figure)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    width = max(map(len, found["samplers"])) + 2
    print(f"{'texts':{width}}" + "".join(f"{size:>8}" for size in found["sizes"]))
    bands = [size["mean"] for size in found["draws from the target"]]
    for name, row in found["samplers"].items():
        print(f"{name:{width}}" + "".join(f"{value:8.3f}" for value in row["distance"]))
    print(f"{'(the target itself)':{width}}" + "".join(f"{value:8.3f}" for value in bands))


if __name__ == "__main__":
    main()
