"""The feature head: its equations, its reduction to EAGLE, its memory, its file."""

import pytest
import torch

from tokenry.core.errors import InputError, ModelError
from tokenry.model.heads.fspad import DraftLayer, FeatureHead, FeatureSampler, features_of

WIDTH, HEADS = 16, 2


def head(seed=0, **options):
    torch.manual_seed(seed)
    return FeatureHead(WIDTH, HEADS, 24, **options)


def trained(seed=0, **options):
    """As after training: what starts at zero no longer is."""
    found = head(seed, **options)
    torch.manual_seed(seed + 1)
    for weight in (found.sampler.down.weight, found.branch.weight):
        torch.nn.init.normal_(weight, std=0.5)
    return found


def pairs(length=7, rows=2):
    torch.manual_seed(9)
    return torch.randn(rows, length, WIDTH), torch.randn(rows, length, WIDTH)


def test_before_training_it_is_the_head_of_eagle():
    f, e = pairs()
    ours, eagle = head(), head(feature_sampling=False, partial_alignment=False)
    assert ours.sampler is not None
    assert eagle.sampler is eagle.branch is None
    for mine, theirs in zip(ours(f, e)[:2], eagle(f, e)[:2], strict=True):
        assert torch.equal(mine, theirs)
    feature, answer, _ = eagle(f, e)
    assert torch.equal(feature, answer)
    hidden, _ = eagle.layer(eagle.fc(torch.cat([f, e], -1)), None, torch.arange(7)[None], None)
    assert torch.equal(feature, hidden)


def test_feature_sampling_by_hand():
    sampler = FeatureSampler(WIDTH, expansion=3)
    torch.nn.init.normal_(sampler.down.weight)
    f, e = pairs()
    gate = 1 / (1 + torch.exp(-(e @ sampler.gate.weight.T)))
    expected = ((f @ sampler.up.weight.T) * gate) @ sampler.down.weight.T
    torch.testing.assert_close(sampler(f, e), expected)
    assert sampler.up.weight.shape == (3 * WIDTH, WIDTH)


def test_the_token_selects_what_is_taken_from_the_feature():
    """Even where the projection ignores the embedding."""
    f, e = pairs()
    other = e.flip(-1)
    ours, eagle = trained(), head(feature_sampling=False, partial_alignment=False)
    with torch.no_grad():
        for found in (ours, eagle):
            found.fc.weight[:, WIDTH:] = 0.0
    assert not torch.allclose(ours(f, e)[0], ours(f, other)[0], atol=1e-3)
    assert torch.equal(eagle(f, e)[0], eagle(f, other)[0])


def test_partial_alignment_by_hand():
    f, e = pairs()
    found = trained()
    feature, answer, _ = found(f, e)
    branch = feature * feature.sigmoid() @ found.branch.weight.T
    torch.testing.assert_close(answer, feature + branch)


@pytest.mark.parametrize("decouple", [True, False])
def test_a_decoupled_head_learns_features_from_features_only(decouple):
    f, e = pairs()
    found = trained(decouple=decouple)
    _, answer, _ = found(f, e)
    answer.square().sum().backward()
    assert found.branch.weight.grad.abs().sum() > 0
    for weight in (found.layer.down.weight, found.fc.weight, found.sampler.up.weight):
        assert (weight.grad is None) == decouple


