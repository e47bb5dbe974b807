"""What every logits controller keeps to, whatever it does; new ones add a line to CASES.

A controller is a transformers LogitsProcessor: `controller(input_ids [B, T], scores [B, V])` gives
scores of the same shape and type. A case builds it, constrained or not, for a tokenizer and a known
prompt length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaConfig, LogitsProcessor, PreTrainedModel

from tokenry.core.errors import ConstraintError
from tokenry.decode.steering.base import controller

Build = Callable[[Any, int], LogitsProcessor]


class Case(NamedTuple):
    constrained: Build
    unconstrained: Build


def word_filter(tokenizer, prompt_length):
    from tokenry.decode.steering.word_filters import Length, WithoutLetters

    filter = WithoutLetters("e") | Length(2, 2)
    return controller["ctgs"](filter, tokenizer, prompt_length=prompt_length)


def ngram_style(tokenizer, strength):
    from tokenry.text.ngrams import NGramModel

    texts = ["the cat sat on the mat", "there is a theory that they gather"]
    ngrams = NGramModel.fit([tokenizer(text)["input_ids"] for text in texts], len(tokenizer))
    pad = tokenizer.pad_token_id
    return controller["ngram-style"](ngrams, strength, pad_token_id=pad)


def posterior(tokenizer, epsilon):
    return controller["posterior"](torch.linspace(-1, 1, len(tokenizer)), epsilon=epsilon)


def stopping(tokenizer, prompt_length):
    return controller["stopping"](
        [tokenizer.eos_token_id], bias=-1.0, floor=0.3, start=2, prompt_length=prompt_length
    )


def asap(tokenizer, prompt_length):
    from tokenry.decode.constraints.grammar import Grammar

    return controller["asap"](Grammar.regex("[a-z ]*", tokenizer), prompt_length)


def ending(tokenizer, prompt_length, minimum):
    from tokenry.decode.constraints.length import Length

    return controller["ending"](Length(minimum, None, tokenizer), [0] * prompt_length)


class Table(PreTrainedModel):
    """A model whose logits depend on the last token alone, the same in any batch."""

    config_class = LlamaConfig

    def __init__(self, size):
        super().__init__(LlamaConfig(vocab_size=size, num_hidden_layers=1))
        generator = torch.Generator().manual_seed(9)
        self.table = torch.nn.Parameter(torch.randn(size, size, generator=generator))

    def forward(self, input_ids, **_):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.table[input_ids])


def contrast(tokenizer, prompt_length):
    model = Table(len(tokenizer))
    return controller["uscd"](model, [5, 6], prompt_length=prompt_length)


CASES: dict[str, Case] = {
    "uscd": Case(contrast, lambda *_: controller["uscd"](None, None)),
    "asap": Case(asap, lambda _, prompt_length: controller["asap"](None, prompt_length)),
    "ctgs": Case(word_filter, lambda tokenizer, _: controller["ctgs"](None, tokenizer)),
    "ngram-style": Case(lambda t, _: ngram_style(t, 0.4), lambda t, _: ngram_style(t, 0.0)),
    "posterior": Case(lambda t, _: posterior(t, -0.3), lambda t, _: posterior(t, 1.0)),
    "ending": Case(lambda t, n: ending(t, n, 2), lambda t, n: ending(t, n, 99)),
    "stopping": Case(stopping, lambda t, _: controller["stopping"]([t.eos_token_id])),
}
PROMPTS = ["the cat sat", "there is a theory", "a"]
EACH = pytest.mark.parametrize("key", sorted(CASES))


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors are slower, not faster, on several threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt_batch(tokenizer) -> torch.Tensor:
    tokenizer.padding_side = "left"
    return tokenizer(PROMPTS, return_tensors="pt", padding=True)["input_ids"]


def sampled(process, ids, width, steps, seed=0):
    """Runs a controller on random logits; gives every step's ids, logits in and logits out."""
    generator = torch.Generator().manual_seed(seed)
    history = []
    for _ in range(steps):
        scores = torch.randn(len(ids), width, generator=generator)
        steered = process(ids, scores.clone())
        history.append((ids, scores, steered))
        choice = torch.multinomial(steered.softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, choice], dim=1)
    return history


def test_every_controller_has_a_case():
    assert set(controller.names()) == set(CASES)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_keeps_shape_dtype_and_its_input(key, dtype, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    scores = torch.randn(len(ids), len(tiny_tokenizer)).to(dtype)
    before = scores.clone()
    steered = CASES[key].constrained(tiny_tokenizer, ids.shape[1])(ids, scores)
    assert steered.shape == scores.shape
    assert steered.dtype == dtype
    assert torch.equal(scores, before)
    assert not steered.isnan().any()


@EACH
def test_is_the_identity_when_unconstrained(key, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    process = CASES[key].unconstrained(tiny_tokenizer, ids.shape[1])
    for _, scores, steered in sampled(process, ids, len(tiny_tokenizer), steps=4):
        assert torch.equal(scores, steered)


@EACH
def test_does_something_when_constrained(key, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    process = CASES[key].constrained(tiny_tokenizer, ids.shape[1])
    history = sampled(process, ids, len(tiny_tokenizer), steps=4)
    assert any(not torch.equal(scores, steered) for _, scores, steered in history)


@EACH
def test_rows_are_independent(key, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    build = CASES[key].constrained
    history = sampled(build(tiny_tokenizer, ids.shape[1]), ids, len(tiny_tokenizer), steps=10)
    for row in range(len(ids)):
        alone = build(tiny_tokenizer, ids.shape[1])
        for row_ids, scores, steered in history:
            assert torch.equal(
                alone(row_ids[row : row + 1], scores[row : row + 1]), steered[row : row + 1]
            )


@EACH
def test_equal_ids_are_steered_alike_whatever_was_seen_before(key, tiny_tokenizer):
    """Beams are reordered and dropped, rows are copied, and a processor may join late."""
    ids = prompt_batch(tiny_tokenizer)
    build = CASES[key].constrained
    history = sampled(build(tiny_tokenizer, ids.shape[1]), ids, len(tiny_tokenizer), steps=10)
    moving = build(tiny_tokenizer, ids.shape[1])
    generator = torch.Generator().manual_seed(5)
    for step_ids, scores, steered in history:
        order = torch.randint(len(ids), (5,), generator=generator)
        assert torch.equal(moving(step_ids[order], scores[order]), steered[order])
        late = build(tiny_tokenizer, ids.shape[1])
        assert torch.equal(late(step_ids, scores), steered)


@EACH
def test_never_refuses_every_token_in_silence(key, tiny_tokenizer):
    """Logits of which few are left: something survives, or an error says that nothing does."""
    ids = prompt_batch(tiny_tokenizer)
    build = CASES[key].constrained
    history = sampled(build(tiny_tokenizer, ids.shape[1]), ids, len(tiny_tokenizer), steps=4)
    assert not any(steered.isneginf().all(-1).any() for _, _, steered in history)
    generator = torch.Generator().manual_seed(2)
    raised = 0
    for step_ids, scores, _ in history:
        for _ in range(3):
            thinned = scores.masked_fill(
                torch.rand(scores.shape, generator=generator) > 2 / scores.shape[1], -torch.inf
            )
            thinned[:, 7] = 0.0
            process = build(tiny_tokenizer, ids.shape[1])
            try:
                steered = process(step_ids, thinned)
            except ConstraintError:
                raised += 1
            else:
                assert not steered.isneginf().all(-1).any()
    assert raised or key != "ctgs"
