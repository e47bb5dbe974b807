"""Sequential Monte Carlo against a toy model whose constrained distribution is enumerated."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.samplers.awrs import AWRS
from tokenry.decode.samplers.masked import Masked
from tokenry.decode.samplers.samples import effective_size
from tokenry.decode.samplers.smc import resample, smc
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, total_variation

LIMIT = 5
MODEL = ToyLM(vocab_size=4, order=1, eos=0, scale=1.5, seed=6)


class Odd(Constraint):
    """Token 3 at most once, never as the second token after a 1; the sum of the tokens is odd."""

    vocab_size, eos = 4, frozenset([0])

    def initial(self):
        return OddState(())


class OddState:
    mask_cost = 2.0

    def __init__(self, text, finished=False):
        self.text, self.finished = text, finished

    @property
    def complete(self):
        return not self.finished and accepts(self.text)

    def allows(self, token):
        if self.finished or not 0 <= token < 4:
            return False
        return self.complete if token == 0 else prefix_is_fine((*self.text, token))

    def mask(self):
        return torch.tensor([self.allows(token) for token in range(4)])

    def advance(self, token):
        return OddState(self.text, True) if token == 0 else OddState((*self.text, token))


def prefix_is_fine(text):
    return text.count(3) <= 1 and text[:2] != (1, 3)


def accepts(text):
    return prefix_is_fine(text) and sum(text) % 2 == 1


TRUTH, LOG_EVIDENCE = MODEL.conditional(accepts, LIMIT)
EVIDENCE = math.exp(LOG_EVIDENCE)


def run(seed=0, **options):
    state = ToyState.start(MODEL, torch.zeros(1, 0, dtype=torch.long))
    options = {"particles": 8, "max_new_tokens": LIMIT, **options}
    return smc(state, Odd(), generator=seed, **options)


def found(samples):
    total = {}
    for ids, weight in zip(samples.ids, samples.weights.tolist(), strict=True):
        total[tuple(ids)] = total.get(tuple(ids), 0.0) + weight
    return {text: weight for text, weight in total.items() if weight > 0}


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": AWRS()},
        {"sampler": AWRS(max_accepts=3), "resampling": "systematic", "particles": 4},
        {"sampler": AWRS(masks=False), "ess_threshold": 1.0},
        {"sampler": Masked(), "ess_threshold": 0.0},
    ],
    ids=str,
)
def test_the_evidence_is_unbiased(options):
    runs = 200
    estimates = [math.exp(run(seed, **options).log_evidence) for seed in range(runs)]
    # weights lie in [0, 1], so by Hoeffding the false-alarm rate is below 1e-7 for four cases
    tolerance = math.sqrt(math.log(2 / 2.5e-8) / (2 * runs))
    mean = sum(estimates) / runs
    spread = math.sqrt(sum((e - mean) ** 2 for e in estimates) / (runs - 1))
    assert abs(mean - EVIDENCE) < tolerance
    # and, sharper, by the normal approximation at 6 standard errors
    assert abs(mean - EVIDENCE) < 6 * spread / math.sqrt(runs)


def test_weighted_samples_converge_to_the_conditional_and_masked_ones_do_not():
    """Expected distance of n weighted draws is of order Σ sqrt(p / n): 0.05 at 4000,
    twice that is allowed; the seed is fixed.

    Masked sampling settles on the product of local renormalisations, which is computed exactly.
    """
    many = 4000
    local = {}

    def walk(state, text, p):
        if len(text) == LIMIT:
            return
        probs = MODEL.logits(text).double().softmax(0) * state.mask()
        for token, q in enumerate((probs / probs.sum()).tolist()):
            if q > 0 and token == 0:
                local[text] = p * q
            elif q > 0:
                walk(state.advance(token), (*text, token), p * q)

    walk(Odd().initial(), (), 1.0)
    ended = math.fsum(local.values())
    local = {text: p / ended for text, p in local.items()}
    apart = total_variation(local, TRUTH)
    assert apart > 0.4  # the two targets can be told from each other

    exact = found(run(1, particles=many))
    masked = found(run(1, particles=many, sampler=Masked(), weighted=False))
    assert total_variation(exact, TRUTH) < 0.1
    assert total_variation(masked, local) < 0.1
    assert total_variation(masked, TRUTH) > apart - 0.1


def test_all_texts_satisfy_the_constraint_and_weights_add_up():
    samples = run(3, particles=50)
    for ids, done, weight in zip(samples.ids, samples.finished, samples.log_weights, strict=True):
        assert done == (weight > -math.inf)
        assert not done or accepts(tuple(ids))
    assert math.isclose(float(samples.weights.sum()), 1.0)
    assert 1.0 <= samples.effective <= 50.0
    assert samples.tokens > 0
    assert samples.checks_per_token > 0


def test_the_seed_decides_everything():
    assert run(5).ids == run(5).ids
    assert run(5).log_evidence == run(5).log_evidence
    assert any(run(5).ids != run(seed).ids for seed in range(6, 9))


def test_texts_cut_off_by_the_limit_weigh_nothing_unless_allowed():
    samples = run(0, max_new_tokens=1)
    assert samples.log_weights.eq(-math.inf).all()
    assert samples.log_evidence == -math.inf
    assert samples.weights.tolist() == [0.0] * 8
    free = run(0, max_new_tokens=1, must_end=False)
    assert free.log_evidence > -math.inf


def test_a_dead_end_is_reported_with_its_text():
    class Stuck(Odd):
        def initial(self):
            return StuckState(())

    class StuckState(OddState):
        def allows(self, token):
            return token == 2 and len(self.text) < 2

        def advance(self, token):
            return StuckState((*self.text, token))

    state = ToyState.start(MODEL, torch.zeros(1, 0, dtype=torch.long))
    samples = smc(state, Stuck(), particles=3, max_new_tokens=9)
    assert samples.dead_end == [2, 2]
    assert samples.log_evidence == -math.inf


def test_a_critic_multiplies_the_target():
    samples = run(2, particles=4000, critic=lambda ids, _: 1.5 * ids.count(2))
    tilted = {text: p * math.exp(1.5 * text.count(2)) for text, p in TRUTH.items()}
    total = math.fsum(tilted.values())
    tilted = {text: p / total for text, p in tilted.items()}
    assert total_variation(tilted, TRUTH) > 0.1
    assert total_variation(found(samples), tilted) < 0.1
    assert abs(samples.log_evidence - math.log(total * EVIDENCE)) < 0.15


def test_temperature_and_processors_change_the_model_sampled_from():
    cold, _ = ToyLM.conditional(Halved(), accepts, LIMIT)
    samples = run(2, particles=3000, temperature=0.5, sampler=Masked())
    assert total_variation(found(samples), cold) < 0.1
    seen = []

    def doubled(ids, logits):
        seen.append(tuple(ids.shape))
        return 2 * logits

    processed = run(2, particles=3000, sampler=Masked(), processors=[doubled], prompt_ids=[1, 2])
    assert found(processed) == found(samples)
    assert seen[0] == (3000, 2)
    assert seen[1][1] == 3


class Halved(ToyLM):
    """The same table at half the temperature."""

    def __init__(self):
        super().__init__(vocab_size=4, order=1, eos=0, scale=1.5, seed=6)

    def logits(self, text):
        return 2 * super().logits(text)


def test_the_decoding_state_holds_living_texts_only():
    class Watched(ToyState):
        sizes: tuple = ()

        def append(self, tokens):
            super().append(tokens)
            Watched.sizes = (*Watched.sizes, len(self.rows))

    smc(
        Watched.start(MODEL, torch.zeros(1, 0, dtype=torch.long)),
        Anything(4, [0]),
        particles=40,
        max_new_tokens=12,
        ess_threshold=0.0,
    )
    assert Watched.sizes[-1] < 40
    assert list(Watched.sizes) == sorted(Watched.sizes, reverse=True)


@pytest.mark.parametrize("how", ["multinomial", "systematic"])
def test_resampling_is_unbiased(how):
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    runs = 4000
    drawn = torch.tensor([resample(weights.log() + 7.0, how, generator) for _ in range(runs)])
    share = torch.bincount(drawn.flatten(), minlength=5) / (5 * runs)
    # 20,000 draws (systematic ones vary less): Hoeffding at a false-alarm rate of 1e-7 each
    assert (share - weights).abs().max() < math.sqrt(math.log(2e7) / (2 * 5 * runs))
    assert share[1] == share[4] == 0
    if how == "systematic":
        counts = torch.stack([(drawn == value).sum(1) for value in range(5)], 1)
        assert ((counts - 5 * weights).abs() < 1).all()


def test_effective_size_runs_from_zero_to_all():
    assert effective_size(torch.full((4,), -math.inf)) == 0.0
    assert math.isclose(effective_size(torch.full((4,), -9.0)), 4.0, rel_tol=1e-6)
    assert math.isclose(effective_size(torch.tensor([0.0, -math.inf])), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"particles": 0},
        {"max_new_tokens": 0},
        {"ess_threshold": 1.5},
        {"resampling": "stratified"},
        {"temperature": 0.0},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(InputError):
        run(**options)
