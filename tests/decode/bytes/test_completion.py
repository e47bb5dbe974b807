"""Writing by bytes: greedy, sampled, stopped, streamed; alone and as an ensemble."""

import numpy as np
import pytest

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.bytes import ByteEnsemble, ByteModel, complete, suffix_context


@pytest.fixture
def model(words, table_scorer):
    return ByteModel(None, words, scorer=table_scorer(len(words), seed=5), eos=[0])


@pytest.fixture
def multibyte(characters, table_scorer):
    return ByteModel(None, characters, scorer=table_scorer(len(characters), seed=6), eos=[0])


def test_greedy_takes_the_likeliest_byte(model):
    state, expected, logprob = model.start("a", [0]), b"", 0.0
    for _ in range(10):
        row = model.next_byte_logprobs(state)
        byte = int(row.argmax())
        logprob += row[byte]
        if byte == 256:
            break
        expected, state = expected + bytes([byte]), model.advance(state, byte)
    done = complete(model, "a", 10, temperature=0, context=[0])
    assert done.data == expected
    assert done.logprob == pytest.approx(logprob)
    assert done.ended == (byte == 256)
    assert done.text.encode() == expected


def test_samples_follow_the_distribution(model):
    probs = np.exp(model.next_byte_logprobs(model.start("a", [0])))
    draws = [complete(model, "a", 1, seed=seed, context=[0]) for seed in range(600)]
    counts = np.bincount([d.data[0] if d.data else 256 for d in draws], minlength=257)
    # six standard deviations of each count
    assert (np.abs(counts - 600 * probs) <= 6 * np.sqrt(600 * probs) + 1e-9).all()


def test_temperature_and_top_p_act_on_bytes(model):
    probs = np.exp(model.next_byte_logprobs(model.start("a", [0])))
    first, second = np.argsort(-probs)[:2]
    options = {"top_p": float(probs[first] + 0.5 * probs[second]), "context": [0]}
    seen = {complete(model, "a", 1, seed=s, **options).data for s in range(60)}
    expected = {b"" if byte == 256 else bytes([byte]) for byte in (first, second)}
    assert seen == expected
    cold = complete(model, "a", 6, temperature=1e-3, context=[0])
    assert cold.data == complete(model, "a", 6, temperature=0, context=[0]).data


def test_characters_arrive_whole(multibyte):
    for seed in range(12):
        parts = []
        done = complete(multibyte, b"a\xe2", 30, seed=seed, context=[0], on_text=parts.append)
        assert "".join(parts) == done.text
        assert (b"a\xe2" + done.data).decode(errors="ignore").encode()  # never invalid inside
        if len(done.data) < 30 and done.ended:
            assert (b"a\xe2" + done.data).decode() == "a" + done.text


def test_a_stop_text_ends_and_is_not_shown(model):
    every = [complete(model, "a", 40, seed=seed, context=[0]) for seed in range(60)]
    seed = max(range(60), key=lambda seed: len(every[seed].data))
    free = every[seed]
    assert len(free.data) > 5
    stop = free.text[3:5]
    parts = []
    done = complete(model, "a", 40, seed=seed, context=[0], stop=[stop], on_text=parts.append)
    assert done.ended
    assert done.text == free.text[: free.text.index(stop)] == "".join(parts)


def test_without_the_check_bytes_can_still_be_held_to_utf8(characters, table_scorer):
    scorer = table_scorer(len(characters), seed=6)
    loose = ByteModel(None, characters, scorer=scorer, eos=[0], canonical_only=False)
    row = loose.next_byte_logprobs(loose.start("a", [0]))
    assert row[0x80] > -np.inf  # cannot follow in UTF-8
    for seed in range(20):
        done = complete(loose, "a", 12, seed=seed, context=[0])
        (b"a" + done.data).decode("utf-8", errors="strict" if done.ended else "ignore")


def test_an_ensemble_of_a_model_with_itself_is_the_model(words, table_scorer):
    pair = [ByteModel(None, words, scorer=table_scorer(len(words)), eos=[0]) for _ in range(2)]
    both = ByteEnsemble(pair, weights=[3, 1])
    one, two = pair[0].start("a", [0]), both.start("a", [[0], [0]])
    for byte in b"s a'l":
        expected = pair[0].next_byte_logprobs(one)
        np.testing.assert_allclose(both.next_byte_logprobs(two), expected, atol=1e-12)
        one, two = pair[0].advance(one, byte), both.advance(two, byte)


def test_different_vocabularies_are_averaged(words, fallback, table_scorer):
    models = [
        ByteModel(None, tokenizer, scorer=table_scorer(len(tokenizer), seed=seed), eos=[0])
        for seed, tokenizer in enumerate((words, fallback))
    ]
    both = ByteEnsemble(models, weights=[0.25, 0.75])
    state = both.start("a a", [[0], [0]])
    rows = [np.exp(m.next_byte_logprobs(m.start("a a", [0]))) for m in models]
    expected = 0.25 * rows[0] + 0.75 * rows[1]
    np.testing.assert_allclose(np.exp(both.next_byte_logprobs(state)), expected, atol=1e-12)
    alone = both.advance(state, ord("s"))  # no s in the other vocabulary, but bytes spell it
    assert alone.states[0] is not None
    only = both.advance(state, ord("z"))
    assert only.states[0] is None
    np.testing.assert_allclose(np.exp(both.next_byte_logprobs(only)).sum(), 1.0)
    done = complete(both, "a", 8, temperature=0, context=[[0], [0]])
    assert done.passes.calls > 0


def test_the_middle_is_asked_for_with_the_suffix_first(words):
    marks = {"prefix_token": "a", "suffix_token": "s", "middle_token": "l"}
    ids = words.convert_tokens_to_ids(["a", "s", "1", "1", "l"])
    assert suffix_context(words, "11", **marks) == ids
    with pytest.raises(InputError, match="has no <fim_prefix>"):
        suffix_context(words, "11")


def test_bad_settings_are_named(model):
    with pytest.raises(InputError, match="max_bytes is 0"):
        complete(model, "a", 0)
    with pytest.raises(InputError, match="top_p is 0"):
        complete(model, "a", 1, top_p=0)
    with pytest.raises(InputError, match="stop text is empty"):
        complete(model, "a", 1, stop=[""])
    with pytest.raises(ConstraintError, match="cannot follow"):
        complete(model, "z", 1, context=[0])
    with pytest.raises(InputError, match="1 models and 2 weights"):
        ByteEnsemble([model], [1, 1])
    with pytest.raises(InputError, match="not all 0"):
        ByteEnsemble([model], [0])
