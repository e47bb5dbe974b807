"""What every token sampler must keep: its draws are properly weighted.

E[w 1{x = v}] = p(v) accept(v) for every token v, so E[w f(x)] = Σ p accept f for every f.
"""

import math

import pytest
import torch

from role_cases import cases
from tokenry.decode.constraints.base import Anything
from tokenry.decode.samplers.base import sampler as samplers

DRAWS = 12_000
# weights lie in [0, 1]: by Hoeffding each of the checked means is off by more than this with
# probability 2 exp(-2 DRAWS TOLERANCE²) = 3e-9; fewer than 200 means are checked, so the
# whole file raises a false alarm with probability below 1e-6
TOLERANCE = math.sqrt(math.log(2 / 3e-9) / (2 * DRAWS))

CASES = {
    "flat": ([0.5, 0.25, 0.25], [1, 2]),
    "one likely, refused": ([0.9, 0.06, 0.03, 0.01], [1, 3]),
    "one likely, accepted": ([0.03, 0.9, 0.06, 0.01], [1, 2]),
    "only the rarest": ([0.4, 0.35, 0.2, 0.05], [3]),
    "everything": ([0.4, 0.35, 0.2, 0.05], [0, 1, 2, 3]),
    "some have no mass": ([0.0, 0.7, 0.0, 0.2, 0.1], [0, 3]),
    "seven": ([0.3, 0.25, 0.15, 0.1, 0.1, 0.06, 0.04], [1, 4, 5]),
}


class Accepts:
    """A state that accepts a fixed set of tokens."""

    complete = finished = False

    def __init__(self, tokens, size, mask_cost):
        self.tokens, self.size, self.mask_cost = set(tokens), size, mask_cost
        self.asked = self.masked = 0

    def allows(self, token):
        self.asked += 1
        return token in self.tokens

    def mask(self):
        self.masked += 1
        return torch.tensor([token in self.tokens for token in range(self.size)])


def check_sampler(sampler, probs, accepted, mask_cost, generator):
    V = len(probs)
    states = [Accepts(accepted, V, mask_cost) for _ in range(DRAWS)]
    logprobs = torch.tensor(probs).log().expand(DRAWS, V)
    steps = sampler.steps(logprobs, states, generator)
    mean = torch.zeros(V, dtype=torch.float64)
    for step, state in zip(steps, states, strict=True):
        assert (step.checks, step.masks) == (state.asked, state.masked)
        assert step.token in accepted or (step.token == -1 and step.log_weight == -math.inf)
        if step.token >= 0:
            mean[step.token] += math.exp(step.log_weight) / DRAWS
    exact = torch.tensor(
        [p if token in accepted else 0.0 for token, p in enumerate(probs)], dtype=torch.float64
    )
    assert (mean - exact).abs().max() < TOLERANCE


@pytest.mark.parametrize("mask_cost", [1.0, 100.0])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("made", cases(samplers))
def test_is_properly_weighted(made, case, mask_cost):
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    check_sampler(made(), *CASES[case], mask_cost, generator)


@pytest.mark.parametrize("made", cases(samplers))
def test_draws_nothing_where_nothing_is_accepted(made):
    logprobs = torch.tensor([0.5, 0.3, 0.2]).log()
    for accepted in ([], [7]):
        step = made().step(logprobs, Accepts(accepted, 8, 100.0), torch.Generator().manual_seed(0))
        assert step.token == -1
        assert step.log_weight == -math.inf


@pytest.mark.parametrize("made", cases(samplers))
def test_one_draw_is_a_batch_of_one(made):
    logprobs = torch.randn(50, generator=torch.Generator().manual_seed(1)).log_softmax(0)
    state = Anything(50, [0]).initial()
    one = made().step(logprobs, state, torch.Generator().manual_seed(3))
    batch = made().steps(logprobs[None], [state], torch.Generator().manual_seed(3))
    assert [one] == batch


@pytest.mark.parametrize("made", cases(samplers))
def test_reads_a_mask_of_another_width_than_the_logits(made):
    """Models pad their output beyond the tokenizer's vocabulary; padding is never drawn."""
    logprobs = torch.tensor([0.05, 0.05, 0.9]).log()
    for seed in range(20):
        state = Anything(2, [0]).initial()
        step = made().step(logprobs, state, torch.Generator().manual_seed(seed))
        assert step.token in (0, 1, -1)
