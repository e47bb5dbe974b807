"""From text to shorter text: every attribution, sentence by sentence, on models and tokenizers."""

import pytest
import torch

from tokenry.core.errors import InputError, ModelError
from tokenry.model.attribution.base import attribution
from tokenry.model.attribution.frugalprompt import (
    FrugalPrompt,
    framed_scores,
    matched,
    touched,
    word_scores,
)
from tokenry.model.attribution.surprisal import Surprisal
from tokenry.text.compression import normalise_by_sentence, words

TEXT = "the cat sat on the mat. naïve café\n東京 and the theory!"


def test_the_registered_attributions():
    assert {"globenc", "decompx", "surprisal"} <= set(attribution.names())


@pytest.mark.parametrize("key", ["globenc", "decompx", "surprisal"])
def test_every_attribution_scores_every_word(key, tiny_llama_text, tiny_tokenizer):
    scorer = attribution[key]()
    ids = torch.tensor(tiny_tokenizer(TEXT)["input_ids"])
    assert scorer(tiny_llama_text, ids).shape == ids.shape
    assert (scorer(tiny_llama_text, ids) >= 0).all()
    found = FrugalPrompt(scorer, 50)(tiny_llama_text, tiny_tokenizer, TEXT)
    assert len(found.kept) == round(len(words(TEXT)) / 2)
    everything = FrugalPrompt(scorer, 100)(tiny_llama_text, tiny_tokenizer, TEXT)
    assert everything.text == TEXT
    assert everything.scores == found.scores
    assert FrugalPrompt(scorer, 0)(tiny_llama_text, tiny_tokenizer, TEXT).text == ""


def test_words_are_scored_by_the_pieces_of_their_own_sentence(tiny_llama_text, tiny_tokenizer):
    """Against the steps one by one; the second sentence changes nothing in the first."""
    first, both = "the theory gathered", "the theory gathered\nfeathers zq"
    encoded = tiny_tokenizer(first, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    assert len(ids) > 3
    marks = tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id
    scorer = attribution["decompx"]()
    raw = scorer(tiny_llama_text, torch.tensor([marks[0], *ids, marks[1]]), len(ids) + 1)[1:-1]
    torch.testing.assert_close(framed_scores(scorer, tiny_llama_text, tiny_tokenizer, ids), raw)
    tokens = normalise_by_sentence(raw, [0] * len(ids))
    expected = [
        sum(
            float(value)
            for value, (a, b) in zip(tokens, encoded["offset_mapping"], strict=True)
            if a < end and b > start
        )
        for start, end in words(first)
    ]
    for text in (first, both):
        found = word_scores(scorer, tiny_llama_text, tiny_tokenizer, text, words(text))
        assert found[:3].tolist() == pytest.approx(expected, abs=1e-5)


def test_surprisal_is_the_models_own(tiny_llama_text):
    ids = torch.tensor([3, 9, 4, 7])
    logprob = tiny_llama_text(ids[None]).logits[0].detach().log_softmax(-1)
    expected = [0.0] + [-float(logprob[t - 1, ids[t]]) for t in range(1, 4)]
    assert Surprisal()(tiny_llama_text, ids).tolist() == pytest.approx(expected, abs=1e-4)
    assert Surprisal()(tiny_llama_text, ids[:1]).tolist() == [0.0]


def test_a_long_sentence_is_read_in_pieces(tiny_llama_text, tiny_tokenizer):
    text = "the cat sat on the mat " * 8
    found = FrugalPrompt(attribution["decompx"](max_tokens=10), 50)(
        tiny_llama_text, tiny_tokenizer, text
    )
    assert len(found.kept) == 24


def test_words_that_touch_a_match_stay(tiny_llama_text, tiny_tokenizer):
    scorer = attribution["surprisal"]()
    found = FrugalPrompt(scorer, 20, protect="m.t|café")(tiny_llama_text, tiny_tokenizer, TEXT)
    assert "mat." in found.text
    assert "café" in found.text
    assert matched("ab cd", [(0, 2), (3, 5)], "b c") == [True, True]
    assert matched("ab cd", [(0, 2), (3, 5)], " ") == [False, False]
    assert matched("ab cd", [(0, 2), (3, 5)], "x*") == [False, False]  # matches nothing, everywhere


def test_characters_reach_into_words():
    spans = [(0, 2), (3, 5), (5, 6)]
    assert touched(spans, (0, 1)) == [0]
    assert touched(spans, (1, 4)) == [0, 1]
    assert touched(spans, (4, 6)) == [1, 2]
    assert touched(spans, (2, 3)) == []
    assert touched(spans, (4, 4)) == []


def test_the_controls(tiny_llama_text, tiny_tokenizer):
    scorer = attribution["surprisal"]()
    top, bottom = (
        FrugalPrompt(scorer, percent, mode)(tiny_llama_text, tiny_tokenizer, TEXT).kept
        for percent, mode in ((60, "top"), (40, "bottom"))
    )
    assert sorted(top + bottom) == list(range(len(words(TEXT))))
    draws = [FrugalPrompt(None, 50, "random", seed=seed)(None, None, TEXT) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_bad_input_is_said(tiny_llama_text, tiny_tokenizer):
    with pytest.raises(InputError, match="empty text"):
        FrugalPrompt(None, 50, "random")(None, None, " \n")
    with pytest.raises(InputError, match="without a scorer"):
        FrugalPrompt(None, 50)(None, None, "a")
    with pytest.raises(InputError, match="regular expression"):
        FrugalPrompt(None, 50, "random", protect="(")(None, None, "a")

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="fast tokenizer"):
        FrugalPrompt(attribution["globenc"]())(tiny_llama_text, Slow(), "a")


@pytest.mark.model
def test_a_real_model_scores_a_sentence(smollm2):
    found = FrugalPrompt(attribution["globenc"](), 50)(*smollm2, "Tea is a drink.")
    assert len(found.kept) == 2
    assert all(score >= 0 for score in found.scores)
