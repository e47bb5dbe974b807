"""Diagnostics of a reduction against cases whose values are known."""

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.core.reduction import Merging, merge_to, select_top
from tokenry.measure.reduction import (
    coverage,
    effective_rank,
    information_lost,
    reduction_report,
    redundancy,
    stability,
)


def tokens(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_effective_rank_counts_orthonormal_tokens(k):
    basis = torch.linalg.qr(tokens(0, 8, 8)).Q[:k]
    assert effective_rank(basis) == pytest.approx(k, rel=1e-4)
    assert effective_rank(basis.repeat(5, 1)) == pytest.approx(k, rel=1e-3)
    assert effective_rank(3 * basis) == pytest.approx(k, rel=1e-4)


def test_coverage_is_one_when_all_are_kept_or_represented():
    x = tokens(1, 6, 8)
    assert coverage(x, x) == pytest.approx(1)
    assert coverage(x.repeat(3, 1), x) == pytest.approx(1)
    assert coverage(x, x[:3]) < 1
    basis = torch.eye(4)
    assert coverage(basis, basis[:1]) == pytest.approx(0.25)


def test_redundancy_of_equal_and_of_orthogonal_tokens():
    assert redundancy(torch.ones(4, 3)) == pytest.approx(1)
    assert redundancy(torch.eye(4)) == pytest.approx(0)
    assert redundancy(torch.tensor([[1.0, 0], [-2, 0]])) == pytest.approx(-1)
    assert redundancy(torch.ones(1, 3)) == 0


def test_keeping_everything_loses_no_information(tiny_model):
    x = tokens(2, 12, 32)
    everything = select_top(torch.zeros(12), 12)
    assert information_lost(tiny_model, x, everything) == pytest.approx(0, abs=1e-5)
    fewer = select_top(torch.arange(12.0), 5)
    lost = information_lost(tiny_model, x, fewer)
    with torch.no_grad():
        full = tiny_model(inputs_embeds=x[None]).logits[0, -1].double().softmax(-1)
        part = tiny_model(
            inputs_embeds=x[None, 7:], position_ids=torch.arange(7, 12)[None]
        ).logits[0, -1].double().softmax(-1)  # fmt: skip
    assert lost == pytest.approx(float((full * (full / part).log()).sum()), rel=1e-3, abs=1e-6)
    assert lost > 0


def test_stability_of_fixed_and_of_random_choices():
    x = tokens(3, 20, 4)
    assert stability(lambda t: select_top(torch.arange(20.0), 5), x) == 1
    assert stability(lambda t: select_top(t.norm(dim=-1), 5), x, noise=0) == 1
    shaky = stability(lambda t: select_top(t[:, 0], 5), x, noise=10.0, trials=20)
    assert shaky < 0.6
    assert shaky == stability(lambda t: select_top(t[:, 0], 5), x, noise=10.0, trials=20)


def test_the_report_has_what_was_asked_for(tiny_llama):
    x = tokens(4, 16, 32)
    plain = reduction_report(x, merge_to(x, 4))
    assert plain["retention"] == 0.25
    assert set(plain) == {
        "retention", "coverage", "redundancy", "effective rank", "effective rank, reduced",
    }  # fmt: skip
    whole = reduction_report(x, merge_to(x, 4), model=tiny_llama, reduce=lambda t: merge_to(t, 4))
    assert whole["information lost"] >= 0
    assert 0 <= whole["stability"] <= 1
    same = reduction_report(x, Merging(torch.arange(16)))
    assert same["effective rank"] == pytest.approx(same["effective rank, reduced"], rel=1e-4)


def test_bad_input():
    x = tokens(5, 2, 4, 3)
    with pytest.raises(ShapeError, match=r"\[N, d\]"):
        reduction_report(x, Merging(torch.arange(4)))
    with pytest.raises(InputError, match="noise"):
        stability(lambda t: select_top(t[:, 0], 1), x[0], noise=-1)
