import math

import pytest
import torch

from tokenry.core import signals
from tokenry.core.divergence import divergence as exact_divergence
from tokenry.core.divergences import DIVERGENCES
from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.core.signals import (
    TopK,
    bits,
    divergence,
    entropy,
    margin,
    measured,
    pmi,
    rank,
    signal,
    surprisal,
    topk_entropy,
    varentropy,
)


def problem(seed=0, n=9, v=13):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, v, generator=generator, dtype=torch.float64)
    return logits, torch.randint(v, (n,), generator=generator)


def test_equal_to_their_definitions_by_enumeration():
    logits, targets = problem()
    for row, target, *found in zip(
        logits.softmax(-1).tolist(),
        targets.tolist(),
        *(signal[name](logits, targets).tolist() for name in EVERY),
        strict=True,
    ):
        h = -sum(p * math.log(p) for p in row)
        order = sorted(range(len(row)), key=lambda v: -row[v])
        expected = {
            "surprisal": -math.log(row[target]),
            "entropy": h,
            "varentropy": sum(p * (-math.log(p) - h) ** 2 for p in row),
            "rank": order.index(target),
            "margin": math.log(row[order[0]] / row[order[1]]),
        }
        assert found == pytest.approx([expected[name] for name in EVERY])


EVERY = ["surprisal", "entropy", "varentropy", "rank", "margin"]


def test_closed_forms():
    uniform = torch.zeros(1, 8)
    target = torch.tensor([3])
    assert surprisal(uniform, target).item() == pytest.approx(math.log(8))
    assert bits(surprisal(uniform, target)).item() == pytest.approx(3.0)
    assert entropy(uniform).item() == pytest.approx(math.log(8))
    assert varentropy(uniform).item() == pytest.approx(0, abs=1e-9)
    assert rank(uniform, target).item() == 0  # ties share the best rank
    assert margin(uniform).item() == 0
    coin = torch.tensor([[0.8, 0.2]]).log()  # the variance of a two-point variable
    assert varentropy(coin).item() == pytest.approx(0.16 * math.log(4) ** 2)


def test_top_token_has_rank_zero_and_ranks_are_a_permutation():
    logits, _ = problem(n=1, v=13)
    ranks = rank(logits.expand(13, 13), torch.arange(13))
    assert sorted(ranks.tolist()) == list(range(13))
    assert ranks[logits.argmax()] == 0


@pytest.mark.parametrize("memory", [1, 5 * 4 * 4 * 13, 2**26])
def test_pieces_do_not_change_the_result(memory):
    logits, targets = problem(n=23)
    logits, other = logits.float(), problem(1, n=23)[0].float()
    for name in EVERY:
        whole = signal[name](logits, targets)
        torch.testing.assert_close(signal[name](logits, targets, memory=memory), whole)
    for kind in DIVERGENCES.values():
        found = divergence(logits, reference=other, kind=kind, memory=memory)
        torch.testing.assert_close(found, exact_divergence(other, logits, kind))


def test_pieces_stay_within_the_memory(monkeypatch):
    seen = []
    log_softmax = torch.Tensor.log_softmax
    monkeypatch.setattr(
        torch.Tensor, "log_softmax", lambda x, *a: seen.append(x.numel()) or log_softmax(x, *a)
    )
    memory = 2**20
    entropy(torch.zeros(64, 30_000), memory=memory)
    assert max(seen) * 4 * signals.COPIES <= memory
    assert sum(seen) == 64 * 30_000


def test_excluded_tokens_add_nothing_to_values_or_gradients():
    logits, targets = problem()
    targets = targets.clamp_max(10)
    wide = torch.cat([logits, torch.full((9, 4), -math.inf)], dim=1).requires_grad_()
    narrow = logits.clone().requires_grad_()
    for name in EVERY:
        values = signal[name](wide, targets), signal[name](narrow, targets)
        torch.testing.assert_close(*values)
        if name != "rank":
            (got,) = torch.autograd.grad(values[0].sum(), wide)
            (expected,) = torch.autograd.grad(values[1].sum(), narrow)
            torch.testing.assert_close(got[:, :13], expected)
            assert (got[:, 13:] == 0).all()
    assert surprisal(wide, torch.full_like(targets, 14)).isposinf().all()
    assert rank(wide, torch.full_like(targets, 14)).tolist() == [13] * 9
    certain = torch.tensor([[0.0, -math.inf]])
    assert entropy(certain).item() == varentropy(certain).item() == 0
    assert margin(certain).item() == math.inf


