"""Filling a hole with a completion engine, on a tiny random model."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.constraints.completion import Completion
from tokenry.decode.constraints.completion_engine import NamesEngine
from tokenry.decode.constraints.completion_memo import Memo
from tokenry.decode.generate import generate
from tokenry.decode.repilot import (
    FirstFeasible,
    complete_code,
    constraint_text,
    drawn,
    inserted,
    line_ends,
    replay,
    spell,
)
from tokenry.decode.samplers.request import Request
from tokenry.text.vocabulary import token_bytes

NAMES = {"": ["theory", "cat", "length", "lengthSquared", "café"], "cat": ["mat", "dog"]}
ENGINE = NamesEngine(NAMES)


@pytest.fixture(scope="module")
def loaded(tiny_llama_text, tiny_tokenizer):
    return tiny_llama_text, tiny_tokenizer


def test_without_an_engine_it_is_plain_sampling(loaded):
    found = complete_code(loaded, "x = ", top_k=0, samples=3, max_new_tokens=8, seed=5)
    unknowing = complete_code(
        loaded, "x = ", "", NamesEngine({}), top_k=0, samples=3, max_new_tokens=8, seed=5
    )
    assert found.ids == unknowing.ids
    assert found.pruned == unknowing.pruned
    assert (found.failed, found.forced) == (0, 0)


@pytest.mark.parametrize("mode", ["constrain", "insert", "off"])
@pytest.mark.parametrize("whole_names", [False, True])
def test_every_text_satisfies_the_constraint(loaded, mode, whole_names):
    found = complete_code(
        loaded, "x = ", "\n", ENGINE, samples=4, max_new_tokens=12, mode=mode, top_k=0,
        whole_names=whole_names, seed=1,
    )  # fmt: skip
    constraint = Completion(
        ENGINE, loaded[1], prefix="x = ", suffix="\n", mode=mode, whole_names=whole_names
    )
    for row, text, finished in zip(found.ids, found.texts, found.finished, strict=True):
        state = replay(constraint, row)  # raises where a token is not allowed
        assert state.before == "x = " + text
        assert len(row) <= 12
        assert not finished or state.complete
    assert found.pruned > 0
    assert found.calls > 0
    assert mode != "off" or found.forced == 0


class Wanting:
    """A decoding state that wants the bytes of one text, one after the other, and then the end."""

    def __init__(self, tokenizer, text, read=0):
        self.tokenizer, self.text, self.read, self.passes = tokenizer, text, read, []

    @property
    def logits(self):
        pieces = {piece: token for token, piece in enumerate(token_bytes(self.tokenizer))}
        logits = torch.full((1, len(self.tokenizer)), -50.0)
        rest = self.text[self.read :]
        logits[0, pieces[rest[:1]] if rest else self.tokenizer.eos_token_id] = 0.0
        return logits

    def append(self, tokens):
        self.passes.append(tokens.shape[-1])
        self.read += sum(len(token_bytes(self.tokenizer)[t]) for t in tokens.view(-1).tolist())

    def select(self, index):
        pass

    def copy(self):
        return self


def test_insertion_writes_what_is_sure_in_one_pass(tiny_tokenizer):
    text = b" cat.extraordinarily_long"
    engine = NamesEngine({"": ["cat", "cats"], "cat": ["extraordinarily_long"]})
    passes = {}
    for mode, run in (("insert", inserted), ("constrain", drawn)):
        decoding = Wanting(tiny_tokenizer, text)
        constraint = Completion(engine, tiny_tokenizer, prefix="x =", mode=mode, keywords=())
        request = Request(decoding, constraint, max_new_tokens=40, must_end=False)
        rows = run(request, tiny_tokenizer, 1)
        assert constraint_text(constraint, rows.ids[0]).encode() == text
        assert rows.finished == [True]
        passes[mode] = decoding.passes
    name = len(spell(tiny_tokenizer, b"extraordinarily_long"))
    tail = len(spell(tiny_tokenizer, b"at"))
    assert passes["insert"] == [1, 1, tail, 1, name]  # " ", "c", "at", ".", the name
    assert passes["constrain"] == [1] * len(text)


def test_what_the_model_would_not_write_is_written_down(tiny_tokenizer):
    """The only continuation has no mass under the model: it comes in the tokenizer's tokens."""
    engine = NamesEngine({"": ["cat", "cats"]})
    constraint = Completion(engine, tiny_tokenizer, prefix="x =", keywords=())
    only = [lambda ids, logits: logits.masked_fill(logits < 0, -torch.inf)]
    request = Request(
        Wanting(tiny_tokenizer, b" c("),
        constraint,
        processors=only,
        max_new_tokens=9,
        must_end=False,
    )
    rows = drawn(request, tiny_tokenizer, 1)
    text = constraint_text(constraint, rows.ids[0])
    assert text.startswith(" cat")
    assert rows.dead == []


