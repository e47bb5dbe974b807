"""Extensible embeddings and sessions: at ratio 1 with raw embeddings nothing changes, counts and
places are those of the definition, and online and offline reading agree."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tokenry.core.errors import InputError, ShapeError
from tokenry.model.memory.extensible import (
    ExtensibleSession,
    ExtensibleTokenizer,
    kept_positions,
    mean_pool_downscale,
    random_downscale,
    strided_downscale,
)


class Raw(nn.Module):
    """A backbone that gives the language model's own embeddings."""

    def __init__(self, model):
        super().__init__()
        self.table = model.get_input_embeddings()

    def forward(self, input_ids):
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def ids_of(*shape, seed=0):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))


def raw(model):
    return ExtensibleTokenizer(Raw(model), nn.Identity())


def states_of(length):
    return torch.arange(1.0, length + 1).view(1, -1, 1)  # the state of token t is t, from 1


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return ExtensibleTokenizer.from_lm(tiny_model, layers=2).eval()


def test_raw_embeddings_at_ratio_1_reproduce_the_model(tiny_model):
    ids = ids_of(30)
    with torch.no_grad():
        expected = tiny_model(ids[None]).logits[0].log_softmax(-1)
    session = ExtensibleSession(tiny_model, raw(tiny_model), ratio=1, chunk=7)
    session.feed(ids[:20])
    session.compress()
    assert (len(session.compressed), len(session.recent)) == (20, 0)
    session.feed(ids[20:24])
    wanted = expected[23:29].gather(-1, ids[24:, None])[:, 0]
    torch.testing.assert_close(session.logprob(ids[24:]), wanted, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 6, "do_sample": False}
    plain = tiny_model.generate(ids[None, :24], **options)[0, 24:].tolist()
    assert session.generate(6, do_sample=False) == plain
    assert session.recent.tolist() == [*ids[20:24].tolist(), *plain]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 12) | st.none())
