"""The three losses by hand, the projection, the weights, and what answers the attack."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.measure.audit.verbosity import (
    Generated,
    Read,
    TemporalWeights,
    eos_delay_loss,
    hidden_diversity_loss,
    length_anomaly,
    length_cap,
    length_stress_test,
    uniformity_loss,
)


def test_flat_distributions_have_no_uniformity_loss():
    assert float(uniformity_loss(torch.full((5, 7), 2.5))) == pytest.approx(0, abs=1e-5)
    skewed = torch.tensor([[0.9, 0.1]]).log()
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert by_hand == pytest.approx(0.5108, abs=1e-4)
    assert float(uniformity_loss(skewed)) == pytest.approx(by_hand, abs=1e-6)
    assert float(uniformity_loss(skewed.repeat(3, 1))) == pytest.approx(3 * by_hand, abs=1e-5)


def test_the_end_loss_and_its_gradient():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    eos_delay_loss(logits, 2).backward()
    logits, slope = logits.detach(), logits.grad
    p = logits.softmax(-1)[:, 2]
    torch.testing.assert_close(slope[:, 2], p * (1 - p) / 6)
    without = logits.clone()
    without[:, 2] = -math.inf
    assert float(eos_delay_loss(without, 2)) == 0
    assert float(eos_delay_loss(without, [])) == 0
    both = logits.softmax(-1)[:, [1, 2]].sum(-1).mean()
    assert float(eos_delay_loss(logits, [1, 2])) == pytest.approx(float(both))


def test_diversity_is_minus_the_nuclear_norm():
    assert float(hidden_diversity_loss([torch.eye(4)[:3]])) == pytest.approx(-3)
    alike = torch.tensor([[0.6, 0.8, 0.0]]).repeat(5, 1)
    assert float(hidden_diversity_loss([alike])) == pytest.approx(-math.sqrt(5), rel=1e-5)
    layers = [torch.eye(4)[:2], -torch.eye(4)[2:]]  # signs do not count, layers are stacked
    assert float(hidden_diversity_loss(layers)) == pytest.approx(-4)
    states = torch.eye(4).requires_grad_()
    hidden_diversity_loss([states]).backward()  # equal singular values
    assert states.grad.isfinite().all()


def test_masked_positions_count_nowhere_and_rows_are_apart():
    draw = torch.Generator().manual_seed(1)
    logits, states = torch.randn(2, 4, 6, generator=draw), torch.randn(2, 4, 3, generator=draw)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    for loss in (
        lambda z, h, m: eos_delay_loss(z, 1, m),
        lambda z, h, m: uniformity_loss(z, m),
        lambda z, h, m: hidden_diversity_loss([h, 2 * h], m),
    ):
        both = loss(logits, states, mask)
        assert both.shape == (2,)
        torch.testing.assert_close(both[0], loss(logits[0, :2], states[0, :2], None))
        torch.testing.assert_close(both[1], loss(logits[1], states[1], None))
        assert torch.isfinite(loss(logits, states, torch.zeros_like(mask))).all()
    with pytest.raises(ShapeError, match="mask"):
        uniformity_loss(logits, mask[0])


def test_the_weights_balance_and_stay_finite_where_the_rate_changes_sign():
    weights = TemporalWeights()
    unc, eos, div = torch.tensor([30.0]), torch.tensor([0.2]), torch.tensor([-12.0])
    first = weights.step(1, unc, eos, div)
    assert float(first[0]) == pytest.approx(30 / (0.2 * 20))
    assert float(first[1]) == pytest.approx(30 / 12)
    second = weights.step(2, unc, eos, div)
    raw = 30 / (0.2 * abs(10 * math.log(2) - 20))
    assert float(second[0]) == pytest.approx(0.9 * 7.5 + 0.1 * raw, rel=1e-5)
    for t in range(3, 40):
        for value in weights.step(t, unc, eos, div):
            assert value.isfinite().all()
            assert (value > 0).all()
    fresh = TemporalWeights()
    assert all(v.isfinite().all() for v in fresh.step(1, unc, torch.zeros(1), torch.zeros(1)))


class Reader:
    """A model whose logits are a linear map of the input; its texts are as long as the input says.

    lengths: 1 + the number of input entries above 0.
    """

    def __init__(self, size=5, vocabulary=6):
        self.map = torch.randn(size, 3 * vocabulary, generator=torch.Generator().manual_seed(0))
        self.inputs = []

    def generate(self, x):
        self.inputs.append(x.detach().clone())
        lengths = 1 + (x > 0).sum(-1)
        return Generated(torch.zeros(len(x), 3, dtype=torch.long), lengths)

    def forward(self, x, texts):
        logits = (x @ self.map).view(len(x), 3, -1)
        return Read(logits, (logits, logits**2), torch.ones(len(x), 3, dtype=torch.bool))


@pytest.mark.parametrize("losses", [(), ("eos",), ("uniformity", "eos", "diversity")])
def test_every_step_stays_in_the_ball_and_in_the_range(losses):
    model, x = Reader(), torch.linspace(0, 1, 10).view(2, 5)
    found = length_stress_test(
        model.generate, model.forward, x, 0, eps=0.3, alpha=0.07, steps=12, losses=losses,
        low=0.0, high=1.0,
    )  # fmt: skip
    assert len(model.inputs) == 13
    for seen in model.inputs:
        assert float((seen - x).abs().max()) <= 0.3 + 1e-6
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 1
    assert found.history.shape == (13, 2)
    assert torch.equal(found.lengths, found.history.amax(0))
    torch.testing.assert_close(x + found.last, model.inputs[-1])
    assert torch.equal(model.generate(x + found.delta).lengths, found.lengths)


def test_a_step_is_the_sign_of_the_gradient_with_the_weights_held():
    model, x = Reader(), torch.zeros(1, 5)
    length_stress_test(
        model.generate, model.forward, x, 0, eps=10.0, alpha=0.01, steps=1,
        start=torch.full((1, 5), 0.5),
    )  # fmt: skip
    at = torch.full((1, 5), 0.5).requires_grad_()
    read = model.forward(at, None)
    parts = uniformity_loss(read.logits), eos_delay_loss(read.logits, 0)
    parts = (*parts, hidden_diversity_loss(read.hidden_states))
    on_eos, on_diversity = (float(w) for w in TemporalWeights().step(1, *parts))
    (parts[0] + on_eos * parts[1] + on_diversity * parts[2]).sum().backward()
    torch.testing.assert_close(model.inputs[1], 0.5 - 0.01 * at.grad.sign())


def test_each_loss_alone_goes_down():
    model, x = Reader(), torch.full((2, 5), 0.1)
    measures = {
        "uniformity": lambda read: uniformity_loss(read.logits),
        "eos": lambda read: eos_delay_loss(read.logits, 0),
        "diversity": lambda read: hidden_diversity_loss(read.hidden_states),
    }
    for name, measure in measures.items():
        model.inputs.clear()
        length_stress_test(
            model.generate, model.forward, x, 0, eps=0.2, alpha=0.01, steps=15, losses=(name,),
            start=torch.zeros_like(x),
        )  # fmt: skip
        before, after = (measure(model.forward(model.inputs[i], None)) for i in (0, -1))
        assert (after < before).all()


def test_texts_can_be_kept_for_several_steps():
    model, x = Reader(), torch.zeros(1, 5)
    found = length_stress_test(
        model.generate, model.forward, x, 0, eps=1.0, alpha=0.1, steps=7, regenerate_every=3
    )
    assert len(model.inputs) == 1 + 3  # steps 3 and 6, and the last one
    assert found.history.shape == (8, 1)
    with pytest.raises(InputError, match="unknown losses"):
        length_stress_test(model.generate, model.forward, x, 0, losses=("speed",))


def test_the_anomaly_score_by_hand():
    score = length_anomaly(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([0.1, 0.3, 0.0]))
    assert float(score) == pytest.approx(13 / 3 - math.log(0.4 / 3))
    masked = length_anomaly(
        torch.tensor([[1.0, 3.0, 9.0]]),
        torch.tensor([[0.1, 0.3, 0.0]]),
        torch.tensor([[True, True, False]]),
    )
    assert float(masked) == pytest.approx(2 - math.log(0.2))
    assert length_anomaly(torch.zeros(2), torch.zeros(2)).isfinite()
    with pytest.raises(ShapeError, match="one shape"):
        length_anomaly(torch.zeros(2), torch.zeros(3))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.floats(50, 100))
def test_the_cap_covers_its_percentile(lengths, percentile):
    cap = length_cap(lengths, percentile)
    assert sum(length <= cap for length in lengths) >= percentile / 100 * len(lengths) - 1
    assert cap in lengths


def test_the_cap_needs_lengths():
    assert length_cap(range(1, 1001)) == 996
    with pytest.raises(InputError, match="at least one clean length"):
        length_cap([])


@pytest.mark.parametrize("start", [None, torch.zeros(2, 3)])
def test_inputs_may_lie_on_another_device_than_lengths_and_noise(start):
    """On "meta" tensors have no numbers; one of the CPU among them is an error, as on a GPU."""
    x = torch.zeros(2, 3, device="meta")
    counts = iter(range(1, 9))

    class Texts:
        def __init__(self):
            self.lengths = torch.full((2,), next(counts))

    found = length_stress_test(
        lambda x: Texts(), lambda x, texts: None, x, 0, steps=3, losses=(), low=0.0, start=start
    )
    assert found.delta.device == found.last.device == x.device
    assert found.lengths.tolist() == [4, 4]
