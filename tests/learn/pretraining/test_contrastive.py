"""Contrastive losses against loops, and against SimCLR's cross-entropy."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.pretraining.contrastive import contrast, sup_con_loss


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(features, labels, temperature):
    unit = normalize(features, dim=-1)
    views = [(n, v) for n in range(len(unit)) for v in range(unit.shape[1])]
    total = 0.0
    for n, v in views:
        terms = {
            other: math.exp(float(unit[n, v] @ unit[other]) / temperature)
            for other in views
            if other != (n, v)
        }
        inside = [term for (m, _), term in terms.items() if labels[m] == labels[n]]
        total -= sum(math.log(term / sum(terms.values())) for term in inside) / len(inside)
    return total / len(views)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_it_is_the_equation(views, temperature):
    features, labels = drawn(5, views, 4), torch.tensor([0, 1, 0, 2, 0])
    expected = by_loops(features, labels, temperature)
    loss = sup_con_loss(features, labels, temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(sup_con_loss(3 * features, labels, temperature), loss)


def test_a_class_for_each_sample_is_simclr():
    features = drawn(6, 2, 4)
    flat = normalize(torch.cat([features[:, 0], features[:, 1]]), dim=-1)
    logits = (flat @ flat.T / 0.1).fill_diagonal_(-torch.inf)
    wanted = cross_entropy(logits, torch.arange(12).roll(6))
    torch.testing.assert_close(sup_con_loss(features, torch.arange(6)), wanted)


def test_contrast_of_nothing_is_0_and_of_equals_a_logarithm():
    logits = torch.zeros(3, 3, requires_grad=True)
    others = ~torch.eye(3, dtype=torch.bool)
    positives = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    loss = contrast(logits, positives, others)
    torch.testing.assert_close(loss, torch.tensor([math.log(2), math.log(2), 0.0]))
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 3)])
def test_one_view_is_refused(shape):
    with pytest.raises(ShapeError):
        sup_con_loss(torch.ones(shape), torch.zeros(4))


def test_other_errors():
    with pytest.raises(ShapeError):
        sup_con_loss(torch.ones(4, 2, 3), torch.zeros(3))
    with pytest.raises(InputError):
        sup_con_loss(torch.ones(4, 2, 3), torch.zeros(4), 0.0)