def test_the_kept_states_close_their_groups(length, ratio, chunk):
    kept = kept_positions(length, ratio, chunk).tolist()
    closing = [
        t
        for t in range(length)
        if t == length - 1
        or (chunk and (t + 1) % chunk == 0)
        or ((t % chunk if chunk else t) + 1) % ratio == 0
    ]
    assert kept == closing
    size = chunk or max(length, 1)
    parts = [min(size, length - start) for start in range(0, length, size)]
    assert len(kept) == sum(-(-part // ratio) for part in parts)


def test_downscaling_by_its_definition():
    assert strided_downscale(states_of(8), 4)[0, :, 0].tolist() == [4, 8]
    assert strided_downscale(states_of(10), 4)[0, :, 0].tolist() == [4, 8, 10]
    assert strided_downscale(states_of(10), 4, 5)[0, :, 0].tolist() == [4, 5, 9, 10]
    assert mean_pool_downscale(states_of(10), 4)[0, :, 0].tolist() == [2.5, 6.5, 9.5]
    drawn = random_downscale(states_of(10), 4, 5, torch.Generator().manual_seed(0))[0, :, 0]
    assert drawn.tolist() == sorted(drawn.tolist())
    assert [sum(drawn <= 5), sum(drawn > 5)] == [2, 2]


@given(st.integers(1, 6))
def test_twice_the_ratio_is_every_second_embedding(ratio):
    states = states_of(24 * ratio)
    once, twice = (strided_downscale(states, k, 4 * ratio) for k in (ratio, 2 * ratio))
    assert torch.equal(once[:, 1::2], twice)


def test_chunks_are_read_apart_and_causally(tokenizer):
    ids = ids_of(2, 23)
    with torch.no_grad():
        found = tokenizer.encode(ids, 8)
        for start in (0, 8, 16):
            alone = tokenizer.encode(ids[:, start : start + 8], 8)
            torch.testing.assert_close(found[:, start : start + 8], alone, rtol=1e-4, atol=1e-5)
        other = ids.clone()
        other[:, 11] = 3
        changed = (tokenizer.encode(other, 8) - found).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero()[:, 0].tolist() == [11, 12, 13, 14, 15]


def test_the_first_layers_of_the_model_are_the_backbone(tiny_model, tokenizer):
    ids = ids_of(1, 9)
    with torch.no_grad():
        states = tiny_model(ids, output_hidden_states=True).hidden_states[2]
        found = tokenizer.backbone(input_ids=ids).last_hidden_state
        torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-4)
        assert torch.equal(tokenizer.encode(ids, 9), found)


def test_another_backbone_starts_at_the_scale_of_the_embeddings(tiny_llama):
    tokenizer = ExtensibleTokenizer.around(tiny_llama.get_decoder(), tiny_llama)
    embedded = tiny_llama.get_input_embeddings()(torch.arange(64))
    scale = embedded.square().mean().sqrt()
    torch.testing.assert_close(tokenizer.out.weight, scale * torch.eye(32))


def test_online_equals_offline_where_chunks_coincide(tiny_model, tokenizer):
    ids = ids_of(24)
    online = ExtensibleSession(tiny_model, tokenizer, ratio=3, chunk=8)
    for start in (0, 8, 16):
        online.feed(ids[start : start + 8])
        online.compress()
    offline = ExtensibleSession(tiny_model, tokenizer, ratio=3, chunk=8)
    with torch.no_grad():
        offline.add(tokenizer.encode(ids[None], 8)[0])
    assert len(online.compressed) == 9
    torch.testing.assert_close(online.compressed, offline.compressed, rtol=1e-4, atol=1e-5)


def test_stored_states_give_any_ratio(tiny_model, tokenizer):
    ids = ids_of(24)
    session = ExtensibleSession(tiny_model, tokenizer, ratio=2, chunk=8, keep=True)
    session.feed(ids)
    session.compress()
    session.rescale(4)
    other = ExtensibleSession(tiny_model, tokenizer, ratio=4, chunk=8)
    other.feed(ids)
    other.compress()
    assert torch.equal(session.compressed, other.compressed)
    session.rescale(2)
    assert torch.equal(session.compressed[1::2], other.compressed)
    with pytest.raises(InputError, match="keep=True"):
        other.rescale(2)


def test_a_full_window_is_compressed_and_a_too_long_text_refused(tiny_model, tokenizer):
    session = ExtensibleSession(tiny_model, tokenizer, ratio=4, chunk=8, window=16)
    session.feed(ids_of(16))
    assert len(session.compressed) == 0
    session.feed(ids_of(1))
    assert (len(session.compressed), len(session.recent)) == (4, 1)
    session.feed(ids_of(11))  # 12 plain tokens fill it again; read as 8 and 4, they become 3
    session.feed(ids_of(1))
    assert (len(session.compressed), len(session.recent)) == (7, 1)
    with pytest.raises(InputError, match="ratio above 4"):
        session.feed(ids_of(100))
    assert session.length == 16  # what went in before there was no more room


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer.save(path)
    again = ExtensibleTokenizer.load(path)
    ids = ids_of(1, 12)
    with torch.no_grad():
        assert torch.equal(again.encode(ids, 5), tokenizer.encode(ids, 5))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (tmp_path / "other").write_text("x")
    with pytest.raises(InputError, match="not a file of"):
        ExtensibleTokenizer.load(tmp_path / "other")
    with pytest.raises(InputError, match="no file"):
        ExtensibleTokenizer.load(tmp_path / "gone")


def test_a_narrower_backbone_is_mapped_to_the_models_width(tiny_model):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    tokenizer = ExtensibleTokenizer.around(LlamaModel(config), tiny_model)
    assert tokenizer.compress(ids_of(2, 10), chunk=8, ratio=4).shape == (2, 3, 32)


def test_bad_input_is_said(tiny_model, tokenizer):
    def session(**options):
        return ExtensibleSession(tiny_model, tokenizer, **options)

    for options in ({"window": 513}, {"ratio": 0}, {"chunk": 0}, {"window": -1}):
        with pytest.raises(InputError):
            session(**options)
    with pytest.raises(InputError, match=r"feed\(\)"):
        session().generate(4)
    with pytest.raises(InputError, match=r"feed\(\)"):
        session().logprob([3])
    with pytest.raises(ShapeError):
        session().feed(ids_of(1, 4))
    with pytest.raises(ShapeError, match="T, 32"):
        session().add(torch.zeros(3, 5))
    busy = session()
    busy.feed([3])
    with pytest.raises(InputError, match=r"compress\(\)"):
        busy.add(torch.zeros(3, 32))
    with pytest.raises(InputError, match="max_new_tokens"):
        busy.generate(0)
    with pytest.raises(InputError, match="the model has"):
        ExtensibleTokenizer.from_lm(tiny_model, 9)
    with pytest.raises(ShapeError, match="T >= 1"):
        tokenizer.encode(ids_of(1, 0), 4)
    with pytest.raises(InputError, match="chunk"):
        tokenizer.encode(ids_of(1, 4), 0)
    with pytest.raises(InputError, match="longer than"):
        tokenizer.encode(ids_of(1, 600), 600)


def test_bfloat16_and_adapters(tiny_llama):
    import copy

    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(tiny_llama).bfloat16(), LoraConfig(r=2))
    tokenizer = ExtensibleTokenizer.from_lm(copy.deepcopy(tiny_llama).bfloat16(), 1)
    session = ExtensibleSession(adapted, tokenizer, ratio=2, chunk=4, window=12)
    session.feed(ids_of(15))
    assert len(session.generate(2, do_sample=False)) == 2


@pytest.mark.model
def test_smollm2_reads_its_own_embeddings_as_text(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    plain = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :].tolist()
    session = ExtensibleSession(model, raw(model), ratio=1, chunk=2)
    session.feed(ids[0])
    session.compress()
    assert session.generate(3, do_sample=False) == plain
