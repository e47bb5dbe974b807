"""TokenSelect at laptop scale: SmolLM2 recalls a pass key from a long prompt through a small view.

A pass key of five digits stands at some depth of a prompt of filler; the prompt is read with full
attention, and the key's digits are scored, teacher-forced, while each policy lets a query see the
same number of tokens: first and latest ones and a selection (TokenSelect), first and latest ones
alone, H2O's heavy hitters, or random ones, which are kept or lost for good when the prompt ends.
"""

from typing import Any

import torch
from torch import Tensor

from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.policy import PolicyCache
from tokenry.model.cache.simulation import SimulatedCache
from tokenry.model.cache.tokenselect import TokenSelect
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = (0.1, 0.35, 0.6, 0.85)
KEYS = 2
TOKENS = 700
SINKS, LOCAL = 8, 64
SELECTED = (32, 64, 128)
REUSE = {"": 0.9, ", selecting always": 2.0}

Losses = dict[str, Tensor]
"""Policy -> nats per digit of each prompt [P]."""


def reproduce(seed: int) -> Outcome:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    implementation = model.config._attn_implementation
    generator = torch.Generator().manual_seed(seed)
    parts = []
    try:
        for _ in range(KEYS):
            key = "".join(map(str, torch.randint(0, 10, (5,), generator=generator).tolist()))
            parts.append(measure(model, *prompts(tokenizer, key), seed))
    finally:
        model.set_attn_implementation(implementation)
    loss = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    rate = {name: sum(part[1][name] for part in parts) / KEYS for name in parts[0][1]}
    measurements = []
    for name, values in loss.items():
        measurements.append(Measurement(name, float(values.mean()), "nats per digit", seed))
    for name, value in rate.items():
        label = f"selections used again, {name}"
        measurements.append(Measurement(label, value, "share", seed))
        measurements.append(
            Measurement(f"bytes read, {name}", bytes_read(name, value), "of full attention's", seed)
        )
    ours = loss["tokenselect, k = 64"]
    rivals = ("first and latest, k = 64", "h2o, k = 64", "random, k = 64")
    margins = [mean_and_error(loss[name] - ours) for name in rivals]
    always = float(loss["tokenselect, k = 64, selecting always"].mean())
    return Outcome(
        held=all(mean > 2 * error for mean, error in margins),
        needs="at k = 64: loss(tokenselect) < loss(first and latest), loss(h2o), loss(random), "
        "each by two standard errors",
        measurements=measurements,
        reason=(
            f"Prompts of {TOKENS} tokens, views of {SINKS + 64 + LOCAL}; the full cache costs "
            f"{float(loss['full cache'].mean()):.3f} nats per digit. With the paper's threshold of "
            f"0.9 a selection is used again in {rate['k = 64']:.0%} of the steps, and the loss is "
            f"{float(ours.mean()):.3f}; selecting at every step it is {always:.3f}."
        ),
        figure=lambda figure: draw(figure, loss),
    )


def prompts(tokenizer: Any, key: str) -> tuple[Tensor, Tensor]:
    """Prompts [depths, TOKENS] that ask for the key, and the key's tokens [n]."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = ids("There is a pass key hidden in this text. Find it and remember it.\n")
    needle = ids(f" The pass key is {key}. Remember it. {key} is the pass key.")
    question = ids("\nWhat is the pass key? The pass key is ")
    answer = ids(key)
    filler = ids(" " + FILLER) * (TOKENS // 10)
    room = TOKENS - len(start) - len(needle) - len(question)
    rows = []
    for depth in DEPTHS:
        before = int(depth * room)
        rows.append(start + filler[:before] + needle + filler[: room - before] + question)
    return torch.tensor(rows), torch.tensor(answer)


@torch.no_grad()
def measure(model: Any, ids: Tensor, answer: Tensor, seed: int) -> tuple[Losses, dict[str, float]]:
    """Loss of the answer after each prompt under each policy, and how often selections served."""
    shared = SimulatedCache(model)
    first = model(ids, past_key_values=shared, logits_to_keep=1).logits
    target = answer.expand(len(ids), -1)

    def loss(logits: Tensor) -> Tensor:
        logprob = torch.cat([first, logits], dim=1).float().log_softmax(-1)
        return -logprob.gather(-1, target[..., None]).mean((1, 2))

    def at_once(policy: H2O, ranking: Any = "attention") -> Tensor:
        return loss(
            model(target[:, :-1], past_key_values=shared.under(policy, ranking, seed)).logits
        )

    found: Losses = {"full cache": at_once(H2O(heavy=0, recent=2 * TOKENS))}
    rates: dict[str, float] = {}
    for k in SELECTED:
        found[f"h2o, k = {k}"] = at_once(H2O(heavy=SINKS + k, recent=LOCAL))
        found[f"random, k = {k}"] = at_once(H2O(heavy=SINKS + k, recent=LOCAL), "random")
        found[f"first and latest, k = {k}"] = at_once(
            H2O(heavy=SINKS, recent=LOCAL + k), "earliest"
        )
        for note, reuse in REUSE.items():
            policy = TokenSelect(n_init=SINKS, k=k, n_local=LOCAL, reuse=reuse)
            cache = continued(model, shared, policy)
            steps = [
                model(target[:, t : t + 1], past_key_values=cache).logits
                for t in range(target.shape[1] - 1)
            ]
            found[f"tokenselect, k = {k}{note}"] = loss(torch.cat(steps, dim=1))
            rates[f"k = {k}{note}"] = sum(layer.hit_rate for layer in cache.layers) / len(cache)
    return found, rates


def continued(model: Any, prompt: SimulatedCache, policy: TokenSelect) -> PolicyCache:
    """A cache under `policy` that has read the prompt, with the attention that `prompt` saw."""
    cache = PolicyCache(model.config, lambda number: policy.layer())
    for layer, read in zip(cache.layers, prompt.layers, strict=True):
        layer.update(read.keys, read.values)
        layer.waiting = False
    return cache


def bytes_read(name: str, served: float) -> float:
    """Of keys and values per step, relative to full attention: all keys to select, then the view,
    which a new selection also has to copy (read, and written)."""
    view = SINKS + LOCAL + int(name.split()[2].strip(","))
    return (2 * view + (1 - served) * (TOKENS + 4 * view)) / (2 * TOKENS)


def draw(figure: Any, loss: Losses) -> None:
    axes = figure.subplots()
    for name in ("tokenselect", "first and latest", "h2o", "random"):
        values = [float(loss[f"{name}, k = {k}"].mean()) for k in SELECTED]
        axes.plot([SINKS + LOCAL + k for k in SELECTED], values, marker="o", label=name)
    axes.axhline(float(loss["full cache"].mean()), color="gray", label="full cache")
    axes.set(xlabel=f"tokens seen, of {TOKENS}", ylabel="loss of the pass key (nats per digit)")
    axes.legend()


PAPER = Paper(
    number=149,
    key="tokenselect",
    title="TokenSelect: Efficient Long-Context Inference and Length Extrapolation via "
    "Dynamic Token-Level KV Cache Selection",
    arxiv="2411.02886",
    role="cache policy",
    family="efficiency",
    claim="Attending to a few tokens that all heads vote for, query by query, recalls what windows "
    "and evicting caches of the same size have lost.",
    reproduce=reproduce,
    threads=1,
)
