import pytest
import torch

from tokenry.codecs.base import CodecTokens
from tokenry.codecs.image.patches import PatchCodec
from tokenry.core.errors import InputError, ShapeError


def images(count=5, side=8):
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(0))


def test_one_token_for_each_patch_row_by_row():
    codec = PatchCodec()
    assert codec.size == 9 * 7 * 7
    assert codec.encode(images()).ids.shape == (5, 16)
    image = torch.zeros(1, 8, 8)
    image[0, :2, 2:4] = 1.0  # the second patch
    ids = codec.encode(image).ids[0]
    assert ids.ne(ids[0]).nonzero()[:, 0].tolist() == [1]
    torch.testing.assert_close(codec.decode(codec.encode(image)), image)


def test_black_grey_and_white_are_exact():
    codec = PatchCodec()
    for value in (0.0, 0.5, 1.0, 0.25):
        image = torch.full((1, 8, 8), value)
        torch.testing.assert_close(codec.decode(codec.encode(image)), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("budget", "tokens"), [(1, 1), (3, 1), (4, 4), (15, 4), (16, 16), (99, 16)]
)
def test_a_budget_takes_the_smallest_patches_that_fit(budget, tokens):
    assert PatchCodec().encode(images(), budget).ids.shape == (5, tokens)


def test_many_levels_and_all_waves_are_lossless():
    codec = PatchCodec(side=4, patch=2, levels=(4095,) * 4)
    found = codec.decode(codec.encode(images(side=4)))
    torch.testing.assert_close(found, images(side=4), atol=1e-3, rtol=0)


def test_waves_are_orthonormal_and_slow_ones_first():
    waves, largest = PatchCodec(side=4, patch=4, levels=(9,) * 16)._waves(4)
    flat = waves.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(16))
    varies = [[bool(wave.std(axis).max() > 1e-6) for axis in (0, 1)] for wave in waves[:3]]
    assert varies == [[False, False], [False, True], [True, False]]
    # the largest coefficient is that of the image which is white where the wave is positive
    for wave, most in zip(waves, largest, strict=True):
        assert float(((wave > 0).float() * wave).sum()) == pytest.approx(float(most))


def test_impossible_settings_and_inputs_are_refused():
    for wrong in ({"patch": 3}, {"patch": 1, "levels": (3, 3)}, {"side": 0}):
        with pytest.raises(InputError):
            PatchCodec(**wrong)
    with pytest.raises(ShapeError, match=r"\[B, 8, 8\]"):
        PatchCodec().encode(images(side=4))
    ids = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(ShapeError, match="no square grid"):
        PatchCodec().decode(CodecTokens(ids, ids.bool()))
