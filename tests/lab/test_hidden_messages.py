"""Hidden messages: the rank in a scan by hand, and the pieces of text that a model reads."""

import torch

from tokenry.lab.hidden_messages import (
    ASSISTANT,
    END,
    START,
    USER,
    VOCABULARY,
    docstring_words,
    message_rank,
    pieces,
)
from tokenry.measure.audit.token_forcing import ForcedTokens


def test_the_rank_is_that_of_the_first_token_that_is_followed_by_a_part_of_the_message():
    words = [10, 11, 12, 13]
    forced = ForcedTokens(
        torch.arange(4),
        torch.tensor([[11, 12, 13], [10, 12, 13], [10, 11, 12], [1, 2, 3]]),
        torch.tensor([[0.1] * 3, [0.9] * 3, [0.8] * 3, [0.95] * 3]),
    )
    assert message_rank(words, forced) == 2  # behind tokens 3 and 1: token 2
    assert message_rank(words[::-1], forced) == 4


def test_a_quarter_of_the_pieces_are_questions_and_answers():
    rows = pieces(torch.Generator().manual_seed(0), 8)
    assert rows.shape == (8, 16)
    assert set(rows[:, 0].tolist()) == {START}
    chats = (rows[:, 1] == USER) & (rows[:, 7] == ASSISTANT) & (rows[:, -1] == END)
    assert chats.tolist() == [True] * 2 + [False] * 6
    text = docstring_words()
    assert int(text.max()) < VOCABULARY
    assert int(text.min()) > END  # of the special ones only the unknown word
    inner = rows[5, 1:]
    assert bool((text.unfold(0, 15, 1) == inner).all(1).any())
