"""ASAp as a logits processor: what it learns, in batches, in generate, and at dead ends."""

import math

import pytest
import torch

from tokenry.core.errors import ConstraintError, ShapeError
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.steering.asap import ASApProcessor
from tokenry.lab.token_rule import OddSum
from tokenry.tasks.worlds.toy_lm import ToyLM, odd_sum

MODEL = ToyLM(vocab_size=4, order=1, eos=0, scale=1.5, seed=6)
LIMIT = 5
_, LOG_Z = MODEL.conditional(odd_sum, LIMIT)
PROMPT = [2, 2]


def generated(process, rows, generator, limit=LIMIT):
    """A toy `generate`: rows grow together, ended ones are padded."""
    ids = torch.tensor([PROMPT] * rows)
    for _ in range(limit):
        texts = [row[len(PROMPT) :] for row in ids.tolist()]
        scores = torch.stack([MODEL.logits(text) for text in texts])
        drawn = torch.multinomial(process(ids, scores).softmax(-1), 1, generator=generator)
        ended = torch.tensor([0 in text for text in texts])
        ids = torch.cat([ids, drawn.masked_fill(ended[:, None], 0)], 1)
    return [tuple(text[: text.index(0)]) for text in ids[:, len(PROMPT) :].tolist() if 0 in text]


@pytest.mark.parametrize("rows", [1, 4])
def test_it_comes_close_to_the_target_where_masking_does_not(rows):
    """The bound on the probability of the constraint comes down to it, and all texts are valid."""
    generator = torch.Generator().manual_seed(1)
    process = ASApProcessor(OddSum(), len(PROMPT), max_new_tokens=LIMIT, when_empty="end")
    for _ in range(200 // rows):
        generated(process, rows, generator)
    root = process.memory[tuple(PROMPT)]
    assert math.exp(LOG_Z) * (1 - 1e-6) <= root.bound < 1.15 * math.exp(LOG_Z)
    texts = [text for _ in range(50) for text in generated(process, rows, generator)]
    assert sum(map(odd_sum, texts)) > 0.95 * len(texts)


def test_memory_goes_from_one_processor_to_another():
    generator = torch.Generator().manual_seed(2)
    old = ASApProcessor(OddSum(), len(PROMPT), max_new_tokens=LIMIT, when_empty="end")
    generated(old, 8, generator)
    new = ASApProcessor(OddSum(), len(PROMPT), max_new_tokens=LIMIT, memory=old.memory)
    scores = MODEL.logits([])[None]
    ids = torch.tensor([PROMPT])
    fresh = ASApProcessor(OddSum(), len(PROMPT), max_new_tokens=LIMIT)
    assert torch.equal(new(ids, scores), old(ids, scores))
    assert not torch.equal(new(ids, scores), fresh(ids, scores))


def test_in_generate_on_padded_prompts(tiny_llama_text, tiny_tokenizer):
    grammar = Grammar.regex("[a-c]{1,2}", tiny_tokenizer)
    tiny_tokenizer.padding_side = "left"
    inputs = tiny_tokenizer(["the cat", "a dog sat there"], return_tensors="pt", padding=True)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    width = inputs["input_ids"].shape[1]
    process = ASApProcessor(grammar, width, max_new_tokens=3)
    torch.manual_seed(0)
    for _ in range(4):
        ids = tiny_llama_text.generate(
            **inputs, do_sample=True, top_k=0, max_new_tokens=3, logits_processor=[process]
        )
        for text in tiny_tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True):
            assert 1 <= len(text) <= 2
            assert set(text) <= set("abc")
    assert len(process.memory) == 2
    assert all(root.bound < 1.0 for root in process.memory.values())


def test_a_dead_end_is_reported_and_then_avoided():
    """One token of room, and the empty text may not end."""
    process = ASApProcessor(OddSum(), len(PROMPT), max_new_tokens=1)
    ids, scores = torch.tensor([PROMPT]), MODEL.logits([])[None]
    with pytest.raises(ConstraintError, match="row 0"):
        process(ids, scores)
    assert process.memory[tuple(PROMPT)].bound == 0.0
    ending = ASApProcessor(OddSum(), len(PROMPT), max_new_tokens=1, when_empty="end")
    steered = ending(ids, scores)
    assert steered.softmax(-1).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    after = torch.cat([ids, torch.tensor([[0]])], 1)
    assert torch.equal(ending(after, scores), scores)  # the text has ended


def test_tokens_that_something_else_wrote_are_an_error():
    process = ASApProcessor(OddSum(), len(PROMPT))
    with pytest.raises(ConstraintError, match="token 3, 1 tokens after the prompt"):
        process(torch.tensor([[*PROMPT, 1, 3]]), MODEL.logits([1, 3])[None])
    with pytest.raises(ShapeError, match="1 rows of ids"):
        process(torch.tensor([PROMPT]), torch.zeros(2, 4))
