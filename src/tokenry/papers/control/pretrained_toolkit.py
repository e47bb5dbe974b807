"""Two uses of a pretrained model that need no training of it: optimised states, conditional modes.

First, SmolLM2 reads source code in segments of 25 tokens. With hidden-state optimisation one Adam
step on the cache follows each segment, against the frozen model with the same cache. Second, small
transformers learn texts of clauses in ten dialects, three percent of them empty. What is their most
probable text, and their most probable one of a given length? The attribute's q is a classifier of
remaining lengths, trained on the model's own samples.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from tokenry.lab.conditional_modes import search_modes
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars, curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, over_seeds, paired
from tokenry.model.memory.hidden_state_optimization import HiddenStateOptimizer
from tokenry.papers.base import Paper
from tokenry.tasks.documentation import passages
from tokenry.tasks.standard_library import source

MODULES = ("argparse", "asyncio.base_events", "calendar", "configparser", "csv", "difflib")
MODULES += ("fractions", "ftplib", "heapq", "imaplib", "mailbox", "pathlib", "pickle", "shutil")
MODULES += ("smtplib", "statistics", "tarfile", "textwrap", "threading", "zipfile")
SEGMENT = 25
SEARCHES = {
    "guided": "log p, conditional beam search",
    "sampled": "log p, best of 100 samples of the length",
    "masked": "log p, beam search under a length mask",
}
SMALL: dict[str, Any] = {"lengths": (9,), "texts": 100, "steps": 2, "classifier_texts": 3}
SMALL |= {"classifier_steps": 2, "samples": 8, "wide": 2, "beams": 2, "passes": 2}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three passages and two worlds, whose seeds start at `100 seed`."""
    count, tokens, worlds, size = at(scale, full=(3, 400, 2, {}), smoke=(2, 52, 1, SMALL))
    model, tokenizer = language_model(scale)
    ids = passages(tokenizer, tokens, count, seed, MODULES, source)
    losses = {
        name: HiddenStateOptimizer(model, lr=rate, segment=SEGMENT)(ids).nll[:, 1:]
        for name, rate in (("frozen cache", 0.0), ("optimised cache", 3e-3))
    }
    saved = losses["frozen cache"] - losses["optimised cache"]
    whole = saved[:, : (tokens - 1) // SEGMENT * SEGMENT].reshape(-1, SEGMENT)
    table, runs = Table(), dict(over_seeds(lambda n: search_modes(n, **size), seed, worlds))
    for name, loss in losses.items():
        table.add(name, float(loss.mean()), "nats per token", seed)
    for number, modes in runs.items():
        for name, flags in (
            ("prompts with an empty exact mode", [mode.proven for mode in modes]),
            ("prompts with an empty beam-search mode", [mode.empty for mode in modes]),
            ("conditional modes that are valid texts", [one for m in modes for one in m.valid]),
        ):
            table.add(name, fmean(flags), "share", number)
        for search, name in SEARCHES.items():
            values = [mode.logprob[search] for mode in modes if mode.logprob]
            table.add(name, fmean(values), "nats", number)
    dialects = [dialect for modes in runs.values() for dialect in modes]
    logprob = {s: [d.logprob[s] for d in dialects if d.logprob] for s in SEARCHES}
    read = {f"passage [{n}]": enumerate(row.tolist()) for n, row in enumerate(saved.cumsum(1))}
    return verdict(
        table,
        {
            "optimised states lower SmolLM2's loss on source code, over the segments": items_above(
                whole.mean(1)
            ),
            "beam search over 20 beams returns the empty text for at least 80 % of the "
            "prompts": items_above((dialect.empty for dialect in dialects), 0.8),
            "conditional beam search returns valid texts of the asked length for at least "
            "90 %": items_above((one for dialect in dialects for one in dialect.valid), 0.9),
            "likelier ones than the best of 100 samples of that length": paired(
                logprob["guided"], logprob["sampled"]
            ),
            "and than beam search under a mask": paired(logprob["guided"], logprob["masked"]),
        },
        plots=[
            curves(read, "position (tokens)", "loss saved so far (nats)"),
            bars({name: {"log p": table.mean(name)} for name in SEARCHES.values()}, "nats"),
        ],
    )


PAPER = Paper(
    number=170,
    key="pretrained-toolkit",
    title="Making the Most of your Model: Methods for Finetuning and Applying Pretrained "
    "Transformers",
    arxiv="2408.16241",
    role="sampler",
    family="control",
    claim="Gradient steps on cached states lower the loss of a frozen model, and modes given that "
    "the text is not degenerate are good texts where the plain mode is empty.",
    reproduce=reproduce,
    threads=1,
)
