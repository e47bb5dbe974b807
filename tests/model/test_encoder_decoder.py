"""Reading encoder-decoders of three families."""

import pytest
import torch

from tokenry.core.errors import ModelError, ShapeError
from tokenry.lab.toy_encoder_decoder import joined, small_decoder, small_encoder
from tokenry.model.encoder_decoder import read


def bert():
    return joined(small_encoder(20, 32, 0), small_decoder(20, 32, 0))


def bart(attention="eager"):
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
    config = BartConfig(vocab_size=20, init_std=0.5, attn_implementation=attention, **sizes)
    return BartForConditionalGeneration(config)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=20, attn_implementation="eager", initializer_factor=5.0, **sizes)
    return T5ForConditionalGeneration(config)


@pytest.fixture(params=[bert, bart, t5], ids=["bert", "bart", "t5"])
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


SOURCE = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 3, 3]])
TARGET = torch.tensor([[4, 10, 11], [4, 12, 13]])


@torch.no_grad()
def test_reads_what_the_model_itself_computes(model):
    reading = read(model, SOURCE, TARGET)
    plain = model(input_ids=SOURCE, decoder_input_ids=TARGET, use_cache=False)
    assert torch.allclose(reading.logits, plain.logits, atol=1e-5)
    assert len(reading.attentions) == 2
    assert reading.encoder.shape[:2] == SOURCE.shape
    assert reading.decoder.shape[:2] == TARGET.shape
    for attention in reading.attentions:
        assert attention.shape == (2, 3, 5)
        assert torch.allclose(attention.sum(-1), torch.ones(2, 3), atol=1e-5)


@torch.no_grad()
def test_attention_stays_inside_the_mask_and_padding_on_either_side_changes_nothing(model):
    cross = torch.zeros(2, 3, 5, dtype=torch.bool)
    cross[:, :, :2] = True
    cross[0, 1] = torch.tensor([False, False, True, True, False])
    reading = read(model, SOURCE, TARGET, cross_mask=cross)
    for attention in reading.attentions:
        assert attention[~cross].max() == 0.0
    source_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    padded = read(model, SOURCE, TARGET, source_mask=source_mask, cross_mask=cross)
    cut = read(model, SOURCE[1:, :3], TARGET[1:], cross_mask=cross[1:, :, :3])
    assert torch.allclose(padded.logits[1:], cut.logits, atol=1e-4)


@torch.no_grad()
def test_a_target_position_that_may_attend_nowhere_is_not_nan(model):
    nowhere = torch.zeros(2, 3, 5, dtype=torch.bool)
    reading = read(model, SOURCE, TARGET, cross_mask=nowhere)
    assert reading.logits.isfinite().all()
    assert torch.allclose(reading.attentions[0], torch.full((2, 3, 5), 0.2), atol=1e-6)


def test_gradients_reach_the_encoder_through_the_attention(model):
    read(model, SOURCE, TARGET).attentions[-1][:, :, 0].sum().backward()
    gradients = [w.grad for w in model.get_encoder().parameters() if w.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_a_model_without_attention_weights_is_refused():
    with pytest.raises(ModelError, match='attn_implementation="eager"'):
        read(bart("sdpa"), SOURCE, TARGET)
    with pytest.raises(ShapeError, match=r"cross_mask must be \[2, 3, 5\], not \[2, 5\]"):
        read(bart(), SOURCE, TARGET, cross_mask=torch.ones(2, 5).bool())


@torch.no_grad()
def test_positions_and_segments_go_to_the_encoder():
    model = bert().eval()
    places = torch.arange(5).expand(2, -1)
    same = read(model, SOURCE, TARGET, encoder_inputs={"position_ids": places})
    assert torch.allclose(same.logits, read(model, SOURCE, TARGET).logits, atol=1e-6)
    other = read(model, SOURCE, TARGET, encoder_inputs={"token_type_ids": torch.ones_like(SOURCE)})
    assert not torch.allclose(same.logits, other.logits, atol=1e-3)


def test_tokens_with_the_pad_id_shift_no_position_of_roberta():
    from transformers import RobertaConfig, RobertaForCausalLM, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, pad_token_id=1,
        attn_implementation="eager", is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    decoder = RobertaForCausalLM(config)
    config.is_decoder = config.add_cross_attention = False
    whole = joined(RobertaModel(config, add_pooling_layer=False), decoder).eval()
    for half in (whole.encoder, whole.decoder):
        table = half.get_input_embeddings().weight
        with torch.no_grad():
            table[1] = table[7]
    found = [
        read(whole, torch.tensor([[5, t, 3, 8]]), torch.tensor([[2, t, 4, 6]])).logits
        for t in (1, 7)
    ]
    torch.testing.assert_close(*found)
