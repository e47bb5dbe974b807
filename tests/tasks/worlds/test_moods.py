"""The language of two moods: where texts end, and what they are worth."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.tasks.worlds.moods import END, LONGEST, START, MoodLanguage, rewards


def test_the_chain_is_normalised_and_likes_to_end_behind_cheerful_words():
    chain = MoodLanguage(3).chain
    torch.testing.assert_close(chain.sum(-1), torch.ones(len(chain)))
    assert chain[:4, END].tolist() == pytest.approx([0.35] * 4)
    assert chain[4:START, END].tolist() == pytest.approx([0.06] * 12)
    assert chain[START, END] == 0  # a text has a word


def test_texts_follow_the_chain_and_stop_at_their_end():
    language = MoodLanguage(3)
    batch = language.texts(torch.Generator().manual_seed(0), count=4000)
    first = torch.bincount(batch.ids[:, 1], minlength=START) / 4000
    assert float((first - language.chain[START]).abs().max()) < 0.03
    for ids, target, attention in zip(*(t[:50] for t in (batch.ids, batch.target, batch.attention)),
                                      strict=True):  # fmt: skip
        text = ids[target].tolist()
        assert END not in text[:-1]
        assert text[-1] == END or len(text) == LONGEST
        assert attention.tolist() == [True, *target[1:].tolist()]


def test_rewards_of_a_text_written_down():
    ids = torch.tensor([[START, 0, 3, 4, END], [START, 5, END, 0, 0]])
    target = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.bool)
    attention = target.clone()
    attention[:, 0] = True
    worth = rewards(TokenBatch(ids, attention, target))
    torch.testing.assert_close(worth, torch.tensor([[2 / 3, 3 / 12], [0.0, 1 / 12]]))
