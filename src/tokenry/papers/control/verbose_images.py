"""Verbose images on a toy captioner: three losses against one, noise, and what answers them.

Digits are perturbed by at most 0.1 per pixel (of a range of 1) so that the captions of a small
model get long. Lengths are means over captions sampled from the image after the last step, so none
is long by selection.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenry.lab.captioner import END, captioner
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, over_seeds, paired
from tokenry.measure.audit.verbosity import length_cap, length_stress_test
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.digits import Digits

EPS, MARGIN = 0.1, 1.0  # of a pixel; letters by which captions may be shorter than with noise
VARIANTS = {
    "noise": (),
    "EOS loss": ("eos",),
    "EOS and uncertainty": ("uniformity", "eos"),
    "all three": ("uniformity", "eos", "diversity"),
}
NOISE, EOS, _, ALL = VARIANTS


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four captioners, with seeds from `100 seed`, sixteen images and four perturbations each."""
    seeds, images, training, steps, draws = at(
        scale, full=(4, 16, 600, 30, 12), smoke=(2, 2, 2, 1, 2)
    )
    from sklearn.metrics import roc_auc_score  # which the digits come with

    options: dict[str, Any] = {"eps": EPS, "alpha": EPS / 10, "steps": steps, "low": 0.0}
    options |= {"high": 1.0, "regenerate_every": 2}

    def captioned(number: int) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """Lengths [draws, images] and anomaly scores under every perturbation, and a cap."""
        world, draw = Digits(number, held_out=images), torch.Generator().manual_seed(number)
        model, seen, lengths, anomaly = captioner(world, training), world.test_images, {}, {}
        for name, losses in {"clean": None, **VARIANTS}.items():
            delta = 0 * seen
            if losses is not None:
                generate = partial(model.captions, generator=draw)
                about: Any = {"losses": losses, "generator": draw, **options}
                delta = length_stress_test(generate, model.read, seen, END, **about).last
            texts = model.captions((seen + delta).repeat(draws, 1, 1), draw)
            lengths[name] = texts.lengths.view(draws, -1).double()
            anomaly[name] = model.anomaly(seen + delta, texts)
        return lengths, anomaly, length_cap(model.captions(world.images[:200], draw).lengths)

    table, by_image = Table(), {name: [] for name in ("clean", *VARIANTS)}
    for number, (lengths, anomaly, cap) in over_seeds(captioned, seed, seeds):
        for name, drawn in lengths.items():
            by_image[name] += drawn.mean(0).tolist()
            table.add(f"caption, {name}", drawn.mean(), "letters", number)
            if name != "clean":
                share = drawn.mean() / lengths["clean"].mean()
                table.add(f"share of clean length, {name}", share, "x", number)
        table.add("cap at the 99.5th percentile of clean captions", cap, "letters", number)
        capped = lengths[ALL].clamp(max=cap).mean()
        table.add("caption, all three, under the cap", capped, "letters", number)
        ours = torch.arange(2).repeat_interleave(draws * images)  # 1: all three losses
        area = roc_auc_score(ours, torch.cat([anomaly["clean"], anomaly[ALL]]))
        table.add("anomaly score tells all three from clean", area, "AUC", number)
    over_noise = paired(by_image[EOS], by_image[NOISE]).margins
    return verdict(
        table,
        {
            "captions with all three losses are longer than with the EOS loss alone, over the "
            "images": paired(by_image[ALL], by_image[EOS]),
            "and those not shorter, by a letter, than with random noise of the same "
            "size": items_above(over_noise, -MARGIN),
        },
        plots=[bars({n: {"caption": table.mean(f"caption, {n}")} for n in by_image}, "letters")],
    )


PAPER = Paper(
    number=66,
    key="verbose-images",
    title="Inducing High Energy-Latency of Large Vision-Language Models with Verbose Images",
    arxiv="2401.11170",
    role="analysis",
    family="control",
    claim="Delaying the end, flattening the next-token distributions and diversifying hidden "
    "states together make texts longer than delaying the end alone, within a small perturbation.",
    reproduce=reproduce,
    threads=1,
)
