"""Every signal: one number for each row, of that row's distribution alone, whatever it needs."""

import pytest
import torch

from role_cases import cases
from tokenry.core.errors import ShapeError
from tokenry.core.signals import TopK, measured, signal

V = 11
EACH = pytest.mark.parametrize("made", cases(signal, lambda function: function))


def problem(n=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, V, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(V, (n,), generator=generator)


def value(made, logits, targets, reference=None):
    """The signal with everything that there is, made of the logits."""
    (key,) = (entry.key for entry in signal if entry.value is made())
    if reference is None:
        reference = logits.roll(1, dims=-1)
    best = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).topk(4)
    counts = torch.arange(V) + 1
    return measured(
        key,
        logits,
        targets,
        reference=reference,
        counts=counts,
        topk=TopK(best.indices, best.values),
    )


@EACH
def test_one_number_for_each_row(made):
    logits, targets = problem()
    before = logits.clone()
    found = value(made, logits, targets)
    assert found.shape == (7,)
    assert torch.isfinite(found).all()
    assert torch.equal(logits, before)
    assert value(made, logits[:0], targets[:0]).shape == (0,)


@EACH
def test_a_row_counts_for_itself(made):
    logits, targets = problem()
    order = torch.tensor([3, 0, 6, 1, 1])
    together = value(made, logits, targets)
    assert len(together.unique()) > 1
    torch.testing.assert_close(value(made, logits[order], targets[order]), together[order])


@EACH
def test_it_is_of_the_distribution_not_of_the_logits(made):
    logits, targets = problem()
    torch.testing.assert_close(
        value(made, logits + 5.0, targets), value(made, logits, targets), rtol=1e-9, atol=1e-9
    )


@EACH
def test_half_precision_is_computed_in_float32(made):
    logits, targets = problem(dtype=torch.bfloat16)
    found = value(made, logits, targets)
    assert found.dtype in (torch.float32, torch.long)
    torch.testing.assert_close(found, value(made, logits.float(), targets))


@EACH
def test_only_rows_of_logits_are_taken(made):
    logits, targets = problem()
    (entry,) = (entry for entry in signal if entry.value is made())
    if "topk" in entry.needs:
        pytest.skip("takes no logits")
    with pytest.raises(ShapeError):
        value(made, logits[None], targets, reference=logits[None])
