import pytest
import torch

pytest.importorskip("sklearn")

from tokenry.core.errors import ShapeError
from tokenry.lab.digits import TinyViT, accuracy, components, frechet, vit
from tokenry.tasks.worlds.digits import Digits

WORLD = Digits()


def test_the_distance_is_zero_for_the_same_images_and_symmetric():
    one, other = WORLD.images[:300], WORLD.images[300:600]
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, other) == pytest.approx(frechet(other, one), abs=1e-9)
    noisy = (
        other + 0.5 * torch.rand(other.shape, generator=torch.Generator().manual_seed(0))
    ) / 1.5
    assert frechet(one, noisy) > 5 * frechet(one, other)


def test_the_distance_of_shifted_and_scaled_sets_is_the_closed_form():
    """Along one axis with spread s: a shift d gives d^2, a factor k gives (k - 1)^2 s^2."""
    mean, axes = components()
    points = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def images(factor, shift):
        return (mean + (factor * points + shift)[:, None] * axes[:, 0]).view(-1, 8, 8)

    variance, centre = float(points.var()), float(points.mean())
    assert frechet(images(1, 0), images(1, 2)) == pytest.approx(4)
    expected = variance + centre**2  # factor 2: (2 - 1)^2 of both
    assert frechet(images(1, 0), images(2, 0)) == pytest.approx(expected)


def test_patches_are_tokens_row_by_row():
    model = TinyViT(size=8, patch=4).eval()
    model.blocks = torch.nn.Identity()  # tokens do not mix
    image = torch.zeros(1, 8, 8)
    image[0, :4, 4:] = 1.0  # the second patch
    tokens, blank = model.tokens(image), model.tokens(torch.zeros(1, 8, 8))
    assert [not torch.allclose(a, b) for a, b in zip(tokens[0], blank[0], strict=True)] == [
        False, True, False, False,
    ]  # fmt: skip
    with pytest.raises(ShapeError):
        TinyViT(size=9)


def test_the_encoder_reads_digits_it_has_not_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    vit.cache_clear()
    assert accuracy(WORLD.test_images, WORLD.test_labels, vit(steps=200)) > 0.85
    assert not next(vit(steps=200).parameters()).requires_grad
    vit.cache_clear()


def test_too_few_images_are_refused():
    with pytest.raises(ShapeError):
        frechet(WORLD.images[:1], WORLD.images)
