"""Cross-sampling: enumerated distributions, the two limits, budgets, and caches in step."""

import math
from collections import Counter
from itertools import product

import pytest
import torch

from conftest import build_llama
from tokenry.core.divergence import divergence
from tokenry.core.errors import InputError
from tokenry.decode.branches import Branch
from tokenry.measure.cross_sampling import Above, AtRandom, CrossSampled, cross_sample, drawn

V, PROMPT = 4, [1, 2]


@pytest.fixture(scope="module")
def models():
    one, other = build_llama(V), build_llama(V)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.3 * torch.sin(torch.arange(weight.numel())).view_as(weight))
    return one, other


def crossed(models, swap, rows=1, seed=0, length=5, prompt=PROMPT, **options):
    sides = [Branch(model, torch.tensor([prompt] * rows)) for model in models]
    generator = torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": length, "generator": generator, **options}
    return cross_sample(*sides, swap, **options)


def logits_after(model, text):
    with torch.no_grad():
        return model(torch.tensor([[*PROMPT, *text]])).logits[0, -1].float()


def mixed_probability(models, text, threshold, temperature=1.0, budget=math.inf):
    """The chance of a text under the mixture: the product of its steps."""
    total, spent = 1.0, 0
    for t, token in enumerate(text):
        p, q = (logits_after(model, text[:t]) / temperature for model in models)
        swap = float(divergence(p, q, "jensen_shannon")) > threshold and spent < budget
        spent += swap
        total *= float((q if swap else p).softmax(-1)[token])
    return total


@pytest.mark.parametrize(("threshold", "budget"), [(0.05, None), (0.05, 1), (-1.0, None)])
def test_texts_have_the_probability_of_the_mixture(models, threshold, budget):
    limit = math.inf if budget is None else budget
    exact = {
        text: mixed_probability(models, text, threshold, budget=limit)
        for text in product(range(V), repeat=3)
    }
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-5)
    count = 3000
    found = Counter(
        map(tuple, crossed(models, Above(threshold), count, length=3, budget=budget).ids)
    )
    for text, chance in exact.items():  # 7 standard deviations of a binomial count, and one more
        assert abs(found[text] - count * chance) <= 7 * math.sqrt(count * chance) + 2
    wrong = {text: mixed_probability(models, text, 1.0) for text in exact}
    assert sum(abs(exact[text] - wrong[text]) for text in exact) > 0.2  # and not the primary's


def test_a_threshold_of_ln_2_or_no_budget_leaves_the_primary(models):
    plain = crossed(models, Above(math.log(2)), 50)
    for other in (
        crossed(models, Above(0.0), 50, budget=0),
        crossed((models[0], models[0]), Above(-1.0), 50),
        crossed(models, AtRandom(0.0), 50),
    ):
        assert other.ids == plain.ids
        assert other.effective_share == 0
    assert not any(map(any, plain.swapped))
    assert crossed(models[::-1], Above(1.0), 50).ids == crossed(models, Above(-1.0), 50).ids


def test_swaps_are_where_the_models_disagree_and_effective_where_the_token_changes(models):
    found, rows = crossed(models, Above(0.05), 40), 0
    for ids, swapped, effective, shift in zip(*vars(found).values(), strict=True):
        for t in range(len(ids)):
            p, q = (logits_after(model, ids[:t]) for model in models)
            exact = float(divergence(p, q, "jensen_shannon"))
            assert shift[t] == pytest.approx(exact, abs=1e-4)  # both caches hold the mixed text
            assert swapped[t] == (shift[t] > 0.05)
            assert swapped[t] or not effective[t]
            rows += effective[t]
    assert 0 < rows < sum(map(sum, found.swapped))
    assert found.effective_share == pytest.approx(rows / 200)


def test_a_budget_counts_the_swaps_of_each_text_by_itself(models):
    free, bound = (crossed(models, Above(0.0), 30, budget=n) for n in (None, 2))
    assert max(map(sum, free.swapped)) == 5
    assert [sum(row) for row in bound.swapped] == [2] * 30
    assert all(row[:2] == [True, True] for row in bound.swapped)


def test_random_swaps_come_at_their_share(models):
    swapped = crossed(models, AtRandom(0.25), 400).swapped
    assert sum(map(sum, swapped)) / 2000 == pytest.approx(0.25, abs=7 * math.sqrt(0.1875 / 2000))


def test_one_uniform_number_chooses_by_the_cumulative_distribution():
    logits = torch.tensor([[0.2, 0.0, 0.3, 0.5]]).log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51], dtype=torch.float64)
    assert drawn(logits, uniform).tolist() == [0, 0, 2, 2, 3]


def test_texts_end_and_temperature_divides_both(models):
    found = crossed(models, Above(0.05), 60, ends=[3], length=6)
    for ids in found.ids:
        assert 3 not in ids[:-1]
        assert ids[-1] == 3 or len(ids) == 6
    cold = crossed(models, Above(1.0), 20, temperature=1e-4)
    greedy = [int(logits_after(models[0], [])[None].argmax())]
    assert all(ids[:1] == greedy for ids in cold.ids)
    warm = crossed(models, Above(0.05), temperature=2.0, length=1).shift[0][0]
    p, q = (logits_after(model, []) / 2 for model in models)
    assert warm == pytest.approx(float(divergence(p, q, "jensen_shannon")), abs=1e-5)


def test_wrong_settings_are_refused(models):
    for wrong in ({"length": 0}, {"budget": -1}, {"temperature": 0.0}):
        with pytest.raises(InputError):
            crossed(models, Above(), **wrong)
    with pytest.raises(InputError, match="share"):
        AtRandom(1.5)
    assert Above().threshold == 0.1
    assert CrossSampled([], [], [], []).effective_share == 0
