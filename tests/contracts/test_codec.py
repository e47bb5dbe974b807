"""Every codec: there and back within its budget, better with more tokens, the same after loading.

An example is a codec of images [B, S, S] in [0, 1] unless it brings `things`, what it is made for.
"""

import pytest
import torch

from role_cases import cases
from tokenry.codecs.base import codec
from tokenry.core.errors import TokenryError
from tokenry.tasks.worlds.digits import Digits

EACH = pytest.mark.parametrize("made", cases(codec))


@pytest.fixture(scope="module")
def things():
    return Digits().draw(12, torch.Generator().manual_seed(0))[0]


def error(one, x, budget=None):
    return float((one.decode(one.encode(x, budget)) - x).square().mean())


@EACH
def test_there_and_back(made, things):
    one = made()
    tokens = one.encode(things)
    assert tokens.ids.dtype == torch.long
    assert tokens.ids[tokens.mask].min() >= 0
    assert tokens.ids[tokens.mask].max() < one.size
    back = one.decode(tokens)
    assert back.shape == things.shape
    assert torch.isfinite(back).all()
    # nearer than the best that ignores what it is given
    assert error(one, things) < 0.5 * float((things - things.mean(0)).square().mean())


@EACH
def test_more_tokens_are_never_worse_and_a_budget_is_kept(made, things):
    one = made()
    most = int(one.encode(things).mask.sum(-1).max())
    errors = []
    for budget in range(1, most + 2):
        tokens = one.encode(things, budget)
        assert tokens.mask.sum(-1).max() <= budget
        errors.append(error(one, things, budget))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == error(one, things) < errors[0]


@EACH
def test_a_thing_is_encoded_by_itself(made, things):
    one = made()
    tokens = one.encode(things)
    alone = one.encode(things[3:4])
    count = int(alone.mask.sum())
    assert torch.equal(alone.ids[0, :count], tokens.ids[3, :count])
    torch.testing.assert_close(one.decode(alone), one.decode(tokens)[3:4])


@EACH
def test_what_is_saved_is_the_same_codec(made, things, tmp_path):
    one = made()
    one.save(tmp_path / "codec.safetensors")
    again = type(one).load(tmp_path / "codec.safetensors")
    assert again.size == one.size
    tokens = one.encode(things)
    assert torch.equal(again.encode(things).ids, tokens.ids)
    assert torch.equal(again.decode(tokens), one.decode(tokens))
    (tmp_path / "other").write_text("no codec")
    with pytest.raises(TokenryError):
        type(one).load(tmp_path / "other")


@EACH
def test_no_token_is_no_budget(made, things):
    with pytest.raises(TokenryError):
        made().encode(things, 0)
