"""Soups of checkpoints: exact averages, ties, and which models may be averaged at all."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ModelError, ShapeError, VocabularyError
from tokenry.model.averaging import interpolation_curve, soup, soup_models
from tokenry.model.score import score


def random_states(seed, count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "weight": torch.randn(3, 4, generator=generator).to(dtype),
            "bias": torch.randn(4, generator=generator).to(dtype),
            "steps": torch.tensor(7),
        }
        for _ in range(count)
    ]


def moved(model, seed, scale=0.05):
    """A copy whose weights (tied ones once) are shifted at random."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return other


@given(st.integers(0, 1000), st.integers(1, 5))
def test_equal_weights_give_the_mean_in_any_order(seed, count):
    states = random_states(seed, count)
    got = soup(states)
    wanted = torch.stack([state["weight"].double() for state in states]).mean(0)
    torch.testing.assert_close(got["weight"], wanted.float(), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(soup(states[::-1])["weight"], got["weight"], rtol=1e-7, atol=1e-8)
    assert int(got["steps"]) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_identical_models_give_that_model_bit_for_bit(dtype, count):
    (state,) = random_states(0, 1, dtype)
    for name, tensor in soup([state] * count).items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.dtype == state[name].dtype
        assert tensor.data_ptr() != state[name].data_ptr()


def test_all_weight_on_one_model_is_that_model():
    first, second = random_states(0, 2)
    assert torch.equal(soup([first, second], [1, 0])["weight"], first["weight"])
    assert torch.equal(soup([first, second], [0, 1])["weight"], second["weight"])


def test_half_precision_is_rounded_once():
    """256 + 1/2 steps of bfloat16 lose everything when summed in bfloat16."""
    states = [{"w": torch.tensor([value]).bfloat16()} for value in (256.0, 1.0, 1.0, 1.0)]
    assert soup(states, [0.25] * 4)["w"].tolist() == [torch.tensor(64.75).bfloat16().item()]
    assert soup(states, [0.97, 0.01, 0.01, 0.01])["w"].item() == 248.0  # 248.35


def test_tied_weights_stay_tied_and_the_model_is_the_average(tiny_llama):
    one, two = moved(tiny_llama, 1), moved(tiny_llama, 2)
    blended = soup_models([one, two], [0.25, 0.75])
    wanted = 0.25 * one.lm_head.weight + 0.75 * two.lm_head.weight
    torch.testing.assert_close(blended.lm_head.weight.detach(), wanted.detach())
    assert blended.lm_head.weight is blended.model.embed_tokens.weight
    made = soup([one.state_dict(), two.state_dict()])
    assert made["lm_head.weight"] is made["model.embed_tokens.weight"]
    assert not any(weight.requires_grad for weight in blended.parameters())
    assert not blended.training
    assert all(weight.requires_grad for weight in one.parameters())


def test_entries_tied_in_one_model_only_are_averaged_apart():
    shared = torch.ones(2)
    tied, untied = {"a": shared, "b": shared}, {"a": torch.zeros(2), "b": torch.full((2,), 3.0)}
    got = soup([tied, untied])
    assert got["a"].tolist() == [0.5, 0.5]
    assert got["b"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [0, 1, 0]])
def test_a_soup_of_tied_and_untied_models_keeps_both_averages(tiny_llama, order):
    tied, untied = moved(tiny_llama, 1), moved(tiny_llama, 2)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach() + 1)
    untied.config.tie_word_embeddings = False
    models = [[tied, untied][which] for which in order]
    blended = soup_models(models)
    for part in ("lm_head", "model.embed_tokens"):
        wanted = torch.stack([m.get_submodule(part).weight for m in models]).mean(0)
        torch.testing.assert_close(blended.get_submodule(part).weight, wanted)
    assert not blended.config.tie_word_embeddings


