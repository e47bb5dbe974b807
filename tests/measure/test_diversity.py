import torch

from tokenry.measure.diversity import distinct_ngrams


def test_the_share_of_different_ngrams():
    sequences = torch.tensor([[1, 2, 1, 2], [1, 2, 3, 3]])  # 12 21 12 12 23 33
    assert distinct_ngrams(sequences, 2) == 4 / 6
    assert distinct_ngrams(sequences, 3) == 4 / 4
    assert distinct_ngrams(torch.zeros(5, 3, dtype=torch.long), 1) == 1 / 15
