"""GlobEnc against its formula written out, and what must be 0 or 1."""

import pytest
import torch

from tokenry.model.attribution.blocks import DecoderBlock, EncoderBlock, blocks_of, observe
from tokenry.model.attribution.globenc import GlobEnc, layer_norms, rollout, row_normalised

T = 6


def ids_of(length=T):
    return torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.3,
    )
    model = BertModel(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
        elif "LayerNorm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


@torch.no_grad()
def written_out(layer, x, alpha):
    """N_ij of one post-norm layer, loop by loop from the definition."""
    attention = layer.attention
    heads, head_dim = alpha.shape[0], x.shape[1] // alpha.shape[0]
    value, dense = attention.self.value.weight, attention.output.dense
    context = torch.cat(
        [alpha[h] @ attention.self.value(x)[:, h * head_dim :][:, :head_dim] for h in range(heads)],
        dim=1,
    )
    before_1 = dense(context) + x
    after_1 = attention.output.LayerNorm(before_1)
    middle = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(after_1))
    before_2 = layer.output.dense(middle) + after_1
    norms = torch.zeros(T, T)
    for i in range(T):
        for j in range(T):
            v = x[i].clone() if i == j else torch.zeros_like(x[i])
            for h in range(heads):
                place = slice(h * head_dim, (h + 1) * head_dim)
                v += alpha[h, i, j] * dense.weight[:, place] @ (value[place] @ x[j])
            for norm, whole in (
                (attention.output.LayerNorm, before_1[i]),
                (layer.output.LayerNorm, before_2[i]),
            ):
                deviation = (whole.var(unbiased=False) + norm.eps).sqrt()
                v = (v - v.mean()) / deviation * norm.weight
            norms[i, j] = v.norm()
    return norms


def test_an_encoders_norms_are_those_of_the_definition(encoder):
    seen = observe(encoder, ids_of())
    for layer, block, x, alpha in zip(
        encoder.encoder.layer, blocks_of(encoder), seen.states, seen.attention, strict=False
    ):
        expected = written_out(layer, x, alpha)
        torch.testing.assert_close(layer_norms(block, x, alpha), expected, rtol=1e-4, atol=1e-5)


def test_scores_are_the_product_of_the_layers(encoder):
    seen = observe(encoder, ids_of())
    first, second = (
        written_out(layer, x, alpha)
        for layer, x, alpha in zip(encoder.encoder.layer, seen.states, seen.attention, strict=False)
    )
    raw = GlobEnc(normalise=False)(encoder, ids_of(), 0)
    torch.testing.assert_close(raw, (second @ first)[0], rtol=1e-4, atol=1e-5)
    shares = GlobEnc()(encoder, ids_of(), 0)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)


def test_without_norm_and_residual_it_is_the_norm_of_the_weighted_values(tiny_llama):
    """One layer: ‖Σ_h α^h f^h(x_j)‖; of values of one length and one head, the attention."""
    layer = tiny_llama.model.layers[0]
    block = DecoderBlock(layer)
    torch.manual_seed(0)
    x = torch.randn(T, 32)
    alpha = torch.rand(4, T, T).tril()
    parts = torch.cat([torch.diag_embed(x.T).permute(1, 2, 0), torch.zeros(1, T, 32)])
    with torch.no_grad():
        found = (block.attend(parts, alpha) - parts)[:-1]  # [j, i, D]
        read = layer.input_layernorm(x)
        for i in range(T):
            for j in range(T):
                expected = torch.zeros(32)
                for h in range(4):
                    kv = h // 2  # two query heads share a key head
                    value = layer.self_attn.v_proj(read[j])[kv * 8 : kv * 8 + 8]
                    weight = layer.self_attn.o_proj.weight[:, h * 8 : h * 8 + 8]
                    expected += alpha[h, i, j] * weight @ value
                torch.testing.assert_close(found[j, i], expected, rtol=1e-4, atol=1e-5)
        # the same value at every place: what j writes into i is as long as α_ij says
        same = torch.cat([torch.diag_embed(x[:1].expand(T, -1).T).permute(1, 2, 0), parts[-1:]])
        shared = alpha[:1].expand(4, T, T)
        norms = (block.attend(same, shared) - same)[:-1].norm(dim=-1).T
    torch.testing.assert_close(norms / norms[-1, 0], alpha[0] / alpha[0, -1, 0])


def test_a_decoder_writes_nothing_into_the_past(tiny_model):
    seen = observe(tiny_model, ids_of())
    norms = [
        layer_norms(block, x, alpha)
        for block, x, alpha in zip(blocks_of(tiny_model), seen.states, seen.attention, strict=False)
    ]
    rolled = rollout(norms)
    assert not rolled.triu(1).any()
    assert (rolled.diagonal() > 0).all()
    assert not GlobEnc()(tiny_model, ids_of(), 2)[3:].any()
    torch.testing.assert_close(
        GlobEnc()(tiny_model, ids_of()), rollout([row_normalised(n) for n in norms])[-1]
    )


def test_rollout_of_identities_is_the_identity():
    assert torch.equal(rollout([torch.eye(4)] * 3), torch.eye(4))
    assert torch.equal(row_normalised(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_blocks_are_recognised(encoder, tiny_model):
    assert all(isinstance(block, EncoderBlock) for block in blocks_of(encoder))
    assert all(isinstance(block, DecoderBlock) for block in blocks_of(tiny_model))
