import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ModelError
from tokenry.model.attention.hybrid import (
    NormPreservingFeatureMap,
    householder,
    hybrid_chunk_attention,
    route,
    saliency,
    self_saliency,
)
from tokenry.model.decoding import DecodingState
from tokenry.model.memory.still import Still, StillCache, revert, still_layers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def states(L=37, B=2, H=3, D=8, seed=0):
    draw = generator(seed)
    query, key, value = (torch.randn(B, H, L, D, generator=draw) for _ in range(3))
    gate = torch.rand(B, H, L, D, generator=draw)
    return 2 * query, key, value, gate


def features(query, key, seed=0):
    maps = [
        NormPreservingFeatureMap(query.shape[1], query.shape[3], generator(seed + i))
        for i in (0, 1)
    ]
    return maps[0](query).detach(), maps[1](key).detach()


def naive(query, key, value, gate, fq, fk, salient, chunk):
    """Every query by explicit L x L masks; also the masks of its two branches."""
    L, D = query.shape[2:]
    column, rows = torch.arange(L), torch.arange(L)[:, None]
    far = column // chunk <= rows // chunk - 2  # [L, L]
    near = (column <= rows) & ~far
    exact = near | (far & salient[:, :, None])
    linear = far & ~salient[:, :, None]
    logits = query @ key.transpose(-1, -2) / D**0.5
    top = logits.masked_fill(~exact, -torch.inf).amax(-1, keepdim=True)
    weight = (logits - top).exp() * exact
    similarity = (fq @ fk.transpose(-1, -2)) * linear
    numerator = weight @ value + gate * (similarity @ value)
    denominator = weight.sum(-1, keepdim=True) + similarity.sum(-1, keepdim=True)
    return numerator / (denominator + 1e-6), exact, linear


@pytest.mark.parametrize(("L", "chunk", "topk"), [(37, 4, 1), (40, 8, 3), (33, 4, 0), (9, 1, 0)])
def test_the_chunk_form_is_the_naive_one(L, chunk, topk):
    query, key, value, gate = states(L)
    fq, fk = features(query, key)
    salient = route(self_saliency(query, key, window=chunk), chunk, topk)
    output = hybrid_chunk_attention(query, key, value, gate, fq, fk, salient, chunk=chunk)
    expected, exact, linear = naive(query, key, value, gate, fq, fk, salient, chunk)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    causal = torch.ones(L, L, dtype=torch.bool).tril().expand_as(exact)
    assert not (exact & linear).any()
    assert torch.equal(exact | linear, causal)  # each pair is in exactly one branch


def dense(query, key, value):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


@pytest.mark.parametrize("L", [1, 5, 8, 16])
def test_two_chunks_are_exact_softmax_attention(L):
    query, key, value, gate = states(L)
    fq, fk = features(query, key)
    salient = route(self_saliency(query, key, window=8), 8, 2)
    output = hybrid_chunk_attention(query, key, value, gate, fq, fk, salient, chunk=8)
    torch.testing.assert_close(output, dense(query, key, value), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("L", [17, 37, 48])
def test_all_tokens_salient_is_exact_softmax_attention(L):
    query, key, value, gate = states(L)
    fq, fk = features(query, key)
    salient = route(self_saliency(query, key, window=8), 8, 8)
    assert salient.all()
    output = hybrid_chunk_attention(query, key, value, gate, fq, fk, salient, chunk=8)
    torch.testing.assert_close(output, dense(query, key, value), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 36))
def test_a_token_never_changes_an_earlier_output(t):
    query, key, value, gate = states()
    changed = [tensor.clone() for tensor in (query, key, value, gate)]
    for tensor in changed:
        tensor[:, :, t] = torch.randn(2, 3, 8, generator=generator(9))

    def run(query, key, value, gate):
        salient = route(self_saliency(query, key, window=4), 4, 1)
        fq, fk = features(query, key)
        return hybrid_chunk_attention(query, key, value, gate, fq, fk, salient, chunk=4)

    before, after = run(query, key, value, gate), run(*changed)
    torch.testing.assert_close(before[:, :, :t], after[:, :, :t])
    assert not torch.allclose(before[:, :, t], after[:, :, t])


def test_saliency_of_each_window_by_its_definition():
    query, key, _, _ = states()
    window, eps = 4, 1e-8
    found = self_saliency(query, key, window=window)
    for t in range(1, 37):
        begin = max(0, t - window + 1)
        logits = query[0, 0, t] @ key[0, 0, begin : t + 1].T / 8**0.5
        a = logits.softmax(-1)
        b = torch.cat([logits[:-1].softmax(-1), torch.zeros(1)])
        expected = (a * ((a + eps) / (b + eps)).log()).sum()
        torch.testing.assert_close(found[0, 0, t], expected, rtol=1e-4, atol=1e-5)
    assert (found[..., 0] == math.inf).all()
    assert route(found, 4, 1)[..., 0].all()  # the first token is always salient


