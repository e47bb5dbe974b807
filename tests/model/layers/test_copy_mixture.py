"""The copy mixture, annotated sources and the translator around them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tokenry.core.errors import InputError, ShapeError
from tokenry.lab.toy_encoder_decoder import joined, small_decoder, small_encoder
from tokenry.model.encoder_decoder import read
from tokenry.model.layers.copy_mixture import (
    Annotated,
    CopyGate,
    DictionaryTranslator,
    annotate_with_candidates,
    candidate_embeddings,
    copy_mixture,
)

SEP, ISEP, EOS, PAD = 1, 2, 3, 0


def random_mixture(seed, B=2, T=3, V=7, S=5, **options):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, T, V, generator=generator)
    attention = torch.randn(B, T, S, generator=generator).softmax(-1)
    ids = torch.randint(V, (B, S), generator=generator)
    copyable = torch.rand(B, S, generator=generator) < 0.5
    gate = torch.rand(B, T, generator=generator)
    return logits, attention, ids, copyable, gate


def test_the_worked_example():
    logits = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]).log()
    attention = torch.tensor([[[0.2, 0.3, 0.5]]])
    ids, copyable = torch.tensor([[2, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
    found = copy_mixture(logits, attention, ids, copyable, torch.tensor([[0.5]]))
    assert torch.allclose(found.exp(), torch.tensor([0.05, 0.1, 0.4, 0.45]), atol=1e-6)


@given(st.integers(0, 99))
def test_is_the_written_sum_and_adds_up_to_one(seed):
    logits, attention, ids, copyable, gate = random_mixture(seed)
    found = copy_mixture(logits, attention, ids, copyable, gate).exp()
    assert torch.allclose(found.sum(-1), torch.ones(2, 3), atol=1e-5)
    for b in range(2):
        places = copyable[b].nonzero()[:, 0].tolist()
        for t in range(3):
            g = gate[b, t] if places else 1.0
            expected = g * logits[b, t].softmax(-1)
            total = sum(attention[b, t, j] for j in places)
            for j in places:
                expected[ids[b, j]] += (1 - g) * attention[b, t, j] / total
            assert torch.allclose(found[b, t], expected, atol=1e-5)


def test_an_open_and_a_closed_gate():
    logits, attention, ids, copyable, gate = random_mixture(1)
    copyable[:] = torch.tensor([True, False, True, False, False])
    plain = copy_mixture(logits, attention, ids, copyable, torch.ones_like(gate))
    assert torch.allclose(plain, logits.log_softmax(-1), atol=1e-6)
    copied = copy_mixture(logits, attention, ids, copyable, torch.zeros_like(gate)).exp()
    for b in range(2):
        offered = sorted({int(ids[b, 0]), int(ids[b, 2])})
        assert torch.allclose(copied[b, :, offered].sum(-1), torch.ones(3), atol=1e-6)


def test_without_candidates_the_gate_does_not_matter():
    logits, attention, ids, copyable, gate = random_mixture(2)
    copyable[0], copyable[1, 0] = False, True
    found = copy_mixture(logits, attention, ids, copyable, gate)
    assert torch.equal(found[0], logits[0].log_softmax(-1))
    assert not torch.allclose(found[1], logits[1].log_softmax(-1))


@pytest.mark.parametrize("attended", [0.0, 1e-42, 1e-30])
@pytest.mark.parametrize("gated", [0.0, 0.3])
def test_it_adds_up_to_one_where_candidates_have_no_attention(attended, gated):
    logits, attention, ids, copyable, gate = random_mixture(6)
    copyable[:] = torch.tensor([True, False, True, False, False])
    attention[0, 1] = torch.tensor([attended, 0.5, 0.0, 0.5, 0.0])
    attention.requires_grad_()
    gate = torch.full_like(gate, gated)
    found = copy_mixture(logits, attention, ids, copyable, gate)
    assert torch.allclose(found.exp().sum(-1), torch.ones(2, 3), atol=1e-5)
    if attended < 1e-38:  # nothing to copy: the plain model
        assert torch.allclose(found[0, 1], logits[0, 1].log_softmax(-1))
    (gradient,) = torch.autograd.grad(found.logsumexp(-1).sum(), attention)
    assert gradient.isfinite().all()


def test_blocks_of_their_own_add_up_to_their_number():
    logits, attention, ids, copyable, gate = random_mixture(3)
    copyable[:] = torch.tensor([True, True, True, True, False])
    blocks = torch.tensor([[1, 1, 2, 2, 0], [1, 2, 3, 3, 0]])
    closed = torch.zeros_like(gate)
    found = copy_mixture(logits, attention, ids, copyable, closed, blocks=blocks).exp().sum(-1)
    assert torch.allclose(found, torch.tensor([[2.0] * 3, [3.0] * 3]), atol=1e-5)
    one = torch.ones_like(blocks)
    together = copy_mixture(logits, attention, ids, copyable, gate, blocks=one)
    assert torch.allclose(together, copy_mixture(logits, attention, ids, copyable, gate))


@pytest.mark.parametrize("closed", [0.0, 0.5, 1.0])
def test_gradients_are_finite_and_reach_attention_and_gate(closed):
    logits, attention, ids, copyable, gate = random_mixture(4)
    gate = torch.full_like(gate, closed)
    inputs = [logits.requires_grad_(), attention.requires_grad_(), gate.requires_grad_()]
    target = torch.randint(7, (2, 3), generator=torch.Generator().manual_seed(0))
    loss = F.nll_loss(copy_mixture(*inputs[:2], ids, copyable, gate).flatten(0, 1), target.view(-1))
    gradients = torch.autograd.grad(loss, inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_gradients_are_those_of_finite_differences():
    _, _, ids, copyable, _ = random_mixture(5)
    copyable[:, 0] = True
    logits, attention, _, _, gate = (
        x.double() if x.is_floating_point() else x for x in random_mixture(5)
    )

    def objective(scale):
        shifted = attention + scale * F.one_hot(torch.tensor(0), 5)
        return copy_mixture(logits, shifted, ids, copyable, gate)[:, :, 1].sum()

    scale = torch.zeros((), dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(scale), scale)
    step = 1e-2
    numeric = (objective(torch.tensor(step)) - objective(torch.tensor(-step))) / (2 * step)
    assert float(gradient) == pytest.approx(float(numeric), rel=2e-2)


PHRASES = [[[11], [12, 13]], [[14]]]


def annotated(source=(5, 6, 7), phrases=PHRASES, **options):
    marks = {"sep": SEP, "isep": ISEP, "eos": EOS, "first_position": 10}
    return annotate_with_candidates(source, phrases, **(marks | options))


def test_the_layout_of_an_annotated_source():
    made = annotated()
    assert made.ids.tolist() == [5, 6, 7, SEP, 11, ISEP, 12, 13, SEP, 14, EOS]
    assert made.segment_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 0]
    assert made.position_ids.tolist() == [0, 1, 2, 10, 11, 12, 13, 14, 10, 11, 3]
    assert made.ids[made.copyable].tolist() == [11, 12, 13, 14]


def test_without_phrases_it_is_the_plain_source():
    made = annotated(phrases=[])
    assert made.ids.tolist() == [5, 6, 7, EOS]
    assert made.segment_ids.tolist() == [0] * 4
    assert made.position_ids.tolist() == [0, 1, 2, 3]
    assert not made.copyable.any()


def test_bad_sources_are_named():
    with pytest.raises(InputError, match="3 tokens reaches the blocks' first position, 3"):
        annotated(first_position=3)
    with pytest.raises(InputError, match="phrase 2 needs candidates"):
        annotated(phrases=[[[4]], []])
    with pytest.raises(InputError, match="phrase 1 needs candidates"):
        annotated(phrases=[[[]]])
    logits, attention, ids, copyable, gate = random_mixture(0)
    with pytest.raises(ShapeError, match=r"\[2, 2\] for \[2, 3\]"):
        copy_mixture(logits, attention, ids, copyable, gate[:, :2])


def translator(**options):
    torch.manual_seed(0)
    model = joined(small_encoder(20, 24, 0, segments=4), small_decoder(20, 16, 0))
    return DictionaryTranslator(model, **options).eval()


DECODER = torch.tensor([[4, 11, 8]])


@torch.no_grad()
def test_the_translator_is_a_distribution_and_does_not_see_padding():
    made = translator()
    alone, mask = Annotated.batch([annotated()], PAD)
    found = made(alone, mask, DECODER)
    assert torch.allclose(found.exp().sum(-1), torch.ones(1, 3), atol=1e-5)
    rows, mask = Annotated.batch([annotated(), annotated((8, 9, 8, 9, 8, 9), PHRASES * 1)], PAD)
    both = made(rows, mask, DECODER.expand(2, -1))
    assert torch.allclose(both[:1], found, atol=1e-5)


@torch.no_grad()
def test_a_source_without_matches_gives_the_plain_model_and_its_loss():
    made = translator()
    rows, mask = Annotated.batch([annotated(phrases=[])], PAD)
    found = made(rows, mask, DECODER)
    plain = read(made.model, torch.tensor([[5, 6, 7, EOS]]), DECODER).logits.log_softmax(-1)
    assert torch.allclose(found, plain, atol=1e-6)


@torch.no_grad()
def test_the_order_of_blocks_matters_through_segments_alone():
    made = translator()
    for name, table in made.model.encoder.embeddings.named_children():
        if name == "token_type_embeddings":
            table.weight[1:] = table.weight[1]  # the same segment for every block
    states = []
    for phrases in (PHRASES, PHRASES[::-1]):
        rows, mask = Annotated.batch([annotated(phrases=phrases)], PAD)
        states.append(
            made.model.encoder(
                inputs_embeds=candidate_embeddings(made.model, rows),
                attention_mask=mask,
                token_type_ids=rows.segment_ids,
                position_ids=rows.position_ids,
            )[0]
        )
    assert torch.allclose(states[0][:, :3], states[1][:, :3], atol=1e-5)
    assert torch.allclose(states[0][:, -1], states[1][:, -1], atol=1e-5)


@torch.no_grad()
def test_blocks_are_embedded_by_the_decoder():
    made = translator()
    rows, _ = Annotated.batch([annotated()], PAD)
    found = candidate_embeddings(made.model, rows)[0]
    encoder = made.model.encoder.get_input_embeddings().weight
    decoder = made.model.decoder.get_input_embeddings().weight
    for place, token in enumerate(rows.ids[0].tolist()):
        table = decoder if rows.segment_ids[0, place] else encoder
        assert torch.equal(found[place], table[token])


@torch.no_grad()
def test_a_translator_that_does_not_copy_is_the_softmax_of_its_model():
    made = translator(copying=False)
    assert made.gate is None
    rows, mask = Annotated.batch([annotated()], PAD)
    assert torch.allclose(made(rows, mask, DECODER).exp().sum(-1), torch.ones(1, 3), atol=1e-5)


def test_the_gate_is_the_equation():
    made = translator()
    reading = read(made.model, torch.tensor([[5, 6, 7, EOS]]), DECODER)
    gate = CopyGate(64)
    context = reading.attentions[-1][0, 1] @ reading.encoder[0]
    value = gate.weigh.weight[0] @ torch.cat([context, reading.decoder[0, 1]]) + gate.weigh.bias
    assert torch.allclose(gate(reading)[0, 1], torch.sigmoid(value), atol=1e-6)


def test_everything_is_trained():
    made = translator().train()
    rows, mask = Annotated.batch([annotated()], PAD)
    made(rows, mask, DECODER)[0, :, 11].sum().backward()
    assert made.gate.weigh.weight.grad.abs().sum() > 0
    assert made.model.decoder.get_input_embeddings().weight.grad[12].abs().sum() > 0
    assert made.model.encoder.get_input_embeddings().weight.grad[5].abs().sum() > 0
