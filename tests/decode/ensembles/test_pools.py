import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.ensembles.pools import Mixture, Product

P = torch.tensor([[[0.5, 0.5, 0.0]], [[0.2, 0.3, 0.5]]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.25, 0.75], dtype=torch.float64)


def test_a_mixture_is_the_mean_of_the_probabilities():
    found = Mixture()(P.log(), WEIGHTS).exp()
    torch.testing.assert_close(found, (WEIGHTS[:, None, None] * P).sum(0))


def test_a_product_is_the_mean_of_the_logarithms_normalised():
    found = Product()(P.log(), WEIGHTS).exp()[0]
    raw = torch.tensor([0.5**0.25 * 0.2**0.75, 0.5**0.25 * 0.3**0.75, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found, raw / raw.sum())


def test_the_product_is_nearest_to_all_models_in_mean_divergence():
    models = (
        torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    )
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def cost(logprob):
        return float(
            (weights[:, None] * (logprob.exp() * (logprob - models[:, 0])).sum(-1)[:, None]).sum()
        )

    best = Product()(models, weights)[0]
    for seed in range(20):
        noise = 0.1 * torch.randn(5, generator=torch.Generator().manual_seed(seed)).double()
        assert cost(best) <= cost((best + noise).log_softmax(-1)) + 1e-12


def test_models_without_a_common_token_have_no_product():
    apart = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
    with pytest.raises(InputError, match="no possible token in common"):
        Product()(apart)
    torch.testing.assert_close(Mixture()(apart).exp(), torch.full((1, 2), 0.5))
