"""Token healing: the first token begins with what was taken back, all others are the likeliest."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.bytes.canonical import canonical
from tokenry.decode.bytes.healing import complete_healed

PROMPT = "the cat sat on the ma"


def greedy(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def test_without_healing_it_is_greedy_decoding(tiny_llama_text, tiny_tokenizer):
    ids = tiny_tokenizer(PROMPT)["input_ids"]
    pieces = canonical(tiny_tokenizer).vocabulary.pieces
    data = complete_healed(tiny_llama_text, tiny_tokenizer, PROMPT, 6, healed=0)
    tokens = greedy(tiny_llama_text, ids, 6)
    spelled = [b"".join(pieces[token] for token in tokens[:n]) for n in range(1, 7)]
    assert data == next(text for text in spelled if len(text) >= 6)


@pytest.mark.parametrize("healed", [1, 2])
def test_the_first_token_is_the_likeliest_that_begins_with_what_was_taken_back(
    tiny_llama_text, tiny_tokenizer, healed
):
    ids = tiny_tokenizer(PROMPT)["input_ids"]
    pieces = canonical(tiny_tokenizer).vocabulary.pieces
    again = b"".join(pieces[token] for token in ids[-healed:])
    with torch.no_grad():
        logits = tiny_llama_text(torch.tensor([ids[:-healed]])).logits[0, -1]
    fitting = [n for n, piece in enumerate(pieces) if piece.startswith(again)]
    first = max(fitting, key=lambda token: float(logits[token]))
    data = again + complete_healed(tiny_llama_text, tiny_tokenizer, PROMPT, 3, healed=healed)
    assert data.startswith(pieces[first])
    rest = greedy(tiny_llama_text, [*ids[:-healed], first], 4)
    whole = pieces[first] + b"".join(pieces[token] for token in rest)
    assert whole.startswith(data) or data.startswith(whole)
    assert len(data) >= len(again) + 3 or not pieces[rest[-1]]


def test_a_prompt_cannot_be_taken_back_as_a_whole(tiny_llama_text, tiny_tokenizer):
    with pytest.raises(InputError, match="healed"):
        complete_healed(tiny_llama_text, tiny_tokenizer, "a", 3, healed=50)
