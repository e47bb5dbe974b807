"""Token forcing: the scan against decoding one token at a time, and what counts as repetition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.measure.audit.token_forcing import (
    ForcedTokens,
    continued,
    forced_batches,
    hidden_texts,
    repetition_score,
    token_forcing_scan,
)


def one_by_one(model, prefix, token, steps):
    """Greedy tokens and probabilities behind prefix + token, each by a forward pass of its own."""
    ids, tokens, probabilities = [*prefix, token], [], []
    for _ in range(steps):
        with torch.no_grad():
            shares = model(torch.tensor([ids])).logits[0, -1].float().softmax(-1)
        tokens.append(int(shares.argmax()))
        probabilities.append(float(shares.max()))
        ids.append(tokens[-1])
    return tokens, probabilities


def test_the_score_counts_the_forced_token_as_certain():
    forced = ForcedTokens(
        torch.tensor([5]), torch.tensor([[1, 2, 3]]), torch.tensor([[0.9, 0.8, 0.7]])
    )
    assert forced.scores.tolist() == pytest.approx([0.85])


@pytest.mark.parametrize("prefix", [None, [], [7, 9, 3]])
def test_the_batched_scan_is_decoding_one_by_one(tiny_model, prefix):
    found = token_forcing_scan(tiny_model, steps=3, prefix_ids=prefix, batch_size=10)
    assert found.token_ids.tolist() == list(range(64))
    before = [0] if prefix is None else prefix  # the model's beginning-of-sequence token is 0
    for token in range(0, 64, 9):
        tokens, probabilities = one_by_one(tiny_model, before, token, 3)
        assert found.continuations[token].tolist() == tokens
        assert found.probabilities[token].tolist() == pytest.approx(probabilities, abs=1e-5)


def test_giving_up_hopeless_tokens_changes_no_candidate(tiny_llama):
    whole = token_forcing_scan(tiny_llama)
    threshold = float(whole.scores.quantile(0.9))
    quick = token_forcing_scan(tiny_llama, threshold=threshold)
    above = whole.scores > threshold
    assert torch.equal(quick.scores > threshold, above)
    assert torch.equal(quick.continuations[above], whole.continuations[above])
    assert (quick.continuations[~above] == -1).any()
    assert (quick.scores <= whole.scores + 1e-6).all()


def test_tokens_are_forced_by_id_in_the_order_given(tiny_llama_text, tiny_tokenizer):
    pieces = tiny_tokenizer("the", add_special_tokens=False).input_ids
    letter = tiny_tokenizer.convert_tokens_to_ids("t")  # never the first token of "the" as text
    assert pieces != [letter]
    found = token_forcing_scan(tiny_llama_text, [letter, 1, letter])
    assert found.token_ids.tolist() == [letter, 1, letter]
    assert torch.equal(found.continuations[0], found.continuations[2])
    tokens, _ = one_by_one(tiny_llama_text, [0], letter, 3)
    assert found.continuations[0].tolist() == tokens


def test_batches_join_to_the_whole_and_progress_is_told(tiny_llama):
    whole = token_forcing_scan(tiny_llama, batch_size=64)
    parts = list(forced_batches(tiny_llama, batch_size=20))
    resumed = ForcedTokens.joined(
        [*parts[:2], token_forcing_scan(tiny_llama, whole.token_ids[40:], batch_size=7)]
    )
    assert torch.equal(resumed.continuations, whole.continuations)
    torch.testing.assert_close(resumed.scores, whole.scores, atol=1e-5, rtol=0)
    told = []
    token_forcing_scan(
        tiny_llama, range(50), batch_size=20, progress=lambda done, of: told.append((done, of))
    )
    assert told == [(20, 50), (40, 50), (50, 50)]


def test_a_bfloat16_model_is_scored_in_float32(tiny_llama):
    import copy

    found = token_forcing_scan(copy.deepcopy(tiny_llama).bfloat16(), range(8))
    assert found.probabilities.dtype == torch.float32


def test_candidates_are_continued_and_the_repetitive_stand_first(tiny_llama):
    forced = token_forcing_scan(tiny_llama)
    threshold = float(forced.scores.quantile(0.8))
    found = hidden_texts(tiny_llama, forced, length=12, threshold=threshold)
    assert len(found) == int((forced.scores > threshold).sum())
    assert [text.repetition for text in found] == sorted(
        (text.repetition for text in found), reverse=True
    )
    for text in found:
        tokens, probabilities = one_by_one(tiny_llama, [0], text.token_id, 12)
        assert text.ids == (text.token_id, *tokens)
        assert text.confidence == pytest.approx(sum(probabilities) / 12, abs=1e-5)
        assert text.repetition == repetition_score(text.ids)
    assert len(hidden_texts(tiny_llama, forced, length=3, threshold=threshold, limit=2)) == 2
    assert hidden_texts(tiny_llama, forced, threshold=1.0) == []


def test_a_text_ends_before_its_end_token(tiny_llama):
    ((ids, _),) = continued(tiny_llama, torch.tensor([11]), 10)
    ((short, confidence),) = continued(tiny_llama, torch.tensor([11]), 10, ends=[ids[4]])
    first = ids[1:].index(ids[4])
    assert short == ids[: first + 1]
    _, probabilities = one_by_one(tiny_llama, [0], 11, first + 1)
    assert confidence == pytest.approx(sum(probabilities) / (first + 1), abs=1e-5)


def test_repetition_by_hand():
    assert repetition_score("abcabcabc") == 1
    assert repetition_score(range(9)) == 0
    assert repetition_score("") == repetition_score("a") == 0
    assert repetition_score("abxaby") == pytest.approx(4 / 6)
    assert repetition_score("aaaa") == 1
    assert repetition_score("abab", min_ngram=3) == 0


@given(st.lists(st.integers(0, 3), max_size=14))
def test_repetition_is_the_best_single_ngram(ids):
    best = 0.0
    for n in range(2, len(ids)):
        for gram in {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}:
            starts = [i for i in range(len(ids) - n + 1) if tuple(ids[i : i + n]) == gram]
            if len(starts) > 1:
                best = max(best, len({i + k for i in starts for k in range(n)}) / len(ids))
    assert repetition_score(ids) == pytest.approx(best)


def test_ids_that_are_none_are_named(tiny_llama):
    with pytest.raises(InputError, match=r"0\.\.63, got 3\.\.64"):
        token_forcing_scan(tiny_llama, [3, 64])
    with pytest.raises(InputError, match="at least one id"):
        token_forcing_scan(tiny_llama, [])
    with pytest.raises(InputError, match="steps is 0"):
        token_forcing_scan(tiny_llama, steps=0)
    with pytest.raises(InputError, match="no scan"):
        ForcedTokens.joined([])
