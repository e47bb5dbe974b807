"""ByteModel against brute force over all encodings, closed forms, and whole forward passes."""

import itertools
import math

import numpy as np
import pytest
import torch

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.bytes import ByteModel, byte_logprob, cover_encodings

ALPHABETS = {
    "words": ["a", "s", "l", "'", " ", "\n", "1"],
    "characters": ["a", " ", *"Àé\u2000\u2029\u2a40\u2a69\u3000\u3029\u3a40\u3a69"],
    "fallback": ["a", "b", " ", "é", "è", "\n", "<b>", "<", "→"],
}


def every_text(alphabet, lengths):
    return ["".join(t) for n in lengths for t in itertools.product(alphabet, repeat=n)]


@pytest.mark.parametrize("kind", sorted(ALPHABETS))
def test_equals_the_sum_over_all_encodings(kind, request, table_scorer):
    """Every text of two characters and its beginnings; encodings of all texts of four."""
    tokenizer, alphabet = request.getfixturevalue(kind), ALPHABETS[kind]
    scorer = table_scorer(len(tokenizer), seed=1)
    model = ByteModel(None, tokenizer, scorer=scorer, eos=[0])
    pieces = model.vocabulary.pieces
    texts = every_text(alphabet, range(1, 5))
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    logprobs: dict[tuple, float] = {(): 0.0}

    def logprob(ids):
        if ids not in logprobs:
            row = scorer.next_logits([(0, *ids[:-1])])[0]
            logprobs[ids] = logprob(ids[:-1]) + float(row[ids[-1]])
        return logprobs[ids]

    truth: dict[bytes, float] = {}
    ended: dict[bytes, float] = {}
    prefixes = {t.encode()[:end] for t in every_text(alphabet, (1, 2)) for end in range(1, 7)}
    for ids in sorted({tuple(row[:end]) for row in encoded for end in range(1, len(row) + 1)}):
        before, last = b"".join(pieces[token] for token in ids[:-1]), pieces[ids[-1]]
        for end in range(1, len(last) + 1):
            if before + last[:end] in prefixes:
                covered = truth.get(before + last[:end], 0.0)
                truth[before + last[:end]] = covered + math.exp(logprob(ids))
    for text, ids in zip(texts, encoded, strict=True):
        if text.encode() in prefixes:
            ended[text.encode()] = math.exp(logprob((*ids, 0)))
    for data in sorted(prefixes):
        assert math.exp(byte_logprob(model, None, data, [0])) == pytest.approx(truth[data], 1e-9)
        state = model.start(data, [0])
        head = byte_logprob(model, None, data, [0]) - model.logprob(state)  # shared by all covers
        masses = np.exp(model.next_byte_logmass(state) + head)
        for byte in {other[len(data)] for other in prefixes if other[:-1] == data}:
            assert masses[byte] == pytest.approx(truth[data + bytes([byte])], 1e-9), (data, byte)
        assert masses[256] == pytest.approx(ended.get(data, 0.0), 1e-9), data


@pytest.mark.parametrize("kind", sorted(ALPHABETS))
def test_advancing_equals_summing_the_covers_anew(kind, request, table_scorer):
    tokenizer = request.getfixturevalue(kind)
    scorer = table_scorer(len(tokenizer), seed=2)
    model = ByteModel(None, tokenizer, scorer=scorer, eos=[0])
    rng = np.random.default_rng(0)
    for _ in range(4):
        text = "".join(rng.choice(ALPHABETS[kind], size=7))
        state, chain = model.start("", [0]), 0.0
        for end, byte in enumerate(text.encode(), 1):
            logprobs = model.next_byte_logprobs(state)
            assert np.logaddexp.reduce(logprobs) == pytest.approx(0.0, abs=1e-12)
            mass = model.next_byte_logmass(state)
            chain += float(mass[byte]) - model.logprob(state)
            state = model.advance(state, byte)
            assert model.logprob(state) == pytest.approx(float(mass[byte]), abs=1e-9)
            covers = cover_encodings(tokenizer, text.encode()[:end])
            summed = np.logaddexp.reduce([scorer.logprob((0,), ids) for ids in covers])
            assert model.logprob(state) == pytest.approx(summed, abs=1e-9)
        assert chain == pytest.approx(byte_logprob(model, None, text, [0]), abs=1e-9)


