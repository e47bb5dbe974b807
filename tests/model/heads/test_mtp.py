"""The mask predictor: its sampler's equation, its file, and what it refuses."""

import pytest
import torch

from tokenry.core.errors import InputError, ModelError
from tokenry.model.heads.fspad import features_of
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.model.layers.gated_lora import GatedLoRA


def test_the_sampler_is_two_blocks_on_the_state_and_the_token_before(tiny_model):
    predictor = MaskPredictor.of(tiny_model, k=2, rank=2)
    states, previous = torch.randn(3, 32), torch.tensor([5, 6, 7])
    told = tiny_model.get_input_embeddings()(previous)
    sampler = predictor.sampler
    first, second = sampler.first, sampler.second
    silu = torch.nn.functional.silu
    h = sampler.first_norm(silu(torch.cat([states, told], -1) @ first.weight.T + first.bias))
    h = sampler.second_norm(silu(h @ second.weight.T + second.bias))
    expected = h @ tiny_model.get_output_embeddings().weight.T
    torch.testing.assert_close(predictor.logits(tiny_model, states, previous), expected)
    bare = MaskPredictor.of(tiny_model, k=2, rank=2, sampler=False)
    expected = states @ tiny_model.get_output_embeddings().weight.T
    torch.testing.assert_close(bare.logits(tiny_model, states, previous), expected)


def test_masks_stand_where_they_are_told(tiny_model):
    predictor = MaskPredictor.of(tiny_model, k=3, rank=2)
    ids = torch.tensor([[4, 0, 9, 0]])
    embedded = predictor.embed(tiny_model, ids, torch.tensor([[0, 1, 0, 3]]))[0]
    table = tiny_model.get_input_embeddings()
    assert torch.equal(embedded[[0, 2]], table(ids[0, [0, 2]]))  # Gemma's scale included
    assert torch.equal(embedded[[1, 3]], predictor.masks[[0, 2]])


@pytest.mark.parametrize("sampler", [True, False])
def test_saving_and_loading(tiny_llama, tmp_path, sampler):
    predictor = MaskPredictor.of(tiny_llama, k=3, rank=2, alpha=7.0, sampler=sampler, seed=4)
    file = tmp_path / "predictor.safetensors"
    predictor.save(file)
    again = MaskPredictor.load(file)
    assert again.state_dict().keys() == predictor.state_dict().keys()
    assert all(torch.equal(again.state_dict()[k], v) for k, v in predictor.state_dict().items())
    assert again.lora.alpha == 7.0
    assert [found.name for found in tmp_path.iterdir()] == [file.name]
    assert MaskPredictor.of(tiny_llama, k=3, rank=2, seed=4).masks.equal(predictor.masks)


def test_wrong_files_and_models_are_refused(tiny_llama, tmp_path):
    GatedLoRA.of(tiny_llama, rank=2).save(tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="does not hold a multi-token predictor"):
        MaskPredictor.load(tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="cannot read"):
        MaskPredictor.load(tmp_path / "missing")
    with pytest.raises(InputError, match="is 0; it must be"):
        MaskPredictor.of(tiny_llama, k=0)
    predictor = MaskPredictor.of(tiny_llama, k=2, rank=2)
    predictor.masks = torch.nn.Parameter(torch.zeros(2, 8))
    with pytest.raises(ModelError, match="8 dimensions and the model's embeddings 32"):
        predictor.check(tiny_llama)


def test_masks_logits_are_scaled_like_the_models(scaled_model):
    predictor = MaskPredictor.of(scaled_model, 2, 1, sampler=False)
    ids = torch.tensor([[5, 9, 30, 41]])
    states = features_of(scaled_model, ids, torch.ones_like(ids))[0]
    with torch.no_grad():
        found = predictor.logits(scaled_model, states, ids[0])
        expected = scaled_model(input_ids=ids).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
