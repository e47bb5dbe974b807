"""SBCL against loops and the losses that it reduces to; its schedule and settings."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.pretraining.contrastive import sup_con_loss
from tokenry.learn.pretraining.sbcl import SBCL, sbcl_loss
from tokenry.learn.pretraining.subclasses import Subclasses

CLASSES = torch.tensor([0, 0, 0, 0, 1, 1, 2])
PARTS = torch.tensor([0, 0, 1, 2, 3, 3, 4])
TAU2 = torch.tensor([0.15, 0.08, 0.1])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(features, tau1=0.1, gamma=0.25, variant="rank"):
    unit = normalize(features, dim=-1)
    views = [(n, v) for n in range(len(unit)) for v in range(unit.shape[1])]

    def term(anchor, positives, compared, tau):
        power = {o: math.exp(float(unit[anchor] @ unit[o]) / tau) for o in compared}
        return -sum(math.log(power[p] / sum(power.values())) for p in positives) / len(positives)

    total = 0.0
    for anchor in views:
        n = anchor[0]
        others = [o for o in views if o != anchor]
        twins = [o for o in others if o[0] == n]
        cluster = [o for o in others if PARTS[o[0]] == PARTS[n]]
        outside = [o for o in others if PARTS[o[0]] != PARTS[n]]
        of_class = [o for o in others if CLASSES[o[0]] == CLASSES[n]]
        total += term(anchor, cluster, others, tau1)
        if variant == "ccl":
            total += gamma * term(anchor, of_class, others, tau1)
        else:
            wanted = [o for o in outside if o in of_class] + twins
            total += gamma * term(anchor, wanted, outside + twins, float(TAU2[CLASSES[n]]))
    return total / len(views)


@pytest.mark.parametrize("variant", ["rank", "ccl"])
@pytest.mark.parametrize("views", [2, 3])
def test_it_is_the_equation(variant, views):
    features = drawn(7, views, 4)
    loss = sbcl_loss(features, CLASSES, PARTS, TAU2, variant=variant)
    assert float(loss) == pytest.approx(by_loops(features, variant=variant), rel=1e-5)
    made = SBCL(tau1=0.2, gamma=1.5, variant=variant)
    expected = by_loops(features, 0.2, 1.5, variant)
    assert float(made(features, CLASSES, Subclasses(PARTS, TAU2))) == pytest.approx(expected)


def test_it_reduces_to_supcon_to_simclr_and_in_the_warm_up():
    features = drawn(7, 2, 4)
    whole = sbcl_loss(features, CLASSES, CLASSES, TAU2, gamma=0)
    torch.testing.assert_close(whole, sup_con_loss(features, CLASSES))
    alone = sbcl_loss(features, CLASSES, torch.arange(7), TAU2, gamma=0)
    torch.testing.assert_close(alone, sup_con_loss(features, torch.arange(7)))
    torch.testing.assert_close(
        SBCL(tau1=0.3)(features, CLASSES), sup_con_loss(features, CLASSES, 0.3)
    )
    # where nothing is split, "ccl" counts the same term 1 + gamma times
    double = sbcl_loss(features, CLASSES, CLASSES, TAU2, variant="ccl")
    torch.testing.assert_close(double, 1.25 * sup_con_loss(features, CLASSES))


def test_the_hand_case():
    features, one = torch.ones(2, 2, 1), torch.zeros(2, dtype=torch.long)
    loss = sbcl_loss(features, one, one, torch.tensor([0.1]))
    assert float(loss) == pytest.approx(math.log(3))  # three other views; the second term is 0
    apart = sbcl_loss(features, one, torch.tensor([0, 1]), torch.tensor([0.1]))
    assert float(apart) == pytest.approx(1.25 * math.log(3))  # Q and R are all others


def test_names_orders_and_views_do_not_matter():
    features = drawn(7, 2, 4)
    loss = sbcl_loss(features, CLASSES, PARTS, TAU2)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    for given in (
        (features, CLASSES, 9 - PARTS, TAU2),
        (features, 2 - CLASSES, PARTS, TAU2.flip(0)),
        (features[order], CLASSES[order], PARTS[order], TAU2),
        (features.flip(1), CLASSES, PARTS, TAU2),
        (5 * features, CLASSES, PARTS, TAU2),
    ):
        torch.testing.assert_close(sbcl_loss(*given), loss)


def test_gradients():
    features = drawn(4, 2, 3).double().requires_grad_()
    given = (torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 2]), TAU2)
    sbcl_loss(features, *given, tau1=0.5).backward()
    numeric, step = torch.zeros_like(features), 1e-2
    for place in range(features.numel()):
        moved = torch.zeros(features.numel(), dtype=torch.double)
        moved[place] = step
        moved = moved.view_as(features)
        up, down = (sbcl_loss(features.detach() + s * moved, *given, tau1=0.5) for s in (1, -1))
        numeric.view(-1)[place] = (up - down) / (2 * step)
    torch.testing.assert_close(features.grad, numeric, atol=5e-3, rtol=1e-2)
    same = torch.ones(7, 2, 3, requires_grad=True)
    sbcl_loss(same, CLASSES, PARTS, 0.5 * TAU2, tau1=0.05).backward()
    assert torch.isfinite(same.grad).all()


def test_the_schedule():
    assert [epoch for epoch in range(40) if SBCL().splits_before(epoch)] == [10, 20, 30]
    made = SBCL(warmup=0, every=3)
    assert [epoch for epoch in range(8) if made.splits_before(epoch)] == [0, 3, 6]


def test_a_split_uses_its_settings():
    classes, features = torch.tensor([0] * 40 + [1] * 4), drawn(44, 3)
    split = SBCL(delta=5, tau1=0.2).split(features, classes, torch.Generator().manual_seed(0))
    assert len(split.ids.unique()) == 8 + 1
    assert split.temperatures[1] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "wrong",
    [{"tau1": 0}, {"gamma": -1}, {"delta": 0}, {"warmup": -1}, {"every": 0}, {"variant": "kcl"}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        SBCL(**wrong)
    with pytest.raises(ShapeError):
        sbcl_loss(torch.ones(2, 2, 3), torch.zeros(2).long(), torch.zeros(3).long(), TAU2)
