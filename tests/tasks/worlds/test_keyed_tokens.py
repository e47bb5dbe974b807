"""Keyed tokens: sums of embeddings, different keys, and the value that is asked for."""

import torch

from tokenry.tasks.worlds.keyed_tokens import KeyedTokens


def test_without_noise_a_token_is_its_key_plus_its_value():
    world = KeyedTokens(seed=3, keys=10, values=4, width=16, noise=0.0)
    keys, values = world.embeddings
    tokens, question, answer = world.questions(20, 6, torch.Generator().manual_seed(0))
    sums = (keys[:, None] + values).flatten(0, 1)  # [keys * values, width]
    for row in range(20):
        which = torch.cdist(tokens[row], sums).argmin(-1)
        torch.testing.assert_close(sums[which], tokens[row])
        found = dict(divmod(int(place), 4) for place in which)
        assert len(found) == 6  # different keys
        asked = int(torch.cdist(question[row : row + 1], keys).argmin())
        assert found[asked] == int(answer[row])


def test_noise_has_its_length():
    quiet, loud = (KeyedTokens(seed=3, width=64, noise=noise) for noise in (0.0, 0.6))
    (one, *_), (other, *_) = (
        world.questions(50, 8, torch.Generator().manual_seed(0)) for world in (quiet, loud)
    )
    assert abs(float((other - one).norm(dim=-1).square().mean().sqrt()) - 0.6) < 0.02
    assert abs(float(quiet.embeddings[0].norm(dim=-1).mean()) - 1) < 0.05


def test_a_seed_says_all_and_draws_go_on_behind_the_embeddings():
    assert repr(KeyedTokens(1)) == "KeyedTokens(seed=1, keys=256, values=16, width=64, noise=0.6)"
    generator = torch.Generator().manual_seed(1)
    torch.randn(256, 64, generator=generator)
    torch.randn(16, 64, generator=generator)
    assert KeyedTokens(1).generator.get_state().equal(generator.get_state())