def test_step_by_step_it_says_what_it_says_in_one_go():
    f, e = pairs()
    found = trained()
    whole = found(f, e)
    memory, features, answers = None, [], []
    for at in range(7):
        positions = torch.tensor([[at]])
        mask = torch.ones(1, 1, 1, at + 1, dtype=torch.bool)
        feature, answer, memory = found(
            f[:, at : at + 1], e[:, at : at + 1], memory, positions, mask
        )
        features.append(feature)
        answers.append(answer)
    torch.testing.assert_close(torch.cat(features, 1), whole[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(answers, 1), whole[1], atol=1e-5, rtol=1e-4)


def test_with_a_memory_the_defaults_go_on_behind_it():
    f, e = pairs()
    found = trained()
    whole = found(f, e)
    memory, features = None, []
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        feature, _, memory = found(f[:, part], e[:, part], memory)
        features.append(feature)
    torch.testing.assert_close(torch.cat(features, 1), whole[0], atol=1e-5, rtol=1e-4)


def test_it_does_not_look_ahead_and_sees_distances_only():
    layer = DraftLayer(WIDTH, HEADS, 24)
    x = torch.randn(1, 6, WIDTH)
    positions = torch.arange(6)[None]
    out = layer(x, None, positions, None)[0]
    later = x.clone()
    later[:, 4:] += 1.0
    torch.testing.assert_close(layer(later, None, positions, None)[0][:, :4], out[:, :4])
    torch.testing.assert_close(layer(x, None, positions + 11, None)[0], out, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(layer(x, None, 2 * positions, None)[0], out, atol=1e-3)


def test_scales_change_the_units_only():
    """Features in other units give the same head if its scales say so."""
    f, e = pairs()
    one, two = trained(), trained()
    two.feature_scale.fill_(4.0)
    two.embed_scale.fill_(0.25)
    torch.testing.assert_close(two(4 * f, e / 4)[0], 4 * one(f, e)[0])


@pytest.mark.parametrize("vocabulary", [None, torch.tensor([3, 5, 8])])
def test_saving_and_loading(tmp_path, vocabulary):
    found = trained(vocabulary=vocabulary, expansion=3, decouple=True)
    found.feature_scale.fill_(2.5)
    found.save(tmp_path / "head.safetensors")
    again = FeatureHead.load(tmp_path / "head.safetensors")
    f, e = pairs()
    for mine, theirs in zip(found(f, e)[:2], again(f, e)[:2], strict=True):
        assert torch.equal(mine, theirs)
    assert again.decouple
    assert again.to_ids([0, 2]) == ([0, 2] if vocabulary is None else [3, 8])
    assert [file.name for file in tmp_path.iterdir()] == ["head.safetensors"]


def test_the_draft_vocabulary_takes_its_rows_of_the_output_layer(tiny_llama):
    found = FeatureHead.of(tiny_llama, vocabulary=torch.tensor([3, 5, 8]))
    weight, bias = found.output_rows(tiny_llama)
    assert torch.equal(weight, tiny_llama.lm_head.weight[[3, 5, 8]])
    assert bias is None
    spread = found.spread(torch.tensor([0.2, 0.5, 0.3]), 64)
    assert spread.nonzero()[:, 0].tolist() == [3, 5, 8]
    assert spread[5] == 0.5


def test_the_output_layer_keeps_the_models_scale_and_soft_cap(scaled_model):
    found = FeatureHead.of(scaled_model, vocabulary=torch.tensor([3, 5, 8]))
    ids = torch.tensor([[5, 9, 30, 41]])
    features = features_of(scaled_model, ids, torch.ones_like(ids))
    with torch.no_grad():
        expected = scaled_model(input_ids=ids).logits[..., [3, 5, 8]]
    logits = found.output_head(scaled_model).logits(features)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_features_are_what_the_output_layer_reads(tiny_model):
    ids = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    attention[1, :3] = 0  # padding on the left
    features = features_of(tiny_model, ids, attention)
    with torch.no_grad():
        logits = tiny_model.get_output_embeddings()(features)
        for row, start in ((0, 0), (1, 3)):
            expected = tiny_model(input_ids=ids[row : row + 1, start:]).logits[0]
            torch.testing.assert_close(logits[row, start:], expected, atol=1e-4, rtol=1e-4)


def test_impossible_heads_are_refused(tiny_llama, tmp_path):
    with pytest.raises(InputError, match="3 heads do not divide"):
        FeatureHead(16, 3)
    with pytest.raises(InputError, match="expansion"):
        FeatureHead(16, 2, expansion=0)
    with pytest.raises(InputError, match="ids below 64"):
        FeatureHead.of(tiny_llama, vocabulary=torch.tensor([64]))
    with pytest.raises(ModelError, match="features of 16 dimensions, the model has 32"):
        head().check(tiny_llama)
    (tmp_path / "file").write_text("nothing")
    with pytest.raises(InputError, match="cannot read"):
        FeatureHead.load(tmp_path / "file")
