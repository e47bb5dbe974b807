"""Repilot: a completion engine beside a language model, on lines cut out of the standard library.

The rest of a line is removed after the dot of `self.` or of a module's name; SmolLM2 writes it
anew, alone and with jedi at its side. A line is valid if the file compiles with it and all of its
names and attributes exist: looked up in the syntax tree and in the imported module itself, not
asked of the engine.
"""

from __future__ import annotations

import random
from typing import Any

from tokenry.decode.constraints.completion_memo import Memo
from tokenry.decode.constraints.jedi_engine import JediEngine
from tokenry.decode.generate import ends
from tokenry.decode.repilot import CodeCompletions, complete_code, line_ends
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, paired
from tokenry.papers.base import Paper
from tokenry.tasks.suites.code_holes import CodeHole, code_holes

ALONE, GUIDED = "model alone", "with the engine"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Fourteen holes, four lines for each and method."""
    count, samples, tokens = at(scale, full=(14, 4, 24), smoke=(2, 1, 3))
    loaded = language_model(scale)
    eos = sorted({*line_ends(loaded.tokenizer), *ends(*loaded)})
    holes = random.Random(seed).sample(list(code_holes()), count)

    def written(place: int, hole: CodeHole, engine: Any) -> CodeCompletions:
        return complete_code(
            loaded,
            hole.before,
            hole.after,
            engine,
            samples=samples,
            max_new_tokens=tokens,
            context_tokens=128,
            eos=eos,
            memo=Memo(),
            seed=1000 * seed + place,
        )

    with JediEngine(timeout=60.0, on_timeout="unknown") as engine:
        results = {
            name: [written(place, hole, helper) for place, hole in enumerate(holes)]
            for name, helper in ((ALONE, None), (GUIDED, engine))
        }
    table, valid = Table(), {}
    for name, rows in results.items():
        texts = [(hole, row.texts) for hole, row in zip(holes, rows, strict=True)]
        valid[name] = [sum(map(hole.valid, some)) / samples for hole, some in texts]
        table.add(f"valid lines, {name}", sum(valid[name]) / count, "share", seed)
    saved = [row.remembered + row.spared for row in results[GUIDED]]
    calls = sum(row.calls for row in results[GUIDED])
    counts = {"engine calls": calls, "engine calls without memory": calls + sum(saved)}
    table.add_all(counts, "calls", seed)
    names = {"refused": "pruned", "settled by active completion": "forced", "written": "tokens"}
    tokens_of = {
        f"tokens {name}": sum(getattr(row, field) for row in results[GUIDED])
        for name, field in names.items()
    }
    table.add_all(tokens_of, "tokens", seed)
    return verdict(
        table,
        {
            "lines are valid more often with the engine than the model's alone, over the "
            "holes": paired(valid[GUIDED], valid[ALONE]),
            "the memory saves calls of the engine": items_above(saved),
        },
        reason="bugs fixed and test suites are not measured",
        plots=[
            bars({name: {"valid": sum(valid[name]) / count} for name in results}, "share of lines"),
            bars({GUIDED: {**counts, **tokens_of}}, "count"),
        ],
    )


PAPER = Paper(
    number=54,
    key="repilot",
    title="Copiloting the Copilots: Fusing Large Language Models with Completion Engines for "
    "Automated Program Repair",
    arxiv="2309.00608",
    role="constraint",
    family="control",
    claim="Asking a completion engine at each token which names can still be completed makes more "
    "of a model's patches compile, at the price of few calls.",
    reproduce=reproduce,
    threads=1,
)
