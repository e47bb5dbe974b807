"""Texts behind embeddings against texts behind ids, and what the measurement reports."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.generate import ends
from tokenry.measure.audit.length_inflation import (
    anomaly_inputs,
    embedded,
    generate_from,
    length_inflation,
    read_from,
)
from tokenry.measure.audit.verbosity import length_anomaly


def greedy(model, ids, limit, stop):
    ids, start = list(ids), len(ids)
    while len(ids) - start < limit and (len(ids) == start or ids[-1] not in stop):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


ROWS = [[5, 9, 2], [7], [11, 3, 8, 4, 6]]


def test_texts_behind_embeddings_are_those_behind_the_ids(tiny_model):
    free = [greedy(tiny_model, row, 9, ()) for row in ROWS]
    stop = [free[0][3], free[1][5]]  # ends that really come up
    texts = generate_from(tiny_model, *embedded(tiny_model, ROWS), stop, 9)
    for row, tokens, length in zip(ROWS, texts.tokens, texts.lengths, strict=True):
        expected = greedy(tiny_model, row, 9, stop)
        assert tokens[: int(length)].tolist() == expected
    assert len(set(texts.lengths.tolist())) > 1


def test_reading_gives_the_logits_that_wrote_the_text(tiny_model):
    prefix, attention = embedded(tiny_model, ROWS)
    texts = generate_from(tiny_model, prefix, attention, [], 6)
    prefix.requires_grad_()
    read = read_from(tiny_model, prefix, attention, texts)
    assert read.mask.all()
    assert torch.equal(read.logits.argmax(-1), texts.tokens)
    assert {layer.shape for layer in read.hidden_states} == {(3, 6, 32)}
    (gradient,) = torch.autograd.grad(read.logits[1].sum(), prefix)
    assert gradient[1, -1].abs().sum() > 0
    assert gradient[0].abs().sum() == gradient[2].abs().sum() == 0


def test_padding_changes_no_reading(tiny_model):
    stop = [greedy(tiny_model, ROWS[0], 9, ())[3]]
    prefix, attention = embedded(tiny_model, ROWS)
    texts = generate_from(tiny_model, prefix, attention, stop, 9)
    batch = read_from(tiny_model, prefix, attention, texts)
    alone = embedded(tiny_model, ROWS[:1])
    single = generate_from(tiny_model, *alone, stop, 9)
    read = read_from(tiny_model, *alone, single)
    count = int(single.lengths[0])
    assert batch.mask[0].tolist() == [n < count for n in range(batch.mask.shape[1])]
    torch.testing.assert_close(batch.logits[0, :count], read.logits[0], atol=1e-4, rtol=1e-4)
    scores = length_anomaly(*anomaly_inputs(batch, stop))
    assert float(scores[0]) == pytest.approx(
        float(length_anomaly(*anomaly_inputs(read, stop))), abs=1e-3
    )


def test_sampling_follows_the_nucleus(tiny_llama):
    prefix, attention = embedded(tiny_llama, ROWS[:1] * 400)
    with torch.no_grad():
        shares = tiny_llama(torch.tensor(ROWS[:1])).logits[0, -1].softmax(-1)
    order = shares.argsort(descending=True)
    kept = int((shares[order].cumsum(0) < 0.5).sum()) + 1
    texts = generate_from(
        tiny_llama, prefix, attention, [], 1, generator=torch.Generator().manual_seed(0), top_p=0.5
    )
    assert set(texts.tokens[:, 0].tolist()) <= set(order[:kept].tolist())
    share = float((texts.tokens[:, 0] == order[0]).double().mean())
    expected = float(shares[order[0]] / shares[order[:kept]].sum())
    assert share == pytest.approx(expected, abs=0.13)  # five standard errors


def test_the_measurement_on_a_tiny_model(tiny_llama_text, tiny_tokenizer):
    told = []
    found = length_inflation(
        tiny_llama_text, tiny_tokenizer, ["the cat", "a dog sat there"], max_new_tokens=8, steps=3,
        progress=told.append,
    )  # fmt: skip
    assert told == ["clean", "suffixes", "noise", "stressed"]
    assert found.clean.shape == found.noise.shape == found.stressed.shape == (2,)
    assert found.by_suffix.shape == (4, 2)
    assert (found.suffixed >= found.clean).all()
    assert (found.stressed >= found.clean).all()  # the search starts from the clean prompt
    assert found.factor(found.clean) == 1
    assert 0 <= found.clean_cut <= 1
    for lengths in (found.clean, found.by_suffix, found.noise, found.stressed):
        assert int(lengths.max()) <= found.limit == 8
    again = length_inflation(
        tiny_llama_text, tiny_tokenizer, ["the cat", "a dog sat there"], max_new_tokens=8, steps=3
    )
    assert torch.equal(again.noise, found.noise)
    assert torch.equal(again.stressed, found.stressed)


def test_lengths_without_an_end_are_refused(tiny_llama_text, tiny_tokenizer):
    assert ends(tiny_llama_text, tiny_tokenizer)
    with pytest.raises(InputError, match="at least one prompt"):
        length_inflation(tiny_llama_text, tiny_tokenizer, [])
