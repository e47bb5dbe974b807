import math

import pytest
import torch
from torch import nn

from tokenry.core.errors import InputError, NonFiniteError
from tokenry.learn.fit import Checkpoint, cosine, fit, linear, only_trainable


def noisy_line(model):
    """A regression whose batches come from the generator."""

    def loss(step, generator):
        x = torch.randn(4, 3, generator=generator)
        return (model(x)[:, 0] - x.sum(-1)).square().mean()

    return loss


def fresh(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def test_the_first_step_of_sgd_is_the_gradient_by_hand():
    weight = torch.tensor([2.0], requires_grad=True)
    losses = fit(
        lambda *_: (weight**2).sum(),
        [weight],
        steps=2,
        learning_rate=0.1,
        clip=None,
        optimizer=torch.optim.SGD,
    )
    assert losses == pytest.approx([4.0, 1.6**2])
    assert weight.item() == pytest.approx(1.6 - 0.1 * 2 * 1.6)


def test_clipping_bounds_the_norm_over_all_weights_together():
    one, two = (torch.zeros(1, requires_grad=True) for _ in range(2))
    fit(
        lambda *_: 30 * one.sum() + 40 * two.sum(),
        [one, two],
        steps=1,
        learning_rate=1.0,
        optimizer=torch.optim.SGD,
        clip=1.0,
    )
    assert (one.item(), two.item()) == pytest.approx((-0.6, -0.8), abs=1e-5)


def test_an_interrupted_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path):
    whole, parts = fresh(), fresh()
    options = {"steps": 9, "seed": 3, "schedule": linear(0.3), "learning_rate": 0.05}
    losses = fit(noisy_line(whole), whole, **options)
    saved = Checkpoint(tmp_path / "run.pt", every=4)
    fit(noisy_line(parts), parts, checkpoint=saved, observe=lambda done, _: done == 6, **options)
    parts = fresh(1)  # what the file holds decides, not what stood in memory
    rest = fit(noisy_line(parts), parts, checkpoint=saved, **options)
    assert rest == losses[4:]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
    )


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    saved = Checkpoint(tmp_path / "run.pt")
    model = fresh()
    fit(noisy_line(model), model, steps=1, checkpoint=saved)
    other = nn.Linear(2, 1)
    with pytest.raises(InputError, match="cannot go on"):
        fit(lambda *_: other.weight.sum(), other, steps=2, checkpoint=saved)


def rates(schedule, steps):
    weight = torch.zeros(1, requires_grad=True)
    seen = []

    class Watch(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    fit(
        lambda *_: weight.sum(),
        [weight],
        steps=steps,
        learning_rate=1.0,
        schedule=schedule,
        optimizer=Watch,
    )
    return seen


def test_schedules_are_their_equations():
    assert rates(linear(), 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(linear(decay=0.5), 4) == pytest.approx([1, 1, 1, 0.5])
    assert rates(linear(warmup=0.5), 4) == pytest.approx([0.5, 1, 1, 0.5])
    assert rates(cosine(0.1, warmup=2), 4) == pytest.approx([0.5, 1, 1, 0.55])
    assert rates(None, 2) == [1, 1]


def test_a_loss_that_is_not_finite_stops_before_the_update():
    weight = torch.tensor([1.0], requires_grad=True)
    with pytest.raises(NonFiniteError, match="in step 3: the loss is nan"):
        fit(
            lambda step, _: weight.sum() * (math.nan if step == 2 else 1),
            [weight],
            steps=5,
            learning_rate=0.1,
            optimizer=torch.optim.SGD,
        )
    assert weight.item() == pytest.approx(0.8)


def test_observers_see_each_interval_and_the_end_and_may_stop():
    weight = torch.zeros(1, requires_grad=True)
    seen = []
    fit(
        lambda *_: weight.sum(),
        [weight],
        steps=5,
        observe=lambda done, _: seen.append(done),
        every=2,
    )
    assert seen == [2, 4, 5]
    losses = fit(lambda *_: weight.sum(), [weight], steps=5, observe=lambda done, _: done >= 3)
    assert len(losses) == 3


def test_groups_keep_their_own_rates_and_a_shared_tensor_moves_once():
    one, two = (torch.zeros(1, requires_grad=True) for _ in range(2))
    groups = [{"params": [one, one], "lr": 0.5}, {"params": [two, one]}]
    fit(
        lambda *_: one.sum() + two.sum(),
        groups,
        steps=1,
        learning_rate=0.1,
        clip=None,
        optimizer=torch.optim.SGD,
    )
    assert (one.item(), two.item()) == pytest.approx((-0.5, -0.1))


def test_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="none requires"):
        fit(lambda *_: torch.zeros(()), nn.Linear(1, 1).requires_grad_(False), steps=1)


@pytest.mark.parametrize("bad", [{"steps": -1}, {"learning_rate": math.nan}, {"clip": 0.0}])
def test_settings_out_of_range_are_refused(bad):
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(InputError):
        fit(lambda *_: weight.sum(), [weight], **{"steps": 1, **bad})


def test_gradients_are_only_where_they_were_asked_for_and_the_flags_come_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    with only_trainable(model, model[0].parameters()):
        model(torch.ones(1, 2)).sum().backward()
    assert model[1].weight.grad is None
    assert model[0].bias.grad is None
    assert model[0].weight.grad is not None
    assert [w.requires_grad for w in model.parameters()] == [True, False, True, True]


def test_summands_are_differentiated_one_by_one_and_make_the_step_of_their_sum():
    def loss(model, generator):
        x = torch.randn(4, 3, generator=generator)
        return (model(x)[:, 0] - x.sum(-1)).square() / 4

    whole, parts = fresh(), fresh()

    def piecewise(step, generator):
        x = torch.randn(4, 3, generator=generator)
        for row in x:
            yield (parts(row) - row.sum()).square().sum() / 4

    one = fit(lambda _, generator: loss(whole, generator).sum(), whole, steps=5, clip=0.5)
    other = fit(piecewise, parts, steps=5, clip=0.5)
    assert one == pytest.approx(other, rel=1e-6)
    torch.testing.assert_close(whole.weight, parts.weight)


def test_each_summand_is_differentiated_before_the_next_is_asked_for():
    weight = torch.tensor([2.0], requires_grad=True)
    seen = []

    def loss(step, generator):
        for factor in (1.0, 3.0):
            seen.append(None if weight.grad is None else weight.grad.item())
            yield factor * weight.sum()

    assert fit(loss, [weight], steps=1, clip=None) == [8.0]
    assert seen == [None, 1.0]


def test_a_step_without_summands_moves_nothing_not_even_by_momentum():
    weight = torch.tensor([2.0], requires_grad=True)
    after = []
    losses = fit(
        lambda step, _: [] if step == 1 else [(weight**2).sum()],
        [weight],
        steps=3,
        learning_rate=0.1,
        observe=lambda *_: after.append(weight.item()),
    )
    assert losses[1] == 0.0
    assert after[0] == after[1] != after[2]


def test_a_summand_that_is_not_finite_leaves_the_weights_of_before():
    weight = torch.tensor([2.0], requires_grad=True)
    with pytest.raises(NonFiniteError):
        fit(lambda *_: (weight.sum() * x for x in (1.0, math.nan)), [weight], steps=1)
    assert weight.item() == 2.0
