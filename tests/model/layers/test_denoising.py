"""A masked model as an encoder and a bidirectional decoder."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from tokenry.core.errors import ModelError, ShapeError
from tokenry.model.layers.denoising import DenoisingSeq2Seq, Padded

V, PAD, MASK = 16, 0, 1
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": PAD,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
}  # fmt: skip


def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return DenoisingSeq2Seq.from_masked_lm(bert(), 8, mask_id=MASK).eval()


def test_both_halves_begin_as_the_masked_model(model):
    theirs = bert().state_dict()
    encoder, decoder = model.encoder.state_dict(), model.decoder.state_dict()
    for name, weight in theirs.items():
        assert torch.equal(decoder[name], weight)
        if name.startswith("bert."):
            assert torch.equal(encoder[name.removeprefix("bert.")], weight)
    for name, weight in decoder.items():
        if ".crossattention." in name:
            assert torch.equal(weight, theirs[name.replace(".crossattention.", ".attention.")])


def test_the_decoder_sees_both_sides_and_the_source(model):
    source = Padded.of([[5, 6, 7, 8]])
    mask = torch.ones(1, 5).bool()
    noisy = torch.tensor([[2, 3, 4, 5, 6]])
    encoded = model.encode(source)
    logits = model(noisy, mask, encoded)
    later = model(torch.tensor([[2, 3, 4, 5, 9]]), mask, encoded)
    assert not torch.allclose(logits[:, 0], later[:, 0], atol=1e-3)
    other = model(noisy, mask, model.encode(Padded.of([[5, 6, 7, 9]])))
    assert not torch.allclose(logits, other, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_token_with_the_pad_id_shifts_no_position(kind):
    """Noise may draw any id: with one row of the embedding for both, the pad id and 7 are alike."""
    torch.manual_seed(2)
    options = {**SIZES, "pad_token_id": 1}
    masked = {
        "bert": lambda: BertForMaskedLM(BertConfig(**options)),
        "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**options)),
    }[kind]()
    table = masked.get_input_embeddings().weight
    with torch.no_grad():
        table[1] = table[7]
    found = DenoisingSeq2Seq.from_masked_lm(masked, 8).eval()
    mask = torch.ones(1, 5).bool()
    logits = [
        found(torch.tensor([[2, t, 4, 5, 6]]), mask, found.encode(Padded.of([[5, t, 3, 8]])))
        for t in (1, 7)
    ]
    torch.testing.assert_close(*logits, **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_on_either_side_changes_nothing(kind):
    torch.manual_seed(2)
    masked = (
        bert()
        if kind == "bert"
        else RobertaForMaskedLM(RobertaConfig(**{**SIZES, "pad_token_id": 1})).eval()
    )
    model = DenoisingSeq2Seq.from_masked_lm(masked, 8).eval()
    rows, targets = [[5, 6, 7], [8, 9, 10, 11, 12]], [[3, 4], [6, 7, 8, 9]]
    right = Padded.of(rows)
    left = Padded(
        torch.tensor([[9, 9, 5, 6, 7], [8, 9, 10, 11, 12]]),
        torch.tensor([[False, False, True, True, True], [True] * 5]),
    )
    with torch.no_grad():
        a, b = model.encode(right), model.encode(left)
        torch.testing.assert_close(a.states[a.mask], b.states[b.mask], **CLOSE)
        target = Padded.of(targets)
        together = model(target.ids, target.mask, a)
        for row, (source, text) in enumerate(zip(rows, targets, strict=True)):
            one = Padded.of([text])
            alone = model(one.ids, one.mask, model.encode(Padded.of([source])))
            torch.testing.assert_close(together[row, : len(text)], alone[0], **CLOSE)


def test_what_does_not_fit_is_said():
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    with pytest.raises(ShapeError, match="both be"):
        Padded(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ModelError, match="DistilBert"):
        DenoisingSeq2Seq.from_masked_lm(
            DistilBertForMaskedLM(DistilBertConfig(dim=16, n_heads=2, n_layers=1, vocab_size=8))
        )
