"""SkipDecode: nested layers, ragged caches that equal the masked forward, columns, not rows."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ModelError
from tokenry.model.adaptive.skipdecode import (
    Depth,
    RaggedCache,
    SkipDecode,
    average_layers,
    executed_layers,
    layers_for_speedup,
    linear_layer_schedule,
    speedup_estimate,
)
from tokenry.model.adaptive.wrapping import layer_flops

IDS = torch.randint(2, 64, (3, 20), generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
GREEDY = {"do_sample": False, "eos_token_id": None}


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


def layers_of(model):
    return model.config.num_hidden_layers


def window_last(tiny_gemma3):
    """Gemma whose only full layer is one that is skipped: masks cannot be sized by it."""
    from transformers import Gemma3ForCausalLM

    config = copy.deepcopy(tiny_gemma3.config)
    config.layer_types = ["sliding_attention", "full_attention"] + ["full_attention"] * 2
    torch.manual_seed(1)
    return Gemma3ForCausalLM(config).eval()


def step_by_step(model, ids, cache, prompt, attention=None):
    """Logits of reading the prompt at once and then one column at a time."""
    attention = torch.ones_like(ids) if attention is None else attention
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    parts = []
    for start, stop in itertools.pairwise([0, *range(prompt, ids.shape[1] + 1)]):
        output = model(
            ids[:, start:stop],
            attention_mask=attention[:, :stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
        )
        parts.append(output.logits)
    return torch.cat(parts, dim=1)


def test_the_worked_example():
    assert linear_layer_schedule(5, 6, 2) == [6, 5, 4, 3, 2]
    # halves are rounded up, odd and even alike: 5.5 and 4.5, then 3.5
    assert linear_layer_schedule(3, 6, 5) == [6, 6, 5]
    assert linear_layer_schedule(3, 5, 4) == [5, 5, 4]
    assert linear_layer_schedule(5, 4, 2) == [4, 4, 3, 3, 2]
    assert executed_layers(2, 6) == [0, 5]
    assert executed_layers(4, 6) == [0, 3, 4, 5]
    assert executed_layers(6, 6) == [0, 1, 2, 3, 4, 5]
    assert executed_layers(4, 6, warmup=2) == [0, 1, 4, 5]
    assert average_layers([6, 5, 4, 3, 2]) == 4
    assert speedup_estimate([6, 5, 4, 3, 2], 6) == 1.5


@given(st.integers(2, 40), st.data())
def test_layers_are_nested_and_the_budget_falls(n_layers, data):
    warmup = data.draw(st.integers(1, n_layers - 1))
    least = data.draw(st.integers(warmup + 1, n_layers))
    most = data.draw(st.integers(least, n_layers))
    length = data.draw(st.integers(1, 60))
    schedule = linear_layer_schedule(length, most, least)
    assert schedule[0] == most
    assert length == 1 or schedule[-1] == least
    for t, budget in enumerate(schedule):
        exact = most - (most - least) * t / max(length - 1, 1)
        assert abs(budget - exact) <= 0.5 + 1e-9
    sets = [set(executed_layers(budget, n_layers, warmup)) for budget in schedule]
    assert all(len(one) == budget for one, budget in zip(sets, schedule, strict=True))
    assert all(later <= earlier for earlier, later in itertools.pairwise(sets))
    # what each layer of the model does, from its own count of columns
    for count in ("generated", "all"):
        method = SkipDecode(most, least, length, warmup, count)
        prompt = data.draw(st.integers(0, 5))
        for number in range(n_layers):
            columns = Depth.of(number, n_layers, method).columns(prompt)
            for t in range(length + 3):
                inside = number in sets[min(t, length - 1)]
                column = prompt + t if count == "generated" else t
                if column >= prompt:
                    assert (column < columns) == inside
            if prompt:
                assert (columns >= prompt) == (number in sets[0])


def test_a_rising_schedule_and_impossible_budgets_are_refused(tiny_llama):
    with pytest.raises(InputError, match="rises from 2 to 3 at position 2"):
        SkipDecode(4, 2, 3, budgets=(3, 2, 3))
    for wrong in (
        {"warmup": 2},  # b = w: no top layer, an early exit
        {"warmup": 0},
        {"min_layers": 4},
        {"min_layers": 1},
        {"length": 0},
        {"count": "tokens"},
        {"budgets": ()},
        {"budgets": (4, 2)},
    ):
        with pytest.raises(InputError):
            SkipDecode(**({"max_layers": 3, "min_layers": 2, "length": 5} | wrong))
    with pytest.raises(InputError, match="no more than the model's 3"):
        SkipDecode(4, 2, 5).attach(tiny_llama)


def test_budgets_for_a_speedup():
    assert layers_for_speedup(24, 2.0, 6) == (18, 6)
    assert layers_for_speedup(24, 2.0) == (22, 2)
    assert layers_for_speedup(30, 1.2) == (30, 20)
    assert layers_for_speedup(10, 1.35) == (10, 5)  # 20 / 1.35 = 14.8 layers in two: rounded
    for speedup in (1.0, 1.5, 3.0, 8.0):
        most, least = layers_for_speedup(24, speedup)
        found = speedup_estimate(linear_layer_schedule(1001, most, least), 24)
        assert found == pytest.approx(speedup, rel=0.05)
    for wrong in (0.5, 0.0, -1.0, 30.0):
        with pytest.raises(InputError, match="choose a speed-up"):
            layers_for_speedup(24, wrong)


def test_all_layers_at_every_position_is_the_base_model(model):
    n = layers_of(model)
    plain = model(IDS).logits
    generated = model.generate(IDS[:, :8], max_new_tokens=6, **GREEDY)
    with SkipDecode(n, n, 4).attach(model) as attached:
        assert torch.equal(model(IDS).logits, plain)
        again = model.generate(
            IDS[:, :8], past_key_values=attached.cache(), max_new_tokens=6, **GREEDY
        )
    assert torch.equal(again, generated)


@pytest.mark.parametrize("count", ["generated", "all"])
@pytest.mark.parametrize("most", [0, 1])  # layers that even the prompt does without
def test_ragged_caches_equal_the_forward_by_columns(model, count, most):
    n = layers_of(model)
    with SkipDecode(n - most, 2, 10, count=count).attach(model) as attached, torch.no_grad():
        whole = model(IDS, prompt_columns=6, use_cache=False).logits
        cache = attached.cache()
        torch.testing.assert_close(step_by_step(model, IDS, cache, 6), whole, **CLOSE)
        # a cache that reads everything at once, and one in two pieces
        pieces = attached.cache(prompt_columns=6)
        two = [model(part, past_key_values=pieces).logits for part in (IDS[:, :9], IDS[:, 9:])]
        torch.testing.assert_close(torch.cat(two, 1), whole, **CLOSE)
        assert cache.get_seq_length() == 20
        held = [0 if layer.keys is None else columns_held(layer) for layer in cache.layers]
        depths = [min(wrapper.depth.columns(6), 20) for wrapper in attached.wrappers()]
        assert held == depths
        assert len(set(held)) > 1


def columns_held(layer):
    return getattr(layer, "cumulative_length", layer.keys.shape[2])


def test_skipped_layers_leave_the_state_as_it_is(tiny_llama):
    """The forward by hand: every column through its own layers, keys of earlier columns kept."""
    model = copy.deepcopy(tiny_llama)
    schedule = SkipDecode(3, 2, 5)
    with schedule.attach(model), torch.no_grad():
        found = model(IDS[:, :5], use_cache=False).logits
    base = tiny_llama.model
    x = base.embed_tokens(IDS[:, :5])
    embeddings = base.rotary_emb(x, torch.arange(5)[None])
    mask = torch.full((5, 5), -1e30).triu(1)[None, None]
    sets = [executed_layers(budget, 3) for budget in schedule.schedule()]
    with torch.no_grad():
        for number, layer in enumerate(base.layers):
            after = layer(x, attention_mask=mask, position_embeddings=embeddings)
            runs = torch.tensor([number in one for one in sets])
            x = torch.where(runs[None, :, None], after, x)
        expected = tiny_llama.lm_head(base.norm(x))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_masks_are_sized_by_the_columns_and_not_by_a_skipped_layer(tiny_gemma3):
    model = window_last(tiny_gemma3)
    with SkipDecode(4, 2, 4).attach(model) as attached, torch.no_grad():
        whole = model(IDS, prompt_columns=5, use_cache=False).logits
        cache = attached.cache()
        torch.testing.assert_close(step_by_step(model, IDS, cache, 5), whole, **CLOSE)
        skipped = cache.layers[1].keys.shape[2]
        assert skipped < 20
        assert cache.get_seq_length(1) == 20
        assert cache.get_mask_sizes(1, 1) == (21, 0)


def test_generate_takes_the_schedule(model):
    with SkipDecode(layers_of(model), 2, 8).attach(model) as attached, torch.no_grad():
        found = model.generate(
            IDS[:, :7], past_key_values=attached.cache(), max_new_tokens=10, **GREEDY
        )
        text = IDS[:, :7]
        for _ in range(10):
            logits = model(text, prompt_columns=7, use_cache=False).logits
            text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, text)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_generate_without_a_cache_writes_the_same(model, options):
    before = model.prepare_inputs_for_generation
    with SkipDecode(layers_of(model), 2, 8).attach(model) as attached, torch.no_grad():
        options = GREEDY | {"max_new_tokens": 10} | options
        for prompt in (IDS[:, :7], IDS[:1, :4]):
            found = model.generate(prompt, use_cache=False, **options)
            expected = model.generate(prompt, past_key_values=attached.cache(), **options)
            assert torch.equal(found, expected)
    assert model.prepare_inputs_for_generation == before


def test_generate_without_a_cache_writes_the_same_inside_an_adapter(tiny_llama):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(tiny_llama), lora).eval()
    with SkipDecode(layers_of(tiny_llama), 2, 8).attach(adapted) as attached, torch.no_grad():
        options = GREEDY | {"max_new_tokens": 10, "input_ids": IDS[:, :7]}
        found = adapted.generate(use_cache=False, **options)
        assert torch.equal(found, adapted.generate(past_key_values=attached.cache(), **options))


def test_rows_do_not_depend_on_each_other_or_on_left_padding(model):
    """Rows share columns: a row padded by n is the row alone whose prompt is n columns longer."""
    attention = torch.ones_like(IDS)
    attention[1, :4] = 0
    ids = IDS * attention
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    with SkipDecode(layers_of(model), 2, 9).attach(model) as attached, torch.no_grad():
        batch = step_by_step(model, ids, attached.cache(), 8, attention)
        order = torch.tensor([2, 0, 1])
        mixed = step_by_step(model, ids[order], attached.cache(), 8, attention[order])
        torch.testing.assert_close(mixed, batch[order], **CLOSE)
        for row in range(3):
            real = attention[row].bool()
            start = int((~real).sum())
            alone = step_by_step(model, ids[row : row + 1, start:], attached.cache(), 8 - start)
            torch.testing.assert_close(alone[0], batch[row, start:], **CLOSE)
        whole = model(
            ids, attention_mask=attention, position_ids=positions, prompt_columns=8, use_cache=False
        ).logits
        torch.testing.assert_close(whole[attention.bool()], batch[attention.bool()], **CLOSE)
        # generate itself pads by columns too
        found = model.generate(
            ids[:, :8],
            attention_mask=attention[:, :8],
            past_key_values=attached.cache(),
            max_new_tokens=5,
            **GREEDY,
        )
        alone = model.generate(
            ids[1:2, 4:8], past_key_values=attached.cache(), max_new_tokens=5, **GREEDY
        )
    assert torch.equal(found[1:2, 8:], alone[:, 4:])


def test_beams_and_rollback(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    with SkipDecode(3, 2, 8).attach(model) as attached, torch.no_grad():
        beams = model.generate(
            IDS[:, :6], past_key_values=attached.cache(), max_new_tokens=6, num_beams=2, **GREEDY
        )
        assert beams.shape == (3, 12)
        cache = attached.cache()
        whole = step_by_step(model, IDS, cache, 6)
        cache.crop(-8)
        assert cache.get_seq_length() == 12
        torch.testing.assert_close(
            model(IDS[:, 12:], past_key_values=cache).logits, whole[:, 12:], **CLOSE
        )
        cache.crop(-20)
        assert cache.prompt is None
        torch.testing.assert_close(step_by_step(model, IDS, cache, 6), whole, **CLOSE)
        with pytest.raises(InputError, match="minus the number"):
            cache.crop(3)
        cache.reset()
        torch.testing.assert_close(step_by_step(model, IDS, cache, 6), whole, **CLOSE)


def test_a_cache_of_one_length_is_refused_by_name(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    with (
        SkipDecode(3, 2, 8).attach(model),
        pytest.raises(ModelError, match=r"DynamicCache.*attached.cache\(\)"),
    ):
        model.generate(IDS[:, :6], max_new_tokens=3, **GREEDY)


def test_training_reaches_what_ran_and_nothing_else(model):
    """Budgets of 2: the layers between the first and the last get no gradient."""
    n = layers_of(model)
    with SkipDecode(n, 2, 4, budgets=(2, 2)).attach(model):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    for number, layer in enumerate(model.model.layers):
        gradient = layer.self_attn.q_proj.weight.grad
        assert (gradient is not None and bool(gradient.any())) == (number in (0, n - 1))


def test_half_precision_and_checkpointing(tiny_llama):
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    with SkipDecode(3, 2, 8).attach(model) as attached:
        found = model.generate(
            IDS[:, :6], past_key_values=attached.cache(), max_new_tokens=4, **GREEDY
        )
        assert found.shape == (3, 10)
    model = copy.deepcopy(tiny_llama).train()
    gradients = []
    with SkipDecode(3, 2, 8).attach(model):
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            model(IDS, labels=IDS, prompt_columns=4, use_cache=False).loss.backward()
            gradients.append(model.model.layers[1].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_flops_follow_the_schedule(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    with SkipDecode(3, 2, 8).attach(model) as attached:
        scheduled, full = attached.flops_per_token(prompt=10, new=8)
        one, head = layer_flops(model, 0, 14), 2 * 64 * 32
        assert full == 3 * one + head
        average = average_layers(attached.method.schedule())
        assert scheduled == pytest.approx(average * one + head)


def test_the_cache_is_a_transformers_cache(tiny_gemma3):
    from transformers import Cache

    cache = RaggedCache(tiny_gemma3.config)
    assert isinstance(cache, Cache)
    assert cache.get_seq_length() == 0
    assert [layer.is_sliding for layer in cache.layers] == [True, True, True, False]


@pytest.mark.model
def test_smollm2_writes_with_fewer_layers(smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer("def add(a, b):", return_tensors="pt")
    with SkipDecode(30, 24, 6).attach(model) as attached, torch.no_grad():
        cache = attached.cache()
        text = model.generate(**inputs, past_key_values=cache, max_new_tokens=6, **GREEDY)
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        prompt = inputs["input_ids"].shape[1]
        assert lengths[0] == lengths[-1] == prompt + 5
        assert lengths[1] == prompt + 1
        whole = model(text[:, :-1], prompt_columns=prompt, use_cache=False).logits
    assert torch.equal(whole[:, prompt - 1 :].argmax(-1), text[:, prompt:])


@pytest.mark.model
def test_gemma3_writes_with_fewer_layers_what_it_reads(gemma3):
    model, tokenizer = gemma3
    inputs = tokenizer("def add(a, b):", return_tensors="pt")
    prompt = inputs["input_ids"].shape[1]
    with SkipDecode(18, 12, 6).attach(model) as attached, torch.no_grad():
        cache = attached.cache()
        text = model.generate(**inputs, past_key_values=cache, max_new_tokens=6, **GREEDY)
        whole = model(text[:, :-1], prompt_columns=prompt, use_cache=False).logits
    assert torch.equal(whole[:, prompt - 1 :].argmax(-1), text[:, prompt:])
