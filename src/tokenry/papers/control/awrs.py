"""AWRS: exact constrained generation that asks the constraint about a few tokens only.

On SmolLM2, a constraint that no grammar expresses (an addition whose result is right) is a Python
function on text; counted is how often AWRS calls it for each token, where a mask calls it for every
token of the vocabulary. On enumerable toy models, the distance of the weighted texts from the
exactly known conditional distribution is compared with that of plain local masking.
"""

from __future__ import annotations

from tokenry.decode.constraints.predicate import Predicate
from tokenry.decode.generate import generate
from tokenry.decode.samplers.awrs import AWRS
from tokenry.decode.samplers.smc import SMC, MaskedTexts
from tokenry.lab.enumeration import odd_sum_distance
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.papers.base import Paper
from tokenry.tasks.verifiers.additions import is_right_addition, may_become_right
from tokenry.tasks.worlds.toy_lm import ToyLM

PROMPT = "Write an addition of two numbers with its result, like 12 + 30 = 42. Only that."
CALLS, FEW = "constraint calls per token, AWRS", 100
WEIGHTED, MASKED = "distance to the target, AWRS with SMC", "distance to the target, masking"
SAMPLERS = {WEIGHTED: SMC(AWRS(max_accepts=3)), MASKED: MaskedTexts()}
MAX_REJECTS = 500  # keeps the weights exact; without it a draw in the far tail takes thousands


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four draws of additions from SmolLM2, and eight toy models, with seeds from `100 seed`."""
    draws, particles, tokens, toys, texts = at(
        scale, full=(4, 8, 25, 8, 2000), smoke=(1, 4, 1, 2, 50)
    )
    loaded, table = language_model(scale), Table()
    constraint = Predicate(may_become_right, is_right_addition, loaded.tokenizer)
    messages, sampler = [{"role": "user", "content": PROMPT}], AWRS(max_rejects=MAX_REJECTS)
    table.add("constraint calls per token, mask", constraint.vocab_size, "calls")
    for number, samples in over_seeds(
        lambda n: generate(loaded, messages, constraint, sampler, particles, tokens, seed=n),
        seed,
        draws,
    ):
        ended = [text for text, done in zip(samples.texts, samples.finished, strict=True) if done]
        right = sum(map(is_right_addition, ended)) / max(len(ended), 1)
        table.add(CALLS, samples.checks_per_token, "calls", number)
        table.add("log-probability of the constraint", samples.log_evidence, "nats", number)
        table.add("ended texts that are right additions", right, "share", number)
    for number in range(100 * seed, 100 * seed + toys):
        model = ToyLM(vocab_size=4, order=2, eos=0, seed=number)
        for name, method in SAMPLERS.items():
            table.add(name, odd_sum_distance(method, model, texts, number), "TV", number)
    distances = {name: {str(n): tv for n, tv in table.values(name).items()} for name in SAMPLERS}
    return verdict(
        table,
        {
            f"AWRS calls the constraint fewer than {FEW} times a token on SmolLM2 (a mask: once "
            "for each token of the vocabulary)": table.below(CALLS, FEW),
            "on toy models AWRS with SMC is nearer to the enumerated conditional distribution than "
            "local masking, in total variation": table.gap(MASKED, WEIGHTED),
        },
        reason=f"with at most {MAX_REJECTS} refusals a draw: a few draws that need a token which "
        "the model finds very unlikely would take thousands of calls and dominate the mean",
        plots=[bars(distances, "total variation to the target", "toy model")],
    )


PAPER = Paper(
    number=7,
    key="awrs",
    title="Fast Controlled Generation from Language Models with Adaptive Weighted Rejection "
    "Sampling",
    arxiv="2504.05410",
    role="sampler",
    family="control",
    claim="A handful of constraint checks a token, instead of one for each vocabulary entry, give "
    "texts that are valid and, with their weights, distributed as the model under the constraint.",
    reproduce=reproduce,
)
