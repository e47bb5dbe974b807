import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.core.signals import entropy
from tokenry.decode.routing.entropy import EntropyRouter


def test_the_entropy_is_compared_with_the_threshold_in_nats():
    coin, die = torch.zeros(1, 2), torch.zeros(1, 6)
    for threshold, asked in ((0.6, (True, True)), (1.0, (False, True)), (1.8, (False, False))):
        router = EntropyRouter(threshold)
        assert (bool(router(coin)), bool(router(die))) == asked
    assert EntropyRouter() == EntropyRouter(1.0)
    assert not EntropyRouter(math.inf)(die)


def test_a_share_of_tokens_is_asked_for():
    logits = torch.randn(400, 9, generator=torch.Generator().manual_seed(0)) * 2
    for share in (0.0, 0.25, 0.9):
        router = EntropyRouter.of_share(entropy(logits), share)
        assert float(router(logits).float().mean()) == pytest.approx(share, abs=0.01)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="threshold"):
        EntropyRouter(-0.1)
    with pytest.raises(InputError, match="share"):
        EntropyRouter.of_share(torch.ones(3), 1.1)
