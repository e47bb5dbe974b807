"""Iterative denoising with a model that knows the texts."""

import pytest
import torch
from torch.nn.functional import one_hot

from tokenry.core.errors import InputError
from tokenry.decode.denoising import iterative_decode
from tokenry.model.layers.denoising import Encoded, Padded

V, PAD, MASK = 16, 0, 1


class Oracle:
    """Knows the text of every source: token + 1, reversed. Denoises perfectly."""

    vocab_size, pad_id, mask_id, max_length = V, PAD, MASK, 6

    def encode(self, source):
        aligned = source.aligned(PAD)
        return Encoded(aligned.ids[..., None].float(), aligned.mask)

    def length_logits(self, encoded):
        return one_hot(encoded.mask.sum(1), 7).float()

    def __call__(self, ids, mask, encoded):
        clean = torch.zeros_like(ids)
        for row, (states, real) in enumerate(zip(encoded.states, encoded.mask, strict=True)):
            text = states[real, 0].long().flip(0) + 1
            width = min(len(text), ids.shape[1])
            clean[row, :width] = text[:width]
        return one_hot(clean, V).float() * 9


@pytest.mark.parametrize("options", [{}, {"candidates": 3}, {"fraction": 0.6, "iterations": 30},
                                     {"temperature": 0.1}])  # fmt: skip
def test_decoding_rewrites_noise_into_the_text(options):
    source = Padded.of([[3, 4, 5], [6, 7], [2, 3, 4, 5, 6]])
    assert iterative_decode(Oracle(), source, **options) == [[6, 5, 4], [8, 7], [7, 6, 5, 4, 3]]


def test_decoding_writes_the_lengths_that_are_asked_for():
    source = Padded.of([[3, 4, 5], [6, 7]])
    texts = iterative_decode(Oracle(), source, lengths=torch.tensor([2, 1]))
    assert texts == [[6, 5], [8]]


def test_the_best_of_the_lengths_wins():
    """An encoder that is undecided: the model's own score decides."""

    class Undecided(Oracle):
        def length_logits(self, encoded):
            return torch.tensor([0.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0]).expand(len(encoded.mask), -1)

        def __call__(self, ids, mask, encoded):
            sure = mask.sum(1) == encoded.mask.sum(1)
            return super().__call__(ids, mask, encoded) * (0.1 + sure.float())[:, None, None]

    source = Padded.of([[3, 4, 5], [6, 7]])
    assert iterative_decode(Undecided(), source, candidates=3) == [[6, 5, 4], [8, 7]]
    assert iterative_decode(Undecided(), source, candidates=1) == [[6, 5], [8, 7]]


def test_same_seed_same_text():
    class Vague(Oracle):
        def __call__(self, ids, mask, encoded):
            return super().__call__(ids, mask, encoded) * 0.1

    source = Padded.of([[3, 4, 5], [6, 7]])
    first, second, other = (
        iterative_decode(Vague(), source, temperature=1.0, seed=seed) for seed in (3, 3, 4)
    )
    assert first == second != other


def test_bad_settings_are_refused():
    for options in ({"fraction": 0.0}, {"iterations": 0}, {"candidates": 0}, {"temperature": -1}):
        with pytest.raises(InputError, match="must be"):
            iterative_decode(Oracle(), Padded.of([[3]]), **options)
