"""Every quantizer: ids of its codebook, vectors of its codes, gradients to the encoder."""

import pytest
import torch

from role_cases import cases
from tokenry.codecs.quantize.base import quantizer
from tokenry.core.errors import ShapeError

B, N = 4, 50
EACH = pytest.mark.parametrize("made", cases(quantizer))


def vectors(dim, seed=0):
    return 1.5 * torch.randn(B, N, dim, generator=torch.Generator().manual_seed(seed))


@EACH
def test_z_is_what_its_id_decodes_to(made):
    one = made()
    found = one(vectors(one.dim))
    assert found.ids.shape == (B, N)
    assert found.ids.dtype == torch.long
    assert found.ids.min() >= 0
    assert found.ids.max() < one.size
    assert len(found.ids.unique()) > 1
    torch.testing.assert_close(found.z, one.decode(found.ids).to(found.z))
    for name, loss in found.losses.items():
        assert loss.ndim == 0, name
        assert torch.isfinite(loss), name


@EACH
def test_every_id_has_a_code_of_its_own(made):
    one = made()
    codes = one.decode(torch.arange(one.size))
    assert codes.shape == (one.size, one.dim)
    assert torch.isfinite(codes).all()
    assert len(codes.unique(dim=0)) == one.size


@EACH
def test_gradients_go_straight_through(made):
    one = made()
    z = vectors(one.dim).requires_grad_()
    found = one(z)
    found.z.square().sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert (z.grad.abs().sum((0, 1)) > 0).all()


@EACH
def test_positions_outside_the_mask_do_not_matter(made):
    one = made()
    z = vectors(one.dim)
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1, 20:] = mask[2, :5] = False
    spoiled = torch.where(mask[..., None], z, torch.nan)
    found, clean = one(spoiled, mask), one(z)
    assert torch.equal(found.ids[mask], clean.ids[mask])
    torch.testing.assert_close(found.z[mask], clean.z[mask])
    assert (found.ids[~mask] == 0).all()
    assert (found.z[~mask] == 0).all()
    assert all(torch.isfinite(loss) for loss in found.losses.values())


@EACH
def test_near_vectors_have_one_id_and_half_precision_keeps_its_type(made):
    one = made()
    z = vectors(one.dim)
    assert (one(z).ids == one(z + 1e-6).ids).float().mean() > 0.99
    half = one(z.bfloat16())
    assert half.z.dtype == torch.bfloat16
    assert (half.ids == one(z.bfloat16().float()).ids).all()


@EACH
def test_vectors_of_another_size_are_refused(made):
    one = made()
    with pytest.raises(ShapeError):
        one(torch.zeros(B, N, one.dim + 1))