def test_a_memory_saves_calls(loaded):
    memo = Memo()
    options = {"samples": 3, "max_new_tokens": 10, "seed": 2, "top_k": 0}
    first = complete_code(loaded, "x = ", "", ENGINE, memo=memo, **options)
    again = complete_code(loaded, "x = ", "", ENGINE, memo=memo, **options)
    assert first.calls > 0
    assert again.calls == 0
    assert again.ids == first.ids
    assert again.remembered > first.remembered


def test_steps_follow_the_restricted_distribution(loaded):
    """Draws of one step against p restricted to the feasible tokens."""
    draws = 6000
    state = Completion(ENGINE, loaded[1]).initial()
    logprobs = torch.randn(320, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    steps = FirstFeasible().steps(
        logprobs.expand(draws, -1), [state] * draws, torch.Generator().manual_seed(1)
    )
    exact = torch.where(state.mask(), logprobs.double().exp(), 0.0)
    exact /= exact.sum()
    found = torch.bincount(torch.tensor([step.token for step in steps]), minlength=320) / draws
    # Hoeffding over 320 tokens, a false alarm in 10^7 runs
    assert float((found - exact).abs().max()) < 0.0435
    assert not found[exact == 0].any()


def test_a_dead_end_fails_the_sample_and_is_not_walked_into_again(tiny_tokenizer):
    """A model that can only write "zz" after a space, which the engine refuses."""
    for mode, run in (("insert", inserted), ("constrain", drawn)):
        constraint = Completion(ENGINE, tiny_tokenizer, prefix="x =", mode=mode)
        decoding = Wanting(tiny_tokenizer, b" zz")
        only = [lambda ids, logits: logits.masked_fill(logits < 0, -torch.inf)]
        request = Request(decoding, constraint, processors=only, must_end=False)
        rows = run(request, tiny_tokenizer, 1)
        (space,) = spell(tiny_tokenizer, b" ")
        assert rows.dead == [[space]]
        assert constraint.initial().allows(space)
        constraint.memo.bury(("x = ", ""))
        assert not constraint.initial().allows(space)


def test_the_model_may_read_less_than_the_engine(loaded):
    class Seen:
        texts = ()

        def complete(self, text, caret):
            self.texts = (*self.texts, text[:caret])

    engine, long = Seen(), "the cat sat on the mat\n" * 3 + "x = "
    options = {"max_new_tokens": 6, "top_k": 0, "samples": 2}
    found = complete_code(loaded, long, "", engine, context_tokens=3, **options)
    short = loaded[1].decode(loaded[1](long)["input_ids"][-3:])
    assert found.ids == complete_code(loaded, short, **options).ids
    assert all(text.startswith(long) for text in engine.texts)


def test_lines_end_with_the_line(loaded):
    tokenizer = loaded[1]
    lines = line_ends(tokenizer)
    assert all(b"\n" in token_bytes(tokenizer)[token] for token in lines)
    found = complete_code(loaded, "x = ", max_new_tokens=20, samples=6, eos=lines, top_k=0)
    for row in found.ids:
        assert not set(row) & set(lines)


def test_the_same_constraint_samples_weighted_texts(loaded):
    tokenizer = loaded[1]
    constraint = Completion(ENGINE, tokenizer, prefix="x = ")
    samples = generate(loaded, "x = ", constraint, particles=3, max_new_tokens=6, must_end=False)
    for row in samples.ids:
        replay(constraint, row)
    assert samples.log_evidence <= 0.0


def test_spelling_takes_any_bytes(tiny_tokenizer):
    spelling = token_bytes(tiny_tokenizer)
    for text in (b"", b"lengthSquared", "café東".encode(), "é".encode()[1:] + b"x"):
        assert b"".join(spelling[token] for token in spell(tiny_tokenizer, text)) == text


def test_impossible_settings_are_refused(loaded, tiny_tokenizer):
    with pytest.raises(InputError, match="samples"):
        complete_code(loaded, "x", samples=0)
    with pytest.raises(InputError, match="empty"):
        complete_code(loaded, "")
    with pytest.raises(InputError, match="mode"):
        complete_code(loaded, "x", "", ENGINE, mode="always")
