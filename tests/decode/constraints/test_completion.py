"""Completion: the rules one by one, exactness on a small vocabulary, and the engines."""

import math
import random
from keyword import kwlist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.completion import Completion
from tokenry.decode.constraints.completion_engine import NamesEngine, common_start
from tokenry.decode.constraints.completion_memo import Memo, PrefixDenyTrie
from tokenry.decode.samplers.awrs import AWRS
from tokenry.text.vocabulary import token_bytes

NAMES = {
    "": ["theory", "the", "there", "cat", "mat", "length", "lengthSquared", "café", "東京"],
    "the": ["cat", "dog", "mat"],
}
ENGINE = NamesEngine(NAMES)


class Counting:
    """An engine that counts its questions and keeps the texts before the caret."""

    def __init__(self, engine=ENGINE):
        self.engine, self.asked = engine, []

    def complete(self, text, caret):
        self.asked.append(text[:caret])
        return self.engine.complete(text, caret) if self.engine else None


def spelled(tokenizer, text):
    """One token for each byte."""
    pieces = {piece: token for token, piece in enumerate(token_bytes(tokenizer))}
    return [pieces[bytes([byte])] for byte in text.encode()]


def read(state, tokens):
    for token in tokens:
        state = state.advance(token)
    return state


def test_a_refused_string_refuses_all_that_begin_with_it():
    trie = PrefixDenyTrie()
    trie.add("toSt")
    assert [trie.denies(s) for s in ("toString", "toSt", "to", "x")] == [True, True, False, False]


def test_the_common_continuation():
    assert common_start(["ngth", "ngthSquared"]) == "ngth"
    assert common_start(["ngth", ""]) is None
    assert common_start(["abc", "xyz"]) is None
    assert common_start([]) is None


def test_feasibility_follows_the_rules(tiny_tokenizer):
    engine = Counting()
    constraint = Completion(engine, tiny_tokenizer, mode="off")

    def feasible(before, added):
        engine.asked.clear()
        return constraint.feasible(before, added), len(engine.asked)

    assert feasible("", "th") == (True, 1)
    assert feasible("", "th") == (True, 0)  # remembered
    assert feasible("t", "h") == (True, 0)  # by the text, not by its tokens
    assert feasible("", "zz") == (False, 1)
    assert feasible("", "zzy") == (False, 0)  # denied without a question
    assert feasible("", "zz(") == (True, 0)  # triggers nothing
    assert feasible("", " in") == (True, 0)  # a keyword
    assert feasible("th", "is") == (False, 1)  # which is none when it goes on with a name
    assert feasible("the.", "in") == (False, 1)
    assert feasible("the", ".") == (True, 1)
    assert feasible("the.", "ca") == (True, 1)
    assert feasible("nobody.", "knows") == (True, 1)  # the engine cannot tell
    assert feasible("", "ret") == (True, 1)  # a keyword written in several tokens
    assert feasible("the.", "ret") == (False, 1)
    assert constraint.memo.calls == 9
    assert (constraint.memo.remembered, constraint.memo.spared) == (2, 1)


ADDED = [
    "zz",
    "zz.",
    "zz.a",
    "zzy",
    "th",
    "the",
    "the.",
    "the.ca",
    "the.cz",
    "q",
    "q1",
    "q.r",
    "zz a",
]


@pytest.mark.parametrize("whole_names", [False, True])
@pytest.mark.parametrize("before", ["", "x = ", "zz", "the"])
def test_no_verdict_depends_on_what_was_asked_before(tiny_tokenizer, before, whole_names):
    def constraint():
        return Completion(Counting(), tiny_tokenizer, mode="off", whole_names=whole_names)

    alone = [constraint().feasible(before, added) for added in ADDED]
    chance = random.Random(0)
    for _ in range(20):
        shared, order = constraint(), chance.sample(range(len(ADDED)), len(ADDED))
        assert {n: shared.feasible(before, ADDED[n]) for n in order} == dict(enumerate(alone))


def test_an_engine_that_knows_nothing_forbids_nothing(tiny_tokenizer):
    constraint = Completion(Counting(None), tiny_tokenizer)
    state = constraint.initial()
    decodable = torch.tensor([bool(p) for p in constraint.spelling])
    for token in spelled(tiny_tokenizer, "xyz.q"):
        whole = torch.tensor([p.isascii() and bool(p) for p in constraint.spelling])
        assert bool(state.mask()[whole].all())
        assert not bool((state.mask() & ~decodable)[2:].any())
        state = state.advance(token)
    assert state.complete


