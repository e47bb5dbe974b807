"""Greedy decoding from given scores."""

import torch

from tokenry.decode.greedy import greedy


def test_greedy_follows_the_scores_and_stops_at_the_end():
    table = torch.eye(5).roll(1, 1)  # token t is followed by t + 1

    found = greedy(lambda ids: table[ids[:, -1]], 2, start=0, end=3, limit=9)
    assert found.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert greedy(lambda ids: table[ids[:, -1]], 1, start=0, end=3, limit=2).tolist() == [[1, 2]]
