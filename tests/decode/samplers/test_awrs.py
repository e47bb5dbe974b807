"""AWRS against complete enumeration of its random choices."""

import itertools
import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.samplers.awrs import AWRS, awrs_step, geometric, recursive


class Enumerated:
    """Draws whose choices come from a script; `explore` runs all scripts with their probabilities.

    Follows the definition, not the implementation: a draw takes a token that is left with
    probability p / mass; repeats are geometric.
    """

    def __init__(self, probs, script, most_repeats):
        self.probs, self.script, self.most = list(probs), list(script), most_repeats
        self.chance, self.taken, self.open = 1.0, 0, []

    @property
    def mass(self):
        return sum(self.probs)

    def choose(self, chances):
        """The scripted branch, or the first with a chance; its alternatives are left open."""
        if self.taken < len(self.script):
            branch = self.script[self.taken]
        else:
            alive = [i for i, chance in enumerate(chances) if chance > 0]
            branch = alive[0]
            self.open.extend([*self.script, i] for i in alive[1:])
            self.script.append(branch)
        self.taken += 1
        self.chance *= chances[branch]
        return branch

    def draw(self):
        if self.mass <= 0:
            return None
        return self.choose([p / self.mass for p in self.probs])

    def ban(self, token):
        probability, self.probs[token] = self.probs[token], 0.0
        return probability

    def repeats(self, chance):
        failures = [chance * (1 - chance) ** n for n in range(self.most)]
        return self.choose([*failures, 1.0 - sum(failures)])

    def keep(self, mask):
        self.probs = [p if ok else 0.0 for p, ok in zip(self.probs, mask, strict=True)]
        return self.mass


def explore(rule, probs, most_repeats=0):
    """[(probability of the run, token, weight)] over all runs of a rule."""
    runs, scripts = [], [[]]
    while scripts:
        draws = Enumerated(probs, scripts.pop(), most_repeats)
        token, weight = rule(draws)
        runs.append((draws.chance, token, weight))
        scripts.extend(draws.open)
    assert math.isclose(sum(chance for chance, _, _ in runs), 1.0)
    return runs


def check_proper(runs, probs, accepted):
    Z = sum(probs[token] for token in accepted)
    for value, p in enumerate(probs):
        exact = p if value in accepted else 0.0
        weighted = sum(chance * weight for chance, token, weight in runs if token == value)
        assert math.isclose(weighted, exact, abs_tol=1e-12)
    return Z


PROBS = [
    [0.5, 0.25, 0.25],
    [0.1, 0.2, 0.3, 0.4],
    [0.7, 0.1, 0.15, 0.05],
    [0.3, 0.05, 0.25, 0.2, 0.2],
]
SUBSETS = [
    (probs, set(accepted))
    for probs in PROBS
    for size in range(len(probs) + 1)
    for accepted in itertools.combinations(range(len(probs)), size)
]


@pytest.mark.parametrize("max_rejects", [1, 2, 3, math.inf])
def test_recursive_is_properly_weighted_over_all_orders(max_rejects):
    for probs, accepted in SUBSETS:
        runs = explore(lambda d, a=accepted: recursive(d, a.__contains__, max_rejects), probs)
        Z = check_proper(runs, probs, accepted)
        if max_rejects == math.inf:
            for value in accepted:
                marginal = sum(chance for chance, token, _ in runs if token == value)
                assert math.isclose(marginal, probs[value] / Z)


@pytest.mark.parametrize("mask_after", [0, 1, 2])
def test_recursive_with_a_mask_is_properly_weighted_over_all_orders(mask_after):
    for probs, accepted in SUBSETS:
        V = len(probs)

        def rule(draws, accepted=accepted, size=V):
            mask = [token in accepted for token in range(size)]
            return recursive(draws, accepted.__contains__, math.inf, lambda: mask, mask_after)

        check_proper(explore(rule, probs), probs, accepted)