def score_of(weight):
    """The saliency of a token that gives itself this much attention, among three others."""
    others = torch.tensor([0.2, 0.3, 0.5]).double() * (1 - weight)
    logits = torch.cat([others, torch.tensor([weight]).double()]).log()
    return float(saliency(logits, torch.tensor(3)))


def test_saliency_has_the_closed_form_and_its_numeric_case():
    assert score_of(0.5) == pytest.approx(8.517, abs=1e-3)
    eps = 1e-8
    for a in (1e-6, 1e-3, 0.1, 0.5, 0.9):
        closed = (1 - a) * math.log(1 - a) + a * math.log((a + eps) / eps)
        assert score_of(a) == pytest.approx(closed, abs=1e-6)
    assert abs(score_of(1e-12)) < 1e-7


@given(st.floats(2e-6, 0.98), st.floats(1.01, 1.5))
def test_saliency_grows_with_the_attention_to_itself(weight, factor):
    assert score_of(min(weight * factor, 0.99)) > score_of(weight)


def test_the_feature_map_keeps_norms_and_sums():
    x = 3 * torch.randn(2, 3, 11, 8, generator=generator())
    phi = NormPreservingFeatureMap(3, 8, generator(1))
    with torch.no_grad():
        phi.weight += 0.3 * torch.randn(phi.weight.shape, generator=generator(2))
    torch.testing.assert_close(phi.direct(x).norm(dim=-1), x.norm(dim=-1))
    feature = phi(x)
    assert feature.shape == (2, 3, 11, 16)
    assert (feature >= 1e-12).all()
    torch.testing.assert_close(feature[..., :8].sum(-1), torch.ones(2, 3, 11))
    torch.testing.assert_close(feature[..., 8:].sum(-1), torch.ones(2, 3, 11))
    assert (phi(2 * x).amax(-1) > feature.amax(-1)).all()  # a larger norm is sharper
    with torch.no_grad():
        phi.weight *= 5
    torch.testing.assert_close(phi(x), feature)  # the scale of f says nothing


def test_a_householder_reflection_is_its_own_inverse_and_keeps_norms():
    x = torch.randn(5, 8, generator=generator())
    normal = 3 * torch.randn(8, generator=generator(1))
    turned = householder(x, normal)
    torch.testing.assert_close(householder(turned, normal), x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(householder(normal, normal), -normal)


def hybrid(model, chunk=4, topk=1, seed=3):
    """A copy with hybrid attention whose new weights are random."""
    model = Still(chunk, topk).convert(copy.deepcopy(model), seed=seed)
    draw = generator(seed)
    with torch.no_grad():
        for layer in still_layers(model).values():
            for weight in layer.new_weights():
                weight += 0.2 * torch.randn(weight.shape, generator=draw)
    return model


def ids_of(length, batch=1, seed=1):
    return torch.randint(2, 64, (batch, length), generator=generator(seed))


def logits_of(model, ids, **options):
    with torch.no_grad():
        return model(ids, **options).logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_recurrent_decoding_is_the_chunk_form(tiny_model):
    model, ids = hybrid(tiny_model), ids_of(31, batch=2)
    whole = logits_of(model, ids, use_cache=False)
    assert (whole - logits_of(tiny_model, ids)).abs().max() > 1e-2
    for prompt in (1, 4, 7, 9, 18):
        cache = StillCache(model)
        outputs = [logits_of(model, ids[:, :prompt], past_key_values=cache)]
        for t in range(prompt, 31):
            outputs.append(logits_of(model, ids[:, t : t + 1], past_key_values=cache))
        close(torch.cat(outputs, dim=1), whole)
    cache = StillCache(model)
    first = logits_of(model, ids[:, :10], past_key_values=cache)
    rest = logits_of(model, ids[:, 10:], past_key_values=cache)  # many tokens at once
    close(torch.cat([first, rest], dim=1), whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(tiny_model, side):
    model, ids, short = hybrid(tiny_model), ids_of(26, batch=2), 15
    mask = torch.ones_like(ids)
    empty = slice(0, 26 - short) if side == "left" else slice(short, 26)
    ids[0, empty], mask[0, empty] = 0, 0
    # the feature maps see rotated states: positions count from each text's first token
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    both = logits_of(model, ids, attention_mask=mask, position_ids=positions, use_cache=False)
    real = mask[0].bool()
    close(both[0, real], logits_of(model, ids[:1, real], use_cache=False)[0])
    close(both[1], logits_of(model, ids[1:], use_cache=False)[0])


def test_rows_of_different_lengths_decode_as_each_alone(tiny_model):
    model, ids = hybrid(tiny_model), ids_of(22, batch=3)
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, :14] = 0, 0
    found = model.generate(
        ids,
        attention_mask=mask,
        past_key_values=StillCache(model),
        max_new_tokens=15,
        do_sample=False,
        eos_token_id=None,
    )
    for row in range(3):
        text = ids[row : row + 1, mask[row].bool()]
        for _ in range(15):  # without a cache
            token = logits_of(model, text, use_cache=False)[:, -1].argmax(-1)
            text = torch.cat([text, token[:, None]], dim=1)
        assert found[row, 22:].tolist() == text[0, -15:].tolist()


def test_beams_and_repeated_rows_carry_their_state(tiny_llama):
    model, ids = hybrid(tiny_llama), ids_of(22, batch=2)
    cache = StillCache(model)
    logits_of(model, ids, past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 1]))
    step = ids_of(1, batch=2, seed=4)
    swapped = torch.cat([ids[[1, 1]], step], dim=1)
    whole = logits_of(model, swapped, use_cache=False)[:, -1]
    close(logits_of(model, step, past_key_values=cache)[:, -1], whole)
    options = {"max_new_tokens": 8, "num_beams": 2, "do_sample": False, "eos_token_id": None}
    beams = model.generate(ids, past_key_values=StillCache(model), **options)
    assert torch.equal(beams, model.generate(ids, use_cache=False, **options))


