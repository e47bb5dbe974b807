"""Every layer: causality as it says, padding without a trace, dtypes, gradients, save and load."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from role_cases import cases
from tokenry.model.layers.base import layer

B, T, D = 3, 7, 8
EACH = pytest.mark.parametrize("made", cases(layer, lambda kind: kind))


def build(made, seed=0):
    """A layer with weights that do something."""
    torch.manual_seed(seed)
    module = made()(D).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    return module


def states(length=T, seed=1):
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(seed))


@EACH
def test_shape_and_dtype_are_the_inputs(made):
    module, x = build(made), states()
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    half = module(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, rtol=0.05, atol=0.05)
    torch.testing.assert_close(module(x, torch.ones(B, T, dtype=torch.bool)), y)
    assert not torch.allclose(y, x)


@EACH
def test_a_causal_layer_does_not_see_what_comes(made):
    module, x = build(made), states()
    changed = x.clone()
    changed[:, 4:] = states(seed=2)[:, 4:]
    before, after = module(x), module(changed)
    assert torch.equal(before[:, :4], after[:, :4]) == bool(module.causal)
    assert not torch.equal(before[:, 4:], after[:, 4:])


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_whatever_it_holds(made, side):
    module, x = build(made), states()
    expected = module(x, torch.ones(B, T, dtype=torch.bool))
    for filler in (0.0, 1e4, torch.nan):
        extra = torch.full((B, 3, D), filler)
        mask = torch.ones(B, T, dtype=torch.bool)
        off = torch.zeros(B, 3, dtype=torch.bool)
        parts = ([extra, x], [off, mask]) if side == "left" else ([x, extra], [mask, off])
        padded, real = torch.cat(parts[0], 1), torch.cat(parts[1], 1)
        found = module(padded, real)
        torch.testing.assert_close(found[real].view(B, T, D), expected)
        assert (found[~real] == 0).all()


@EACH
def test_a_row_counts_for_itself(made):
    module, x = build(made), states()
    torch.testing.assert_close(module(x[1:2]), module(x)[1:2])


@EACH
def test_gradients_reach_the_input_and_every_weight(made):
    module, x = build(made), states().requires_grad_()
    module(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0, name


@EACH
def test_the_state_dict_is_all_there_is_to_save(made, tmp_path):
    module, other, x = build(made), build(made, seed=5), states()
    assert not torch.equal(module(x), other(x))
    save_file(module.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(module(x), other(x))
