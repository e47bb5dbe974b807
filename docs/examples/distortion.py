"""What masking does to a distribution, and what undoes it: one question with few answers.

The model goes on from "The largest city in the world is" and may name one of six cities, then a
full stop. Much of what it would say begins with "New", and most of that goes on with "York", which
is not among them: a mask lets "New" pass and then forces " Delhi". Printed are the exact answer, by
enumeration of every tokenization of every city, and what each sampler makes of it; the figure shows
the distance to the exact answer as samples are added.

    python docs/examples/distortion.py [--samples 256] [--figure docs/images/distortion.png]
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

import tokenry
from tokenry.decode.constraints.base import Constraint, State
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.constraints.stop import Stop
from tokenry.decode.generate import prompt_ids
from tokenry.decode.samplers.request import Processor
from tokenry.decode.steering.ending import Ending
from tokenry.model.decoding import DecodingState

PROMPT = "The largest city in the world is"
CITIES = ["New Delhi", "Tokyo", "Shanghai", "Mexico City", "Cairo", "London"]
SAMPLERS = ("mask", "rejection", "awrs", "asap")


@torch.no_grad()
def exact(loaded: Any, constraint: Constraint, stop: Processor) -> dict[str, float]:
    """P(text) of every text of the constraint, summed over its tokenizations, level by level."""
    model, tokenizer = loaded
    ids = prompt_ids(tokenizer, PROMPT)
    decoding = DecodingState.start(model, torch.tensor([ids]))
    level: list[tuple[list[int], float, State]] = [([], 0.0, constraint.begin(ids))]
    found: dict[str, float] = {}
    while level:
        before = torch.tensor([[*ids, *text] for text, _, _ in level])
        logprobs = stop(before, decoding.logits).log_softmax(-1)
        going: list[tuple[int, tuple[list[int], float, State]]] = []
        for row, (text, logprob, state) in enumerate(level):
            for token in state.mask().nonzero()[:, 0].tolist():
                reached = logprob + float(logprobs[row, token])
                if token in constraint.eos:
                    name = tokenizer.decode(text)
                    found[name] = found.get(name, 0.0) + math.exp(reached)
                else:
                    going.append((row, ([*text, token], reached, state.advance(token))))
        if going:
            decoding.select(torch.tensor([row for row, _ in going]))
            decoding.append(torch.tensor([entry[0][-1] for _, entry in going]))
        level = [entry for _, entry in going]
    return found


def distance(p: dict[str, float], q: dict[str, float]) -> float:
    return 0.5 * sum(abs(p.get(text, 0.0) - q.get(text, 0.0)) for text in {*p, *q})


def measure(model: str, samples: int, seed: int) -> dict[str, Any]:
    loaded = tokenry.load(model)
    cities = Grammar.regex(" (" + "|".join(CITIES) + ")[.]", loaded.tokenizer)
    # the model is one that ends at a full stop
    stop = Ending(Stop(["."], loaded.tokenizer), prompt_ids(loaded.tokenizer, PROMPT))
    masses = exact(loaded, cities, stop)
    total = sum(masses.values())
    truth = {text: mass / total for text, mass in masses.items()}
    result: dict[str, Any] = {"probability": total, "exact": truth, "samplers": {}}
    for name in SAMPLERS:
        found = tokenry.generate(
            loaded,
            PROMPT,
            cities,
            name,
            samples,
            max_new_tokens=16,
            seed=seed,
            processors=[stop],
            ess_threshold=0.0,
        )
        order = torch.randperm(len(found.ids), generator=torch.Generator().manual_seed(seed))
        curve = []
        for count in (2**k for k in range(2, samples.bit_length())):
            kept = order[:count].tolist()
            weights = found.log_weights[kept].exp()
            estimate: dict[str, float] = {}
            for index, weight in zip(kept, (weights / weights.sum()).tolist(), strict=True):
                text = found.texts[index]
                estimate[text] = estimate.get(text, 0.0) + weight
            curve.append((count, distance(estimate, truth)))
        result["samplers"][name] = {
            "distribution": found.distribution(),
            "evidence": math.exp(found.log_evidence),
            "curve": curve,
            "passes": found.passes,
            "seconds": found.seconds,
        }
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    truth = result["exact"]
    cities = sorted(truth, key=truth.get, reverse=True)  # type: ignore[arg-type]
    kinds = {"exact": truth, **{k: v["distribution"] for k, v in result["samplers"].items()}}
    width = 0.8 / len(kinds)
    for place, (name, values) in enumerate(kinds.items()):
        spots = [index + (place - len(kinds) / 2) * width for index in range(len(cities))]
        colour = "black" if name == "exact" else f"C{place}"
        left.bar(spots, [values.get(c, 0.0) for c in cities], width, label=name, color=colour)
    left.set_xticks(range(len(cities)), [c.strip(" .") for c in cities], rotation=20)
    left.set_ylabel("probability")
    left.legend()
    for place, (name, values) in enumerate(result["samplers"].items(), start=1):
        right.plot(*zip(*values["curve"], strict=True), marker="o", label=name, color=f"C{place}")
    right.set(xscale="log", yscale="log", xlabel="samples", ylabel="total variation to the exact")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="where to draw it (PNG)")
    parser.add_argument("--out", type=Path, help="where to write the figures (JSON)")
    options = parser.parse_args()
    result = measure(options.model, options.samples, options.seed)
    print(f"the constraint's probability: {result['probability']:.4f}")
    print("exact     ", {k.strip(" ."): round(v, 3) for k, v in result["exact"].items()})
    for name, values in result["samplers"].items():
        rounded = {k.strip(" ."): round(v, 3) for k, v in values["distribution"].items()}
        last = values["curve"][-1]
        print(f"{name:10}", rounded)
        print(f"{'':10} distance {last[1]:.3f} with {last[0]} samples, {values['seconds']:.1f} s")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.figure:
        draw(result, options.figure)


if __name__ == "__main__":
    main()