def test_models_that_tie_other_weights_are_refused():
    def pair(first, second):
        model = torch.nn.Module()
        for name in "abc":
            setattr(model, name, torch.nn.Linear(2, 2, bias=False))
        setattr(model, second, getattr(model, first))
        return model

    with pytest.raises(ModelError, match="tie different weights"):
        soup_models([pair("a", "b"), pair("b", "c")])


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_logits_linear_in_the_weights_make_the_soup_a_geometric_mean(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    blended = soup([{"w": first}, {"w": second}], [alpha, 1 - alpha])["w"]
    one, two = ((features @ weight).log_softmax(-1) for weight in (first, second))
    geometric = (alpha * one + (1 - alpha) * two).log_softmax(-1)
    torch.testing.assert_close((features @ blended).log_softmax(-1), geometric)


def test_the_line_between_two_models(tiny_llama):
    one, two = moved(tiny_llama, 1), moved(tiny_llama, 2)
    curve = interpolation_curve(one, two, lambda model: float(model.lm_head.weight[3, 2]), n=5)
    assert [t for t, _ in curve] == [0, 0.25, 0.5, 0.75, 1]
    ends = [float(model.lm_head.weight[3, 2].detach()) for model in (one, two)]
    for t, value in curve:
        assert value == pytest.approx((1 - t) * ends[0] + t * ends[1], abs=1e-6)


def test_unrelated_models_have_no_middle():
    """Two models that learnt the same counting from different starts: each does it, their average
    does not; two runs from one start still do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [[(start + step) % 8 for step in range(9)] for start in range(8)]
    batch = TokenBatch.from_ids(rows)

    def loss(model):
        return float(-score(model, batch, ("logprob",)).logprob[batch.target].mean())

    def learnt(start, steps, seed):
        model = copy.deepcopy(start)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            part = batch.select(torch.randint(8, (4,), generator=generator))
            out = score(model, part, ("logprob",), grad=True)
            optimizer.zero_grad()
            (-out.logprob[part.target].mean()).backward()
            optimizer.step()
        return model.eval()

    def fresh(seed):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
        )
        return LlamaForCausalLM(config)

    one, stranger = learnt(fresh(0), 40, 0), learnt(fresh(1), 40, 1)
    siblings = [learnt(one, 10, seed) for seed in (2, 3)]
    apart = loss(soup_models([one, stranger]))
    assert apart > 5 * max(loss(one), loss(stranger))
    assert apart > 5 * loss(soup_models(siblings))
    assert loss(soup_models(siblings)) < 2 * max(map(loss, siblings))


def test_averaging_lora_factors_is_not_averaging_models(tiny_llama):
    from peft import LoraConfig, get_peft_model

    def adapted(seed):
        torch.manual_seed(seed)
        options = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        return get_peft_model(copy.deepcopy(tiny_llama), options)

    one, two = adapted(1), adapted(2)
    factors = soup([one.state_dict(), two.state_dict()])
    third = adapted(3)
    third.load_state_dict(factors)
    with pytest.raises(ModelError, match="merge_and_unload"):
        soup_models([one, two])
    merged = soup_models([model.merge_and_unload() for model in (one, two)])
    by_factors = third.merge_and_unload()
    name = "model.layers.0.self_attn.q_proj.weight"
    gap = (merged.state_dict()[name] - by_factors.state_dict()[name]).abs().max()
    assert gap > 1e-2


def test_what_cannot_be_averaged_is_refused(tiny_llama):
    (state,) = random_states(0, 1)
    with pytest.raises(InputError, match="sum to 1"):
        soup([state, state], [0.5, 0.6])
    with pytest.raises(InputError, match="3 weights for 2"):
        soup([state, state], [0.5, 0.3, 0.2])
    with pytest.raises(InputError, match="at least one"):
        soup([])
    with pytest.raises(ModelError, match="bias"):
        soup([state, {"weight": state["weight"], "steps": state["steps"]}])
    with pytest.raises(ShapeError, match=r"weight is \[3, 4\]"):
        soup([state, {**state, "weight": torch.zeros(3, 5)}])
    with pytest.raises(ModelError, match="steps"):
        soup([state, {**state, "steps": torch.tensor(8)}])
    other = copy.deepcopy(tiny_llama)
    other.config.vocab_size = 65
    with pytest.raises(VocabularyError, match="65"):
        soup_models([tiny_llama, other])
    with pytest.raises(InputError, match="2 ends"):
        interpolation_curve(tiny_llama, tiny_llama, lambda _: 0.0, n=1)