def test_recovers_the_markov_chain_behind_merged_letters(make_byte_level, table_scorer):
    """Letters A and B by a chain, written with the tokens A, B and AA: the token model never puts
    an A behind the token A, the byte model does as the chain."""
    tokenizer = make_byte_level(["A", "B"], ["A A"], regex=False)
    a, b, aa = tokenizer.convert_tokens_to_ids(["A", "B", "AA"])
    chain = {"A": {"A": 0.6, "B": 0.3, "end": 0.1}, "B": {"A": 0.25, "B": 0.55, "end": 0.2}}

    def next_token(last, _):
        after = chain["B" if last in (b, 0) else "A"]
        p = torch.zeros(len(tokenizer), dtype=torch.float64)
        if last == a:  # a second A would have made the token AA
            p[b], p[0] = after["B"], after["end"]
            return (p / p.sum()).log()
        p[aa], p[a] = after["A"] * chain["A"]["A"], after["A"] * (1 - chain["A"]["A"])
        p[b], p[0] = after["B"], after["end"]
        return p.log()

    scorer = table_scorer(len(tokenizer), table=next_token)
    assert float(next_token(a, 0).exp()[a] + next_token(a, 0).exp()[aa]) == 0.0
    model = ByteModel(None, tokenizer, scorer=scorer, eos=[0])
    for length in range(1, 7):
        for text in map("".join, itertools.product("AB", repeat=length)):
            probs = np.exp(model.next_byte_logprobs(model.start(text, [0])))
            after = chain[text[-1]]
            expected = [after["A"], after["B"], after["end"]]
            assert probs[[65, 66, 256]] == pytest.approx(expected, abs=1e-12)
            assert probs.sum() == pytest.approx(1.0, abs=1e-12)


def test_a_vocabulary_of_bytes_is_the_model_itself(make_byte_level, table_scorer):
    tokenizer = make_byte_level(["x", "y", "z"], [], regex=False)
    scorer = table_scorer(len(tokenizer))
    model = ByteModel(None, tokenizer, scorer=scorer, eos=[0])
    state = model.start("xzy", [0])
    path = (0, *tokenizer.convert_tokens_to_ids(["x", "z", "y"]))
    expected = scorer.next_logits([path])[0].exp().numpy()
    found = np.exp(model.next_byte_logprobs(state))[[256, *b"xyz"]]
    assert found == pytest.approx(expected, abs=1e-12)


def test_reading_ahead_changes_nothing_but_the_passes(words, table_scorer):
    text = "a as'sl  \n aa1"
    found = []
    for ahead in (1, 4, 40):
        scorer = table_scorer(len(words), seed=3)
        model = ByteModel(None, words, scorer=scorer, eos=[0], ahead=ahead)
        state, rows = model.start("", [0]), []
        for byte in text.encode():
            rows.append(model.next_byte_logprobs(state))
            state = model.advance(state, byte)
        found.append((np.stack(rows), scorer.passes.calls))
    for rows, _ in found[1:]:
        np.testing.assert_allclose(rows, found[0][0], atol=1e-12)
    assert found[0][1] > found[1][1] >= found[2][1]
    assert found[0][1] <= len(text) + 1  # one pass per byte at most


def test_a_tolerance_leaves_out_what_is_small(words, table_scorer):
    exact, rough = (
        ByteModel(None, words, scorer=table_scorer(len(words), seed=4), eos=[0], tolerance=share)
        for share in (0.0, 0.1)
    )
    states = exact.start("a", [0]), rough.start("a", [0])
    worst = 0.0
    for byte in b"asa a'sa":
        pairs = zip((exact, rough), states, strict=True)
        rows = [np.exp(model.next_byte_logprobs(state)) for model, state in pairs]
        worst = max(worst, float(np.abs(rows[0] - rows[1]).max()))
        states = exact.advance(states[0], byte), rough.advance(states[1], byte)
    assert 0.0 < worst < 0.3
    assert rough.passes.tokens < exact.passes.tokens


