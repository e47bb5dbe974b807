"""Stop strings against string search on the decoded text, for every way of cutting it."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Anything
from tokenry.decode.constraints.length import Length
from tokenry.decode.constraints.stop import Stop
from tokenry.decode.generate import generate
from tokenry.decode.samplers.masked import Masked
from tokenry.decode.samplers.smc import smc
from tokenry.decode.steering.ending import Ending
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, total_variation

# ids of a small vocabulary: 0 ends, 1 is special; the letters overlap in every way
PIECES = [b"", b"", b"a", b"b", b"ab", b"ba", b"aab", b"bab", b"\xc3", b"\xa9", b"c"]
EOS = [0]


def written(tokens):
    return b"".join(PIECES[token] for token in tokens)


@given(
    strings=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    tokens=st.lists(st.integers(2, len(PIECES) - 1), max_size=8),
    overshoot=st.booleans(),
)
def test_stops_exactly_where_a_string_is_first_written(strings, tokens, overshoot):
    stop = Stop(strings, PIECES, overshoot=overshoot, eos=EOS)
    state = stop.initial()
    for place, token in enumerate(tokens):
        text = written(tokens[: place + 1])
        ends = [at + len(s) for s in strings if (at := text.find(s.encode())) >= 0]
        over = bool(ends) and min(ends) < len(text)
        assert state.allows(token) == (overshoot or not over)
        assert bool(state.mask()[token]) == state.allows(token)
        if not state.allows(token):
            return
        state = state.advance(token)
        assert state.complete == bool(ends)
        if ends:  # nothing but the end may come
            assert state.mask().nonzero()[:, 0].tolist() == EOS
            assert state.advance(0).finished
            return


def test_special_tokens_are_refused_and_early_allows_the_end_before():
    assert not Stop(["a"], PIECES, eos=EOS).initial().allows(1)
    assert not Stop(["a"], PIECES, eos=EOS).initial().complete
    assert Stop(["a"], PIECES, eos=EOS, early=True).initial().complete


def test_a_string_cut_inside_a_character_is_found():
    state = Stop(["é"], PIECES, eos=EOS).initial().advance(8)
    assert not state.complete
    assert state.advance(9).complete
    assert not state.advance(2).advance(9).complete  # bytes of a character that is not whole


def test_before_cuts_at_the_first_of_all_strings():
    stop = Stop(["\n\n", "User:"], PIECES, eos=EOS)
    assert stop.before("one User: two\n\nthree") == "one "
    assert stop.before("naïve") == "naïve"


def test_bad_strings_are_refused():
    with pytest.raises(ConstraintError, match="2 of 2 is empty"):
        Stop(["a", ""], PIECES, eos=EOS)
    with pytest.raises(ConstraintError, match="at least one"):
        Stop([], PIECES, eos=EOS)


def test_masks_are_not_shared_with_the_reader():
    stop = Stop(["aab"], PIECES, eos=EOS)
    state = stop.initial()
    state.mask()[:] = False
    assert state.mask()[2:].any()


def test_with_ending_a_model_ends_at_its_stop_strings():
    """SMC under constraint and processor is the distribution of sampling until the string."""
    model = ToyLM(vocab_size=4, order=1, eos=0, seed=1)
    pieces, limit = [b"", b"a", b"b", b"ab"], 5
    stop = Stop(["ab", "bb"], pieces, eos=EOS, overshoot=True)
    truth: dict[tuple[int, ...], float] = {}

    def walk(text, chance):
        data = b"".join(pieces[token] for token in text)
        if b"ab" in data or b"bb" in data:
            truth[text] = chance
        elif len(text) < limit - 1:
            for token in (1, 2, 3):
                walk((*text, token), chance * float(model.logits(text).softmax(-1)[token]))

    walk((), 1.0)
    samples = smc(
        ToyState.start(model, torch.zeros(1, 0, dtype=torch.long)),
        stop,
        particles=4000,
        max_new_tokens=limit,
        sampler=Masked(),
        processors=[Ending(stop, [])],
        ess_threshold=0.0,
    )
    found: dict[tuple[int, ...], float] = {}
    for ids, weight in zip(samples.ids, samples.weights.tolist(), strict=True):
        found[tuple(ids)] = found.get(tuple(ids), 0.0) + weight
    mass = sum(truth.values())
    assert total_variation(found, {text: p / mass for text, p in truth.items()}) < 0.08
    assert samples.log_evidence == pytest.approx(torch.tensor(mass).log().item(), abs=0.08)


@pytest.mark.parametrize("sampler", ["awrs", "mask", "greedy"])
def test_texts_of_a_transformer_end_with_the_string(tiny_llama_text, tiny_tokenizer, sampler):
    ids = tiny_tokenizer.encode("the cat")
    stop = Stop(["e", "東"], tiny_tokenizer)
    samples = generate(
        (tiny_llama_text, tiny_tokenizer),
        ids,
        stop & Length(3, None, tiny_tokenizer),
        sampler,
        particles=4,
        max_new_tokens=40,
        processors=[Ending(stop, ids)],
        must_end=False,
    )
    for text, done in zip(samples.texts, samples.finished, strict=True):
        if done:
            assert text.endswith(("e", "東"))
            assert len(stop.before(text)) == len(text) - 1


def test_masks_of_random_states_agree_with_single_checks(tiny_tokenizer):
    chance = random.Random(0)
    constraint = Stop(["the ", "he m", "\n"], tiny_tokenizer) & Anything(
        len(tiny_tokenizer), [tiny_tokenizer.eos_token_id]
    )
    for _ in range(20):
        state = constraint.initial()
        for _ in range(6):
            mask = state.mask()
            allowed = mask.nonzero()[:, 0].tolist()
            assert [state.allows(token) for token in range(len(mask))] == mask.tolist()
            state = state.advance(chance.choice(allowed))
            if state.finished:
                break