def test_gradients_against_finite_differences():
    logits, targets = problem(n=3, v=5)
    logits.requires_grad_()
    for name in ("surprisal", "entropy", "varentropy", "margin"):
        assert torch.autograd.gradcheck(lambda x, name=name: signal[name](x, targets), logits)


def test_half_precision_is_computed_in_float32():
    logits, targets = problem()
    half = logits.bfloat16()
    for name in ("surprisal", "entropy", "varentropy", "margin"):
        found = signal[name](half, targets)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, signal[name](half.float(), targets))


def test_no_positions_give_no_values():
    for name in EVERY:
        assert signal[name](torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_topk_entropy_takes_the_rest_for_one_token():
    logits, _ = problem()
    exact = entropy(logits)
    before = torch.zeros(9, dtype=torch.float64)
    for k in (1, 2, 5, 13):
        best = logits.log_softmax(-1).topk(k)
        found = topk_entropy(None, topk=TopK(best.indices, best.values))
        for row, value in zip(best.values.exp().tolist(), found.tolist(), strict=True):
            parts = [p for p in (*row, 1 - sum(row)) if p > 1e-12]
            assert value == pytest.approx(-sum(p * math.log(p) for p in parts))
        assert (found <= exact + 1e-12).all()
        assert (found >= before - 1e-12).all()
        before = found
    torch.testing.assert_close(before, exact)


def test_topk_entropy_of_no_tokens_is_refused():
    with pytest.raises(ShapeError, match="at least one"):
        topk_entropy(None, topk=TopK(torch.zeros(2, 0).long(), torch.zeros(2, 0)))


def test_pmi_is_what_the_context_adds_to_the_frequency():
    logits, targets = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0])
    counts = torch.tensor([3, 6, 0])
    assert pmi(logits, targets, counts=counts).item() == pytest.approx(math.log(0.5 / (4 / 12)))
    half = pmi(logits, targets, counts=counts, smoothing=0.5)
    assert half.item() == pytest.approx(math.log(0.5 / (3.5 / 10.5)))
    with pytest.raises(ShapeError, match=r"counts must be \[3\]"):
        pmi(logits, targets, counts=counts[:2])


def test_what_a_signal_needs_is_given_to_it_by_name():
    logits, targets = problem()
    other = problem(1)[0]
    given = {"reference": other, "counts": torch.ones(13)}
    torch.testing.assert_close(
        measured("divergence", logits, targets, **given), divergence(logits, reference=other)
    )
    assert torch.equal(measured("rank", logits, targets, **given), rank(logits, targets))
    with pytest.raises(InputError, match="topk-entropy needs topk"):
        measured("topk-entropy", logits, targets, **given)
    with pytest.raises(InputError, match=r"'refrence'.*must be one of 'reference'"):
        signal("mine", needs=("refrence",))(entropy)
    assert "mine" not in signal.names()


def test_wrong_inputs_say_what_is_wrong():
    logits, targets = problem()
    with pytest.raises(ShapeError, match=r"\[N, V\]"):
        entropy(logits[None])
    with pytest.raises(ShapeError, match="one per row"):
        surprisal(logits, targets[:3])
    with pytest.raises(InputError, match="target 13"):
        rank(logits, targets.clone().fill_(13))
    with pytest.raises(VocabularyError, match="12 and 13"):
        divergence(logits, reference=logits[:, :12])
    with pytest.raises(ShapeError, match="9 positions"):
        divergence(logits, reference=logits[:3])
    with pytest.raises(ShapeError, match="two tokens"):
        margin(logits[:, :1])
