"""ASAp: what masking distorts, and how soon a sampler that learns from its texts has put it right.

Every accepted text is listed, so that distributions are compared exactly: the target (the model
given the constraint), that of masking, and that of ASAp's next text after n texts, which its trie
of prefixes determines. On SmolLM2: five binary digits, 00000 or beginning with 1. On toy models: an
odd sum of at most six tokens.
"""

from __future__ import annotations

import math
from statistics import fmean

import torch

from tokenry.decode.constraints.base import Constraint
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.generate import prompt_ids
from tokenry.decode.samplers.asap import ASAp
from tokenry.decode.samplers.request import Request
from tokenry.lab.enumeration import AcceptedTexts, PromptedModel, relative_entropy
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table
from tokenry.lab.token_rule import OddSum
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.toy_lm import NextToken, ToyLM, ToyState, total_variation

PROMPT, GRAMMAR = "A random binary string of length 5: ", "00000|1[01]{4}"
LIMIT, EVERY = 6, 10  # tokens of a text, its end among them; texts between two measurements
KL, TV = "KL(target || {})", "distance to the target, {}"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """SmolLM2, and toy models with seeds from `100 seed`."""
    texts, toys = at(scale, full=(300, 8), smoke=(20, 2))
    table, lines, ours = Table(), {}, f"ASAp after {texts} texts"

    def follow(name: str, model: NextToken, rule: Constraint, number: int) -> None:
        """Draw texts one after the other, and measure on the way."""
        accepted = AcceptedTexts.of(model, rule, LIMIT)
        exact, empty = accepted.exact_futures(), torch.zeros(1, 0, dtype=torch.long)
        state, generator = ToyState.start(model, empty), torch.Generator().manual_seed(number)
        request = Request(state, rule, max_new_tokens=LIMIT, generator=generator)
        asap, weights, line = ASAp(rows=1), [], []
        root, target = asap.memory.root(request), accepted.distribution(exact)
        for drawn in range(0, texts + 1, EVERY):
            line.append((drawn, relative_entropy(target, accepted.distribution(root))))
            if drawn < texts:
                weights.append(float(asap(request, EVERY).log_weights.exp().mean()))
        lines[name if name == "SmolLM2" else f"{name} [{number}]"] = line
        logprob = {text: math.log(p * exact.bound) for text, p in target.items() if p > 0}
        now = accepted.distribution(root)
        samplers = {"target": target, "masking": accepted.distribution(), ours: now}
        for sampler, shares in samplers.items():
            mean = math.fsum(p * logprob[text] for text, p in shares.items() if p > 0)
            values = {f"mean log-probability of a text, {sampler}": mean}
            if sampler != "target":
                values[KL.format(sampler)] = relative_entropy(target, shares)
                distance = total_variation(target, shares)
                table.add(f"{name}: {TV.format(sampler)}", distance, "TV", number)
            table.add_all(values, "nats", number, name)
        table.add(f"{name}: probability of the constraint", exact.bound, "", number)
        table.add(f"{name}: ASAp's upper bound on it", root.bound, "", number)
        table.add(f"{name}: mean weight of ASAp's texts", fmean(weights), "", number)

    loaded = language_model(scale)
    prompted = PromptedModel(loaded.model, prompt_ids(loaded.tokenizer, PROMPT))
    follow("SmolLM2", prompted, Grammar.regex(GRAMMAR, loaded.tokenizer), seed)
    for number in range(100 * seed, 100 * seed + toys):
        follow("toy", ToyLM(vocab_size=4, order=2, seed=number), OddSum(), number)
    checks = {}
    for name in ("SmolLM2", "toy"):
        for words, label in (("KL(target || sampler)", KL), ("total variation", TV)):
            gap = table.gap(f"{name}: {label.format('masking')}", f"{name}: {label.format(ours)}")
            text = f"{name}: ASAp's next text is nearer to the target than masking's in {words}"
            checks[text] = gap if len(gap.margins) > 1 else gap.mean > 0
    return verdict(
        table,
        checks,
        reason="both distances are exact, over texts that end within the limit",
        plots=[curves(lines, "texts drawn", "KL(target || next text), nats", log="y")],
    )


PAPER = Paper(
    number=17,
    key="asap",
    title="Grammar-Aligned Decoding",
    arxiv="2405.21047",
    role="sampler",
    family="control",
    claim="Masking by a grammar distorts the model's distribution; a sampler that remembers which "
    "prefixes could not be completed converges to the undistorted one.",
    reproduce=reproduce,
    threads=1,
)
