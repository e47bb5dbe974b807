import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.model.layers.token_shift import TokenShift


def test_every_token_is_mixed_with_the_one_before():
    layer = TokenShift(2)
    with torch.no_grad():
        layer.mu.copy_(torch.tensor([0.25, 1.0]))
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    wanted = torch.tensor([[[0.25, 2.0], [0.25 * 3 + 0.75 * 1, 4.0], [0.25 * 5 + 0.75 * 3, 6.0]]])
    torch.testing.assert_close(layer(x), wanted)


def test_half_of_each_at_first():
    assert TokenShift(3).mu.tolist() == [0.5] * 3
    assert TokenShift(3, mu=1.0)(torch.ones(1, 2, 3)).tolist() == torch.ones(1, 2, 3).tolist()
    with pytest.raises(InputError, match="mu"):
        TokenShift(3, mu=1.1)
