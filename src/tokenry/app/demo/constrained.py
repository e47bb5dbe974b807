"""The demo's second part: JSON under a schema, three ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tokenry.app.demo.page import (
    ACCENT,
    INK,
    SECOND,
    Section,
    inline_svg,
    new_axes,
    new_figure,
)
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Constraint
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.generate import ends, generate, prompt_ids
from tokenry.decode.samplers.samples import Samples
from tokenry.model.score import score

WORDS = {"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)?$"}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": WORDS,
        "country": WORDS,
        "continent": {
            "enum": ["Africa", "Asia", "Europe", "North America", "Oceania", "South America"]
        },
        "founded": {"type": "integer", "minimum": 1, "maximum": 2000},
    },
    "required": ["city", "country", "continent", "founded"],
    "additionalProperties": False,
}
CITIES = ("Lisbon", "Nairobi", "Kyoto")
TASK = (
    "Write facts about a city as one line of JSON.\n"
    'Rome: {{"city": "Rome", "country": "Italy", "continent": "Europe", "founded": 753}}\n'
    'Lima: {{"city": "Lima", "country": "Peru", "continent": "South America", "founded": 1535}}\n'
    "{city}:"
)
CODE = """\
loaded = tokenry.load("smollm2")
schema = Grammar.json_schema(SCHEMA, loaded.tokenizer)
samples = tokenry.generate(loaded, messages, schema, particles=8, temperature=0.6)
samples.distribution()   # each text with its share of the weight
samples.log_evidence     # log of the probability that the model satisfies the schema"""


def section(
    loaded: Any,
    cities: Sequence[str] = CITIES,
    particles: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 0.6,
    seed: int = 0,
    tick: Callable[[str], None] = lambda what: None,
) -> Section:
    """One object per city: the model alone, greedily masked, and by AWRS with SMC."""
    schema = Grammar.json_schema(SCHEMA, loaded.tokenizer, whitespace=" ?", eos=ends(*loaded))
    objects, clouds, took, tokens, checks = [], [], 0.0, 0, 0
    for city in cities:
        prompt = [{"role": "user", "content": TASK.format(city=city)}]
        rows, dots = [], {}
        for how, constraint, sampler, count in (
            ("the model alone", None, "mask", 1),
            ("greedily masked", schema, "greedy", 1),
            ("AWRS + SMC", schema, "awrs", particles),
        ):
            tick(f"{city}, {how}")
            try:
                samples = generate(
                    loaded, prompt, constraint, sampler, count, max_new_tokens,
                    1.0 if sampler == "greedy" else temperature, seed,
                )  # fmt: skip
            except ConstraintError as error:
                rows.append(failed(how, str(error)))
                continue
            rows.append(described(loaded, prompt, schema, how, samples, constraint is None))
            if constraint is not None:
                dots[how] = rows[-1]["weights"]
            if sampler == "awrs":
                took, tokens = took + samples.seconds, tokens + samples.tokens
                checks += samples.checks
        objects.append({"city": city, "rows": rows})
        clouds.append((city, dots))
    good = {
        how: sum(row["valid"] for item in objects for row in item["rows"] if row["how"] == how)
        for how in ("the model alone", "greedily masked", "AWRS + SMC")
    }
    return Section(
        key="constrained",
        title="Constrained",
        about="The model writes a JSON object with four fields about each of three cities. Masking "
        "forbids wrong tokens and forgets how much probability that took away; AWRS with "
        "sequential Monte Carlo tests only a few tokens, keeps that amount as a weight, and lets "
        f"{particles} texts compete by it.",
        code=CODE,
        numbers=[
            *((f"valid: {how}", f"{count} of {len(objects)}") for how, count in good.items()),
            ("checks per token, AWRS", f"{checks / max(tokens, 1):.1f}"),
        ],
        content={
            "objects": objects,
            "temperature": temperature,
            "speed": f"{tokens / took:.0f}" if took else "–",
            "figure": inline_svg(draw(clouds), "Log weights of the particles"),
        },
    )


def described(
    loaded: Any, prompt: Any, schema: Constraint, how: str, samples: Samples, free: bool
) -> dict[str, Any]:
    """One row: the text of the largest weight, whether it fits, and what the others were."""
    best = samples.best
    # greedy choices are not draws: their accepted mass is the evidence that `smc` reports
    weighted = how == "AWRS + SMC"
    weights = samples.log_weights.tolist() if weighted else [samples.log_evidence]
    return {
        "how": how,
        "text": samples.texts[best],
        "valid": fits(schema, samples.ids[best]) and samples.finished[best],
        "log_weight": "" if free else number(weights[best if weighted else 0]),
        "logprob": number(text_logprob(loaded, prompt, samples.ids[best], samples.finished[best])),
        "evidence": number(samples.log_evidence) if weighted else "",
        "weights": [weight for weight in weights if weight > float("-inf")],
        "others": [
            {
                "text": samples.texts[index],
                "log_weight": number(weights[index]),
                "share": f"{samples.weights[index].item():.0%}",
            }
            for index in samples.log_weights.argsort(descending=True, stable=True).tolist()
        ]
        if weighted
        else [],
    }


def failed(how: str, reason: str) -> dict[str, Any]:
    empty = {"log_weight": "–∞", "logprob": "", "evidence": "", "weights": [], "others": []}
    return {"how": how, "text": reason, "valid": False, **empty}


def fits(constraint: Constraint, ids: Sequence[int]) -> bool:
    """Whether a whole text satisfies a constraint."""
    state = constraint.initial()
    for token in ids:
        if not state.allows(token):
            return False
        state = state.advance(token)
    return state.complete


def text_logprob(loaded: Any, prompt: Any, ids: Sequence[int], finished: bool) -> float:
    """log p of a text, and of its end, under the model itself."""
    model, tokenizer = loaded
    before = prompt_ids(tokenizer, prompt)
    end = ends(*loaded)[:1] if finished else []
    text = [*ids, *end]
    if not text:
        return 0.0
    target = [[False] * len(before) + [True] * len(text)]
    batch = TokenBatch.from_ids([[*before, *text]], target)
    with torch.no_grad():
        scores = score(model, batch.to(next(model.parameters()).device), needs=("logprob",))
    return float(scores.need("logprob").sum())


def number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if value > float("-inf") else "−∞"


def draw(clouds: list[tuple[str, dict[str, list[float]]]]) -> Any:
    """Each particle a dot; the greedily masked text a line."""
    figure = new_figure(height=0.5 + 0.45 * max(len(clouds), 2))
    axis = new_axes(figure)[0, 0]
    for row, (_, dots) in enumerate(clouds):
        for weight in dots.get("AWRS + SMC", []):
            axis.plot(weight, row, "o", color=ACCENT, alpha=0.55, markersize=6, mew=0)
        for weight in dots.get("greedily masked", []):
            axis.plot(weight, row, "|", color=SECOND, markersize=16, mew=2.5)
    axis.set_yticks(range(len(clouds)), [city for city, _ in clouds])
    axis.tick_params(axis="y", labelcolor=INK, length=0)
    axis.set(xlabel="log weight (nats): how much probability the schema left")
    axis.set_ylim(len(clouds) - 0.5, -0.5)
    return figure