def test_the_suffix_and_the_prompt_reach_the_engine(tiny_tokenizer):
    engine = Counting(None)
    constraint = Completion(engine, tiny_tokenizer, prefix="x = ", suffix="\nend")
    constraint.initial().allows(spelled(tiny_tokenizer, "a")[0])
    from_prompt = Completion(engine, tiny_tokenizer)
    prompt = tiny_tokenizer("the cat")["input_ids"]
    from_prompt.begin(prompt).allows(spelled(tiny_tokenizer, "s")[0])
    assert engine.asked == ["x = a", "the cats"]


def test_active_completion_leaves_what_agrees(tiny_tokenizer):
    engine = Counting()
    constraint = Completion(engine, tiny_tokenizer)
    state = read(constraint.initial(), spelled(tiny_tokenizer, "le"))
    assert state.pending == b"ngth"
    assert not state.complete
    asked = len(engine.asked)
    spelling = constraint.spelling
    inside = {t for t, piece in enumerate(spelling) if piece and b"ngth".startswith(piece)}
    longer = {
        t for t, piece in enumerate(spelling) if piece.startswith(b"ngth") and t not in inside
    }
    assert set(state.mask().nonzero()[:, 0].tolist()) >= inside
    assert set(state.mask().nonzero()[:, 0].tolist()) <= inside | longer
    state = read(state, spelled(tiny_tokenizer, "ngth"))
    assert len(engine.asked) == asked + len(longer)  # what is inside asks nothing
    assert state.pending == b""
    assert state.complete
    assert state.allows(spelled(tiny_tokenizer, "S")[0])
    assert not state.allows(spelled(tiny_tokenizer, "x")[0])
    assert constraint.memo.forced == 4


@pytest.mark.parametrize("mode", ["insert", "off"])
def test_the_other_modes_do_not_hold_to_it(tiny_tokenizer, mode):
    constraint = Completion(ENGINE, tiny_tokenizer, mode=mode)
    state = read(constraint.initial(), spelled(tiny_tokenizer, "le"))
    assert state.pending == (b"ngth" if mode == "insert" else b"")
    assert state.complete
    assert state.allows(spelled(tiny_tokenizer, " ")[0])


def test_active_completion_cut_inside_a_character(tiny_tokenizer):
    constraint = Completion(ENGINE, tiny_tokenizer)
    state = read(constraint.initial(), spelled(tiny_tokenizer, "caf"))
    assert state.pending == "é".encode()
    half, rest = spelled(tiny_tokenizer, "é")
    state = state.advance(half)
    assert state.pending == "é".encode()[1:]
    assert not state.complete
    assert read(state, [rest]).complete


@settings(max_examples=15)
@given(st.lists(st.integers(0, 319), max_size=6))
def test_the_mask_is_what_allows_says(tiny_tokenizer, tokens):
    for options in ({}, {"whole_names": True}, {"mode": "off"}):
        state = Completion(ENGINE, tiny_tokenizer, **options).initial()
        for token in tokens:
            if not state.finished and state.allows(token):
                state = state.advance(token)
        fresh = Completion(ENGINE, tiny_tokenizer, **options, prefix=state.before).initial()
        for one in (state, fresh):
            assert one.mask().tolist() == [one.allows(t) for t in range(320)]


def test_the_mask_is_the_rule_written_out(tiny_tokenizer):
    """From the empty text, without a dead end or a memory: the definition, token by token."""
    mask = Completion(ENGINE, tiny_tokenizer, mode="off").initial().mask()
    for token, piece in enumerate(token_bytes(tiny_tokenizer)):
        if token == tiny_tokenizer.eos_token_id:
            continue
        try:
            text = piece.decode()
        except UnicodeDecodeError:  # the first byte of a character passes, a later one does not
            assert bool(mask[token]) == (piece[0] >= 0xC2 and piece[0] <= 0xF4)
            continue
        word = text.replace("\n", " ").split(" ")[-1] if text else ""
        name = "".join(c if c.isalnum() or c in "_.$" else " " for c in word).split(" ")[-1]
        trivial = not text or not (text[-1].isalnum() or text[-1] in "._$")
        keyword = text.strip() in kwlist
        owner, _, typed = name.rpartition(".")
        unknown = owner not in NAMES or typed[:1].isdigit()
        names = [] if unknown else [*NAMES[owner], *([] if owner else kwlist)]
        fits = unknown or any(known.startswith(typed) for known in names)
        assert bool(mask[token]) == (bool(text) and (trivial or keyword or fits)), text


