"""Multi-token prediction with gated LoRA at laptop scale: a small model that spells words.

Texts are words of four letters; a word's first letter tells it, and the next word is one of three.
A small transformer learns such texts and is then frozen. Masks, gated LoRA and sampler (k = 4) are
trained on texts that the model wrote, with and without latent consistency, and draft for texts
sampled at temperature 1. Without a sampler every mask guesses on its own, and does not know which
word has begun. The plain LoRA of the comparison is trained the same way, and on the
model's own next-token loss too, since it is on everywhere.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.decode.speculation.mtp import MTP
from tokenry.lab.draft_heads import loss_among_masks, taught_masks, writer
from tokenry.lab.drafting import Speed, alike, redrafted, speed, written
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.learn.recipes.draft_heads import Schedule
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.spelling import SpelledWords

K = 4


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    fitting, steps, taught, tests, new = at(
        scale,
        full=({"steps": 200, "batch_size": 24}, 200, 96, 12, 60),
        smoke=({"steps": 20, "batch_size": 8}, 2, 8, 2, 6),
    )
    world, table = SpelledWords(seed), Table()
    generator, own = world.generator, writer(world, seed, width=64, **fitting)
    model, lessons = own.model, own.write(taught, generator).tolist()
    options: dict[str, Any] = {"k": K, "rank": 8, "blocks": 10, "seed": seed}
    options["schedule"] = Schedule(steps, 8, world.length, learning_rate=5e-3, warm_up=20)
    consistent = taught_masks(model, lessons, **options)
    bare = taught_masks(model, lessons, consistency=0.0, **options)
    plain = taught_masks(model, lessons, gated=False, **options)
    prompts = world.batch(tests, generator).ids[:, : 2 * world.spelled].tolist()
    greedy = written(model, prompts, new, eos_token_id=[])
    same = alike(redrafted(model, greedy, MTP(consistent), eos_token_id=[]), greedy)

    speeds: dict[str, Speed] = {}
    for name, predictor in (("", consistent), (", no consistency", bare)):
        alone = copy.deepcopy(predictor)
        alone.sampler = None
        for how, used in (("sampler", predictor), ("no sampler", alone)):
            for mode in ("linear", "quadratic"):
                draws = [torch.Generator().manual_seed(seed * 1000 + n) for n in range(tests)]
                each = [{"generator": draw, "temperature": 1.0} for draw in draws]
                texts = redrafted(model, greedy, MTP(used, mode=mode), each, eos_token_id=[])
                speeds[label := f"{mode}, {how}{name}"] = speed(texts)
                table.add(label, speeds[label].mean, "tokens per pass", seed)
    rows = TokenBatch.from_ids(world.batch(tests, generator).ids.tolist())
    base, gated, ungated = (
        loss_among_masks(model, rows, predictor, every=world.spelled)
        for predictor in (MaskPredictor.of(model, K, 1), consistent, plain)
    )
    table.add("next-token loss of the model", float(base.mean()), "nats", seed)
    table.add("change of it by gated LoRA", float((gated - base).mean()), "nats", seed)
    table.add("change of it by plain LoRA", float((ungated - base).mean()), "nats", seed)
    best, rival = speeds["quadratic, sampler"], speeds["linear, no sampler"]
    return verdict(
        table,
        {
            "greedy texts are those of plain decoding": same,
            "quadratic drafts with the sampler give more tokens per pass than linear ones "
            "without": paired(best.each, rival.each),
            "and these more than one": rival.above(1.0),
            "gated LoRA leaves the model's next-token loss as it was": gated.equal(base),
            "plain LoRA raises it": paired(ungated.mean(1).tolist(), base.mean(1).tolist()),
        },
        reason=f"Counted in passes: a linear one reads up to {1 + 2 * K} tokens, a quadratic one "
        f"{(1 + K) ** 2}, and the sampler runs the output layer once per draft.",
        plots=[bars({"words": {name: one.mean for name, one in speeds.items()}}, "tokens a pass")],
    )


PAPER = Paper(
    number=102,
    key="gated-lora-mtp",
    title="Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential",
    arxiv="2507.11851",
    role="drafter",
    family="efficiency",
    claim="Appended masks with gated LoRA and a small sampler let a frozen model draft several "
    "tokens in the pass that verifies the last ones, without a change in its text.",
    reproduce=reproduce,
    threads=1,
)