def test_states_are_immutable(words, table_scorer):
    model = ByteModel(None, words, scorer=table_scorer(len(words)), eos=[0])
    state = model.start("a s", [0])
    before = model.next_byte_logprobs(state).copy()
    model.advance(model.advance(state, ord("a")), ord("a"))
    np.testing.assert_array_equal(model.next_byte_logprobs(state), before)
    with pytest.raises(AttributeError):
        state.data = b""


def cover_sum(model, tokenizer, text, before):
    """log P by one forward pass for each cover."""
    values = []
    for ids in cover_encodings(tokenizer, text):
        row = torch.tensor([[*before, *ids]])
        with torch.no_grad():
            logprobs = model(input_ids=row).logits[0].double().log_softmax(-1)
        steps = range(len(before), row.shape[1])
        values.append(sum(float(logprobs[at - 1, row[0, at]]) for at in steps))
    return np.logaddexp.reduce(values)


def test_a_transformer_is_read_as_whole_sequences_are(tiny_llama_text, tiny_tokenizer):
    model = ByteModel(tiny_llama_text, tiny_tokenizer)
    for text in ("the c", "a thé", "naïve caf", 'x "n'):
        expected = cover_sum(tiny_llama_text, tiny_tokenizer, text, [0])
        found = byte_logprob(model, None, text, [0])
        assert found == pytest.approx(expected, abs=2e-4)
    state = model.start("the", [0])
    for byte in b"re is a theory":  # leaves the way that was read ahead
        state = model.advance(state, byte)
    expected = cover_sum(tiny_llama_text, tiny_tokenizer, "there is a theory", [0])
    assert model.logprob(state) == pytest.approx(expected, abs=5e-4)


def test_going_back_reads_the_right_prefix(tiny_llama_text, tiny_tokenizer):
    model = ByteModel(tiny_llama_text, tiny_tokenizer)
    early = model.start("the cat sat on ", [0])
    late = early
    for byte in b"the mat and":
        late = model.advance(late, byte)
    other = model.advance(model.advance(early, ord("d")), ord("o"))
    fresh = ByteModel(tiny_llama_text, tiny_tokenizer)
    np.testing.assert_allclose(
        np.exp(model.next_byte_logprobs(other)),
        np.exp(fresh.next_byte_logprobs(fresh.start("the cat sat on do", [0]))),
        atol=1e-5,
    )
    again = model.advance(late, ord(" "))
    np.testing.assert_allclose(
        np.exp(model.next_byte_logprobs(again)),
        np.exp(fresh.next_byte_logprobs(fresh.start("the cat sat on the mat and ", [0]))),
        atol=1e-5,
    )


def test_bad_input_is_named(words, table_scorer):
    model = ByteModel(None, words, scorer=table_scorer(len(words)), eos=[0])
    with pytest.raises(InputError, match="not UTF-8"):
        model.start(b"a\xff", [0])
    assert byte_logprob(model, None, b"a\xff", [0]) == float("-inf")
    with pytest.raises(ConstraintError, match="cannot follow"):
        model.start("az", [0])
    with pytest.raises(InputError, match="300 is not a byte"):
        model.advance(model.start("a", [0]), 300)
    with pytest.raises(InputError, match="tolerance is 2"):
        ByteModel(None, words, scorer=table_scorer(len(words)), eos=[0], tolerance=2)


@pytest.mark.model
def test_smollm2_reads_about_once_per_token(smollm2):
    model = ByteModel(*smollm2)
    state = model.start("The capital of Fra")
    before, data = model.passes, b""
    for _ in range(12):
        byte = int(model.next_byte_logprobs(state)[:256].argmax())
        data, state = data + bytes([byte]), model.advance(state, byte)
    assert data == b"nce is Paris"
    assert (model.passes - before).calls <= 6