@pytest.mark.parametrize(("K", "max_rejects"), [(2, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("mask_after", [math.inf, 1])
def test_geometric_is_properly_weighted_over_all_runs(K, max_rejects, mask_after):
    """With a limit on refusals the number of runs is finite, and the weights are still exact."""
    for probs, accepted in SUBSETS:
        if len(probs) > 4:
            continue
        V = len(probs)

        def rule(draws, accepted=accepted, size=V):
            mask = [token in accepted for token in range(size)]
            return geometric(draws, accepted.__contains__, K, max_rejects, lambda: mask, mask_after)

        check_proper(explore(rule, probs, most_repeats=max_rejects), probs, accepted)


class Listed:
    """Draws in a given order, for worked examples."""

    def __init__(self, probs, order, repeats=()):
        self.probs, self.order, self.again = list(probs), list(order), list(repeats)

    @property
    def mass(self):
        return sum(self.probs)

    def draw(self):
        return self.order.pop(0) if self.order else None

    def ban(self, token):
        probability, self.probs[token] = self.probs[token], 0.0
        return probability

    def repeats(self, chance):
        return self.again.pop(0) if self.again else 0


def test_worked_example_of_the_recursive_weights():
    probs = [0.5, 0.25, 0.25]
    weight = {
        order: recursive(Listed(probs, order), {1, 2}.__contains__)[1]
        for order in itertools.permutations(range(3))
    }
    # 0 first: refused, half is left, both others are accepted: w = ½
    assert weight[0, 1, 2] == weight[0, 2, 1] == 0.5
    # 1 first: the next one is refused (w = p = ¼) or accepted (w = 1)
    assert weight[1, 0, 2] == weight[2, 0, 1] == 0.25
    assert weight[1, 2, 0] == weight[2, 1, 0] == 1.0


def test_only_the_last_token_accepted_weighs_its_probability():
    probs = [0.6, 0.3, 0.1]
    for method in ("recursive", "geometric"):
        log_weight = awrs_step(torch.tensor(probs).log(), {2}.__contains__, seeded(), method=method)
        if method == "recursive":
            assert math.isclose(math.exp(log_weight[1]), 0.1, rel_tol=1e-6)
        assert log_weight[0] == 2


def test_everything_accepted_weighs_one_after_two_calls():
    logprobs = torch.full((20,), 1 / 20).log()
    for seed in range(10):
        _, log_weight, calls = awrs_step(logprobs, lambda _: True, seeded(seed), method="recursive")
        assert abs(log_weight) < 1e-6
        assert calls == 2
        _, log_weight, calls = awrs_step(logprobs, lambda _: True, seeded(seed), method="geometric")
        assert abs(log_weight) < 1e-6
        assert calls <= 2


def test_geometric_with_two_accepts_counts_refused_draws():
    probs = [0.5, 0.25, 0.25]
    assert geometric(Listed(probs, [1, 2]), {1, 2}.__contains__)[1] == 1.0
    assert geometric(Listed(probs, [0, 1, 2]), {1, 2}.__contains__)[1] == 1 / 2
    # the banned token came again twice before the first accepted one
    assert geometric(Listed(probs, [0, 1, 2], [2, 0]), {1, 2}.__contains__) == (1, 1 / 4)


def test_an_accepted_answer_is_asked_for_once():
    asked = []
    probs = [0.99, 0.01]
    geometric(Listed(probs, [0, 0, 0]), lambda token: not asked.append(token), max_accepts=3)
    assert asked == [0]


def test_nothing_acceptable_ends_with_minus_infinity():
    for method in ("recursive", "geometric"):
        logprobs = torch.randn(1000, generator=seeded()).log_softmax(0)
        token, log_weight, calls = awrs_step(logprobs, lambda _: False, seeded(), method=method)
        assert (token, log_weight, calls) == (-1, -math.inf, 1000)
        token, log_weight, calls = awrs_step(
            logprobs, lambda _: False, seeded(), max_rejects=7, method=method
        )
        assert (token, log_weight) == (-1, -math.inf)
        assert calls <= 7


@pytest.mark.parametrize("method", ["recursive", "geometric"])
def test_finds_the_one_accepted_token_of_a_long_tail(method):
    """Its mass, 1e-12 of the whole, is less than rounding leaves of 1 - (the rest)."""
    logprobs = torch.full((5000,), -3.0, dtype=torch.float64)
    logprobs[123] = -3.0 + math.log(5000) + math.log(1e-12)
    exact = float(logprobs.log_softmax(0)[123])
    token, log_weight, calls = awrs_step(
        logprobs.log_softmax(0), (123).__eq__, seeded(), method=method
    )
    assert token == 123
    assert calls >= 5000
    if method == "recursive":
        assert math.isclose(log_weight, exact, abs_tol=1e-9)
    else:
        assert math.isfinite(log_weight)


@pytest.mark.parametrize("method", ["recursive", "geometric", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "values",
    [[0.0, -110.0], [0.0, -800.0], [-200.0, -201.0], [5e4, -5e4], [0.0, -90.0, -1e4, -3e6]],
)
def test_no_probability_is_too_small_to_be_drawn(method, dtype, values):
    """exp(-104) is no number in float32, exp(-746) none in float64."""
    logprobs = torch.tensor(values, dtype=dtype)
    wanted = len(values) - 1
    token, log_weight, calls = awrs_step(logprobs, wanted.__eq__, seeded(), method=method)
    assert token == wanted
    assert math.isfinite(log_weight)
    if method == "recursive":
        assert math.isclose(log_weight, float(logprobs[-1]), rel_tol=1e-6)
        assert calls >= wanted + 1
        limited = awrs_step(logprobs, wanted.__eq__, seeded(1), max_rejects=wanted, method=method)
        assert limited[2] <= wanted


def test_two_rare_tokens_share_what_they_have():
    """Below everything that float32 holds, draws are still in proportion to the probabilities."""
    logprobs = torch.tensor([0.0, -1000.0, -1000.0 + math.log(3)])
    total = -1000.0 + math.log(4)
    draws = [
        awrs_step(logprobs, {1, 2}.__contains__, seeded(n), method="recursive") for n in range(400)
    ]
    assert abs(sum(token == 2 for token, *_ in draws) / 400 - 0.75) < 0.1
    assert all(math.isclose(weight, total, abs_tol=1e-3) for _, weight, _ in draws)


def test_a_mask_whose_tokens_are_all_very_unlikely_is_drawn_from():
    class Rare:
        complete = finished = False
        mask_cost = 1.0

        def allows(self, token):
            return token == 9

        def mask(self):
            return torch.arange(100) == 9

    logprobs = torch.zeros(100).log_softmax(0).index_fill(0, torch.tensor(9), -900.0)
    step = AWRS(method="recursive").step(logprobs, Rare(), seeded())
    assert (step.token, step.masks) == (9, 1)
    assert math.isclose(step.log_weight, -900.0, rel_tol=1e-6)


@pytest.mark.parametrize("method", ["recursive", "geometric"])
def test_unnormalised_logprobs_shift_the_weight(method):
    logprobs = torch.tensor([0.5, 0.3, 0.2]).log()
    for seed in range(20):
        one = awrs_step(logprobs, {0, 2}.__contains__, seeded(seed), method=method)
        two = awrs_step(logprobs - 2.0, {0, 2}.__contains__, seeded(seed), method=method)
        assert one[0] == two[0]
        assert math.isclose(one[1] - 2.0, two[1], abs_tol=1e-6)


def test_a_mask_bounds_the_number_of_checks():
    class Rare:
        complete = finished = False
        mask_cost = 5.0

        def allows(self, token):
            return token == 9

        def mask(self):
            return torch.arange(10_000) == 9

    logprobs = torch.zeros(10_000).log_softmax(0)
    exact = float(logprobs[9])
    for method in ("recursive", "geometric"):
        step = AWRS(method=method).step(logprobs, Rare(), seeded())
        assert (step.token, step.checks, step.masks) == (9, 5, 1)
        if method == "recursive":
            assert math.isclose(step.log_weight, exact, abs_tol=1e-5)
    assert AWRS(masks=False).step(logprobs, Rare(), seeded()).masks == 0


def test_a_tail_bounds_the_checks_and_the_bias():
    logprobs = torch.full((1000,), math.log(1e-9)).index_fill(0, torch.arange(4), math.log(0.25))
    for method in ("recursive", "geometric"):
        survivors = AWRS(method=method, tail=1e-4, masks=False).step(logprobs, Nothing(), seeded())
        assert survivors.token == -1
        assert survivors.checks == 4
        assert AWRS(method=method, masks=False).step(logprobs, Nothing(), seeded()).checks == 1000


class Nothing:
    complete = finished = False
    mask_cost = 5.0

    def allows(self, token):
        return False

    def mask(self):
        return torch.zeros(1000, dtype=torch.bool)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_accepts": 1},
        {"max_accepts": 3, "method": "recursive"},
        {"max_rejects": 0},
        {"method": "magic"},
    ],
)
def test_settings_that_would_bias_the_weights_are_refused(settings):
    with pytest.raises(InputError):
        AWRS(**settings)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)
