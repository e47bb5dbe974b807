"""Small encoders and decoders: one seed, one model."""

import torch

from tokenry.lab.toy_encoder_decoder import small_encoder


def test_the_same_seed_makes_the_same_small_model_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = small_encoder(9, 8, 1), small_encoder(9, 8, 1), small_encoder(9, 8, 2)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )
