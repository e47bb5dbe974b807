"""Every combiner: a distribution of each row, between the models, whatever their order."""

import pytest
import torch

from role_cases import cases
from tokenry.core.errors import TokenryError
from tokenry.decode.ensembles.base import combiner

K, B, V = 3, 4, 6
EACH = pytest.mark.parametrize("made", cases(combiner))
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def models(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, B, V, generator=generator, dtype=torch.float64).log_softmax(-1)


@EACH
def test_it_is_a_distribution_of_each_row(made):
    logprobs = models()
    found = made()(logprobs, WEIGHTS)
    assert found.shape == (B, V)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(B, dtype=torch.float64))
    torch.testing.assert_close(made()(logprobs[:, 1:2], WEIGHTS), found[1:2])


@EACH
def test_equal_models_are_that_model_and_one_alone_too(made):
    logprobs = models()
    same = logprobs[:1].expand(K, B, V)
    torch.testing.assert_close(made()(same, WEIGHTS), logprobs[0])
    torch.testing.assert_close(made()(logprobs[:1]), logprobs[0])
    alone = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(made()(logprobs, alone), logprobs[1])


@EACH
def test_the_order_of_the_models_does_not_matter(made):
    logprobs, order = models(), torch.tensor([2, 0, 1])
    torch.testing.assert_close(made()(logprobs[order], WEIGHTS[order]), made()(logprobs, WEIGHTS))
    third = torch.full((K,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(made()(logprobs), made()(logprobs, third))


@EACH
def test_a_token_impossible_in_all_is_impossible_and_zeros_make_no_nan(made):
    logprobs = models()
    logprobs[:, :, 0] = -torch.inf
    logprobs[1, :, 1] = -torch.inf
    found = made()(logprobs.log_softmax(-1), WEIGHTS)
    assert not found.isnan().any()
    assert (found[:, 0] == -torch.inf).all()
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(B, dtype=torch.float64))
    # a model that does not count cannot forbid anything
    free = made()(logprobs.log_softmax(-1), torch.tensor([0.5, 0.0, 0.5]))
    assert torch.isfinite(free[:, 1:]).all()


@EACH
def test_half_precision_is_combined_in_float32(made):
    logprobs = models().bfloat16()
    found = made()(logprobs, WEIGHTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, made()(logprobs.float(), WEIGHTS))


@EACH
def test_weights_that_are_none_are_refused(made):
    for wrong in ([0.5, 0.5], [0.5, 0.2, 0.2], [1.5, -0.5, 0.0]):
        with pytest.raises(TokenryError):
            made()(models(), torch.tensor(wrong))
    with pytest.raises(TokenryError):
        made()(models()[0], None)