def test_draws_are_exact(tiny_tokenizer):
    """AWRS on single checks against p · feasible / Σ over the enumerated vocabulary."""
    draws = 6000
    constraint = Completion(ENGINE, tiny_tokenizer)
    state = read(constraint.initial(), spelled(tiny_tokenizer, "the."))
    generator = torch.Generator().manual_seed(0)
    logprobs = (3 * torch.randn(320, generator=generator)).log_softmax(-1)
    steps = AWRS().steps(logprobs.expand(draws, -1), [state] * draws, generator)
    mean = torch.zeros(320, dtype=torch.float64)
    for step in steps:
        mean[step.token] += math.exp(step.log_weight) / draws
    exact = torch.where(state.mask(), logprobs.double().exp(), 0.0)
    # Hoeffding for weights in [0, 1] and 320 tokens, a false alarm in 10^7 runs
    assert float((mean - exact).abs().max()) < math.sqrt(math.log(2 * 320 * 1e7) / (2 * draws))


def test_a_shared_memory_asks_nothing_twice(tiny_tokenizer):
    memo, engine = Memo(), Counting()
    tokens = spelled(tiny_tokenizer, "the.cat (le")
    first = Completion(engine, tiny_tokenizer, memo=memo)
    read(first.initial(), tokens)
    calls = memo.calls
    assert calls == len(engine.asked) > 0
    read(Completion(engine, tiny_tokenizer, memo=memo).initial(), tokens)
    assert memo.calls == calls == len(engine.asked)


def test_a_dead_end_is_marked_in_the_state_before(tiny_tokenizer):
    constraint = Completion(ENGINE, tiny_tokenizer)
    t, h = spelled(tiny_tokenizer, "th")
    before = constraint.initial().advance(t)
    assert before.allows(h)
    constraint.memo.bury(("th", ""))
    again = constraint.initial().advance(t)
    assert not again.allows(h)
    assert before.allows(h)  # a state never changes


def test_whole_names_hold_for_any_tokens(tiny_tokenizer):
    partial = Completion(ENGINE, tiny_tokenizer, mode="off")
    whole = Completion(ENGINE, tiny_tokenizer, mode="off", whole_names=True)
    for text, leaves_unfinished in [("le (", True), ("the (", False), ("the.ca,", True)]:
        tokens = spelled(tiny_tokenizer, text)
        read(partial.initial(), tokens)
        if leaves_unfinished:
            with pytest.raises(ConstraintError):
                read(whole.initial(), tokens)
        else:
            assert read(whole.initial(), tokens).complete
    assert whole.feasible("", "the(")
    assert whole.feasible("", "the.cat(the")
    assert not whole.feasible("", "the.ca(the")
    assert not whole.feasible("", "th(")
    assert not whole.feasible("", "zz(")
    assert whole.feasible("", "return (")
    assert not read(whole.initial(), spelled(tiny_tokenizer, "le")).complete
    assert read(whole.initial(), spelled(tiny_tokenizer, "the")).complete


def test_numbers_and_unlisted_owners_are_unknown():
    assert ENGINE.complete("x = 12", 6) is None
    assert ENGINE.complete("nobody.kn", 9) is None
    assert ENGINE.complete("the.c", 5) == [("c", "cat")]
    assert ENGINE.complete("(th", 3) == [("th", "theory"), ("th", "the"), ("th", "there")]


def test_what_is_no_engine_or_no_mode_is_an_error(tiny_tokenizer):
    class Wrong:
        def complete(self, text, caret):
            return ["the"]

    with pytest.raises(ConstraintError, match="source, target"):
        Completion(Wrong(), tiny_tokenizer).feasible("", "th")
    with pytest.raises(InputError, match="mode"):
        Completion(ENGINE, tiny_tokenizer, mode="on")
