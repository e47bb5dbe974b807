"""Sentences of the grammar, and sentences with one token that may not stand where it does."""

import torch

from tokenry.tasks.worlds.sparse_grammar import SparseGrammar

WORLD = SparseGrammar(seed=4, vocabulary=7, length=5, successors=2)


def wrong(sentences):
    """Which tokens may not follow what is before them, [N, length]."""
    start = torch.full((len(sentences), 1), WORLD.start)
    before = torch.cat([start, sentences[:, :-1]], 1)
    return ~WORLD.allowed[before, sentences]


def test_each_token_allows_as_many_as_it_says():
    assert WORLD.allowed.shape == (8, 7)
    assert (WORLD.allowed.sum(-1) == 2).all()


def test_chosen_sentences_are_grammatical_and_rejected_ones_wrong_at_one_token():
    pairs, position = WORLD.corrupted_pairs(300, torch.Generator().manual_seed(1))
    assert not wrong(pairs.chosen).any()
    where = wrong(pairs.rejected)
    assert (where.sum(1) == 1).all()
    assert torch.equal(where.int().argmax(1), position)
    assert set(position.tolist()) == set(range(5))
    kept = torch.arange(5) < position[:, None]
    assert torch.equal(pairs.chosen[kept], pairs.rejected[kept])


def test_the_language_breaks_the_rule_at_its_noise():
    chain = WORLD.language.logprob[0].exp()
    torch.testing.assert_close(chain.sum(-1), torch.ones(8, dtype=torch.float64))
    forbidden = (chain * ~WORLD.allowed).sum(-1)
    torch.testing.assert_close(forbidden, torch.full((8,), 0.1 * 5 / 7, dtype=torch.float64))
