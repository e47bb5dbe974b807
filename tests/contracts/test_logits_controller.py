"""What every logits controller keeps to, whatever it does.

A controller is a transformers LogitsProcessor: `controller(input_ids [B, T], scores [B, V])` gives
scores of the same shape and type.
"""

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from role_cases import cases
from tokenry.core.errors import ConstraintError
from tokenry.decode.steering.base import controller


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


PROMPTS = ["the cat sat", "there is a theory", "a"]
EACH = pytest.mark.parametrize("example", cases(controller))


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


def made(example, tokenizer, prompt_length, how="steering"):
    return getattr(example(), how)(tokenizer, prompt_length, Table(len(tokenizer)))


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_keeps_shape_dtype_and_its_input(example, dtype, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    scores = torch.randn(len(ids), len(tiny_tokenizer)).to(dtype)
    before = scores.clone()
    steered = made(example, tiny_tokenizer, ids.shape[1])(ids, scores)
    assert steered.shape == scores.shape
    assert steered.dtype == dtype
    assert torch.equal(scores, before)
    assert not steered.isnan().any()


@EACH
def test_is_the_identity_when_unconstrained(example, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    process = made(example, tiny_tokenizer, ids.shape[1], "idle")
    for _, scores, steered in sampled(process, ids, len(tiny_tokenizer), steps=4):
        assert torch.equal(scores, steered)


@EACH
def test_does_something_when_constrained(example, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    process = made(example, tiny_tokenizer, ids.shape[1])
    history = sampled(process, ids, len(tiny_tokenizer), steps=4)
    assert any(not torch.equal(scores, steered) for _, scores, steered in history)


@EACH
def test_rows_are_independent(example, tiny_tokenizer):
    ids = prompt_batch(tiny_tokenizer)
    process = made(example, tiny_tokenizer, ids.shape[1])
    history = sampled(process, ids, len(tiny_tokenizer), steps=10)
    for row in range(len(ids)):
        alone = made(example, tiny_tokenizer, ids.shape[1])
        for row_ids, scores, steered in history:
            assert torch.equal(
                alone(row_ids[row : row + 1], scores[row : row + 1]), steered[row : row + 1]
            )


@EACH
def test_equal_ids_are_steered_alike_whatever_was_seen_before(example, tiny_tokenizer):
    """Beams are reordered and dropped, rows are copied, and a processor may join late."""
    ids = prompt_batch(tiny_tokenizer)
    process = made(example, tiny_tokenizer, ids.shape[1])
    history = sampled(process, ids, len(tiny_tokenizer), steps=10)
    moving = made(example, tiny_tokenizer, ids.shape[1])
    generator = torch.Generator().manual_seed(5)
    for step_ids, scores, steered in history:
        order = torch.randint(len(ids), (5,), generator=generator)
        assert torch.equal(moving(step_ids[order], scores[order]), steered[order])
        late = made(example, tiny_tokenizer, ids.shape[1])
        assert torch.equal(late(step_ids, scores), steered)


@EACH
def test_never_refuses_every_token_in_silence(example, tiny_tokenizer):
    """Logits of which few are left: something survives, or an error says that nothing does."""
    ids = prompt_batch(tiny_tokenizer)
    process = made(example, tiny_tokenizer, ids.shape[1])
    history = sampled(process, ids, len(tiny_tokenizer), steps=4)
    assert not any(steered.isneginf().all(-1).any() for _, _, steered in history)
    generator = torch.Generator().manual_seed(2)
    for step_ids, scores, _ in history:
        for _ in range(3):
            thinned = scores.masked_fill(
                torch.rand(scores.shape, generator=generator) > 2 / scores.shape[1], -torch.inf
            )
            thinned[:, 7] = 0.0
            process = made(example, tiny_tokenizer, ids.shape[1])
            try:
                steered = process(step_ids, thinned)
            except ConstraintError:
                continue
            assert not steered.isneginf().all(-1).any()