def test_the_decoding_state_reads_and_appends(tiny_llama):
    model, ids = hybrid(tiny_llama), ids_of(24)
    state = DecodingState.start(model, ids[:, :13], cache=StillCache(model))
    state.append(ids[:, 13:])
    close(state.logits, logits_of(model, ids, use_cache=False)[:, -1])


def test_a_copied_layer_goes_its_own_way(tiny_llama):
    model, ids = hybrid(tiny_llama), ids_of(20)
    cache = StillCache(model)
    logits_of(model, ids, past_key_values=cache)
    twin = StillCache(model)
    twin.layers = [layer.copy() for layer in cache.layers]
    for t in range(5):
        logits_of(model, ids[:, t : t + 1], past_key_values=twin)
    step = ids[:, :1]
    whole = logits_of(model, torch.cat([ids, step], dim=1), use_cache=False)[:, -1]
    close(logits_of(model, step, past_key_values=cache)[:, -1], whole)


def test_the_cache_grows_by_the_salient_tokens_alone(tiny_llama):
    model = hybrid(tiny_llama, chunk=4, topk=1)
    sizes = []
    for length in (40, 80, 160):
        cache = StillCache(model)
        logits_of(model, ids_of(length), past_key_values=cache)
        sizes.append(cache.nbytes())
    per_token = 3 * 4 * 2 * 8 * 4  # layers, heads, key and value, dimension, bytes
    assert sizes[1] - sizes[0] == 40 // 4 * per_token
    assert sizes[2] - sizes[1] == 80 // 4 * per_token


def test_reverting_gives_the_pretrained_model_back(tiny_model):
    model = copy.deepcopy(tiny_model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = logits_of(model, ids_of(30))
    Still(4, 1).convert(model)
    # two chunks or fewer are exact softmax attention, before any training
    close(logits_of(model, ids_of(30)[:, :8]), logits_of(tiny_model, ids_of(30)[:, :8]))
    revert(model)
    assert model.state_dict().keys() == before.keys()
    assert torch.equal(logits_of(model, ids_of(30)), expected)


def test_half_precision_and_some_layers(tiny_llama):
    model = Still(4, 1, layers=(1,)).convert(copy.deepcopy(tiny_llama).bfloat16())
    assert still_layers(model).keys() == {1}
    cache = StillCache(model)
    assert logits_of(model, ids_of(20), past_key_values=cache).dtype == torch.bfloat16
    assert logits_of(model, ids_of(1), past_key_values=cache).isfinite().all()


def test_some_layers_decode_as_the_chunk_form(tiny_llama):
    model, ids = Still(4, 1, layers=(0, 2)).convert(copy.deepcopy(tiny_llama)), ids_of(23, batch=2)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    whole = logits_of(model, ids, attention_mask=mask, use_cache=False)
    cache = StillCache(model)
    logits_of(model, ids[:, :17], attention_mask=mask[:, :17], past_key_values=cache)
    for t in range(17, 23):
        step = logits_of(
            model, ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache
        )
        close(step[:, 0], whole[:, t])


def test_what_hybrid_attention_cannot_do_is_refused(tiny_llama, tiny_gemma3):
    for bad in ({"chunk": 0}, {"topk": 65}, {"topk": -1}):
        with pytest.raises(InputError):
            Still(**bad)
    with pytest.raises(InputError, match=r"layers \[1\] have no full attention"):
        Still(layers=(1,)).convert(copy.deepcopy(tiny_gemma3))
    with pytest.raises(ModelError, match="no hybrid attention"):
        StillCache(tiny_llama)
    model, ids = hybrid(tiny_llama), ids_of(20)
    with pytest.raises(ModelError, match="already"):
        Still().convert(model)
    with pytest.raises(ModelError, match="layer 0 has hybrid attention, which an ordinary cache"):
        model.generate(ids, max_new_tokens=2, eos_token_id=None)
    with pytest.raises(ModelError, match="reads a text in order"):
        logits_of(model, ids, position_ids=torch.arange(20)[None] % 10, use_cache=False)
    cache = StillCache(model)
    logits_of(model, ids, past_key_values=cache)
    with pytest.raises(ModelError, match="forget"):
        cache.crop(-1)
