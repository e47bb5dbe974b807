"""Window recurrence: the model as it was without memory, attention over one more position with."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tokenry.core.errors import InputError, ModelError
from tokenry.model.memory.recurrence import WindowMemory, WindowRecurrence, decoder_layers

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def ids_of(*shape, seed=0):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))


def recurrent_of(model, window=6, **options):
    torch.manual_seed(0)
    return WindowRecurrence(copy.deepcopy(model), window, **options).eval()


@torch.no_grad()
def by_windows(model, ids, window):
    parts = [model(ids[:, at : at + window]).logits for at in range(0, ids.shape[1], window)]
    return torch.cat(parts, dim=1)


def test_without_memory_it_is_the_original_model(tiny_model):
    ids = ids_of(2, 20)
    recurrent = recurrent_of(tiny_model)
    with torch.no_grad():
        plain = recurrent(ids, recurrent=False).logits
        torch.testing.assert_close(plain, by_windows(tiny_model, ids, 6), **CLOSE)
        found = recurrent(ids).logits
        # a memory that no row has is masked out, though it is in the cache
        nothing = WindowMemory(torch.randn(2, 32), torch.zeros(2).bool())
        masked = recurrent(ids[:, :6], memory=nothing).logits
    torch.testing.assert_close(found[:, :6], plain[:, :6], **CLOSE)
    assert not torch.allclose(found[:, 6:], plain[:, 6:], atol=1e-2)
    torch.testing.assert_close(masked, plain[:, :6], **CLOSE)


def test_the_extra_position_is_attended_to_as_written(tiny_llama):
    """One query of the insertion layer by hand: softmax over the memory's key and the token's."""
    recurrent = recurrent_of(tiny_llama, layer=1)
    block = decoder_layers(recurrent.model)[1]
    seen = {}
    handle = block.self_attn.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(kwargs, output=output[0]),
        with_kwargs=True,
    )
    memory = WindowMemory(torch.randn(1, 32), torch.ones(1).bool())
    with torch.no_grad():
        recurrent(ids_of(1, 1), memory=memory)
        handle.remove()
        attention, x = block.self_attn, seen["hidden_states"]
        r = block.input_layernorm(memory.state[:, None])
        q = attention.q_proj(x).view(4, 8)  # position 0: not rotated
        k = torch.cat([attention.k_proj(r), attention.k_proj(x)], 1).view(2, 2, 8)
        v = torch.cat([attention.v_proj(r), attention.v_proj(x)], 1).view(2, 2, 8)
        heads = []
        for head in range(4):
            weights = (q[head] @ k[:, head // 2].T / 8**0.5).softmax(-1)
            heads.append(weights @ v[:, head // 2])
        expected = attention.o_proj(torch.cat(heads))
    torch.testing.assert_close(seen["output"][0, 0], expected, **CLOSE)


def test_memory_carries_over_from_call_to_call(tiny_model):
    ids = ids_of(2, 18)
    recurrent = recurrent_of(tiny_model)
    with torch.no_grad():
        whole = recurrent(ids)
        first = recurrent(ids[:, :12])
        second = recurrent(ids[:, 12:], memory=first.memory)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits, **CLOSE)
    torch.testing.assert_close(second.memory.state, whole.memory.state, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(tiny_model, side):
    recurrent = recurrent_of(tiny_model)
    long, short = ids_of(1, 17), ids_of(1, 10, seed=1)
    start = 7 if side == "left" else 0
    ids = torch.zeros(2, 17, dtype=torch.long)
    attention = torch.zeros(2, 17, dtype=torch.bool)
    ids[0], attention[0] = long, True
    ids[1, start : start + 10], attention[1, start : start + 10] = short, True
    with torch.no_grad():
        both = recurrent(ids, attention, labels=ids)
        apart = [recurrent(long, labels=long), recurrent(short, labels=short)]
    torch.testing.assert_close(both.logits[0], apart[0].logits[0], **CLOSE)
    torch.testing.assert_close(both.logits[1, start : start + 10], apart[1].logits[0], **CLOSE)
    expected = (apart[0].loss * 16 + apart[1].loss * 9) / 25
    torch.testing.assert_close(both.loss, expected, **CLOSE)
    torch.testing.assert_close(both.memory.state[1], apart[1].memory.state[0], **CLOSE)


def test_a_window_can_be_read_token_by_token(tiny_model):
    ids = ids_of(2, 12)
    recurrent = recurrent_of(tiny_model)
    with torch.no_grad():
        whole = recurrent(ids)
        cache = recurrent.cache(recurrent(ids[:, :6]).memory)
        steps = [recurrent.model(ids[:, at : at + 1], past_key_values=cache) for at in range(6, 12)]
        stepwise = torch.cat([step.logits for step in steps], dim=1)
        torch.testing.assert_close(stepwise, whole.logits[:, 6:], **CLOSE)
        memory = recurrent(ids[:1, :6]).memory
        text = recurrent.model.generate(
            ids[:1, 6:8], past_key_values=recurrent.cache(memory), max_new_tokens=3,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        logits = recurrent(text, memory=memory).logits
    assert text[0, 2:].tolist() == logits[0, 1:-1].argmax(-1).tolist()


def test_gradients_go_back_through_the_horizon_and_no_further(tiny_llama):
    def reach(horizon, last=3):
        """Whether the gradient of the loss of one of four windows comes to each of them."""
        recurrent = recurrent_of(tiny_llama, window=4, horizon=horizon)
        found = []
        embeddings = recurrent.model.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda m, a, out: found.append((a[0], out)))
        ids = ids_of(1, 16)
        logits = recurrent(ids).logits
        handle.remove()
        with torch.no_grad():
            torch.testing.assert_close(logits, recurrent(ids).logits, **CLOSE)
        loss = logits[:, 4 * last : 4 * last + 4].float().logsumexp(-1).sum()
        gradients = torch.autograd.grad(
            loss,
            [*(out for _, out in found), *recurrent.update.parameters()],
            allow_unused=True,
        )
        came = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
        assert all(came[len(found) :]) == (last > 0)  # the update net is trained
        windows = [ids[:, at : at + 4] for at in range(0, 16, 4)]
        return [
            any(c for (read, _), c in zip(found, came, strict=False) if torch.equal(read, window))
            for window in windows
        ]

    assert reach(4) == reach(3) == [True, True, True, True]
    assert reach(2) == [False, True, True, True]
    assert reach(1) == [False, False, True, True]
    for last in range(4):  # the same for every window of the text
        assert reach(1, last) == [last - 1 <= window <= last for window in range(4)]


def test_it_learns_to_carry_a_token_over():
    """The second window's token is the first's: only the memory can know."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    recurrent = WindowRecurrence(LlamaForCausalLM(config), window=2)
    optimizer = torch.optim.Adam(recurrent.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        secret = torch.randint(2, 8, (64,), generator=generator)
        one = torch.ones_like(secret)
        ids = torch.stack([one, secret, one, secret], 1)
        labels = ids.clone()
        labels[:, :3] = -100
        loss = recurrent(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # blind: log 6 = 1.8
    assert recurrent(ids, labels=labels, recurrent=False).loss.item() > 1.2


def test_the_model_itself_is_still_the_model(tiny_llama):
    ids = ids_of(1, 10)
    recurrent = recurrent_of(tiny_llama)
    with torch.no_grad():
        expected = tiny_llama(ids).logits
        torch.testing.assert_close(recurrent.model(ids).logits, expected, **CLOSE)
        cache = DynamicCache()
        recurrent.model(ids[:, :4], past_key_values=cache)
        rest = recurrent.model(ids[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(rest, expected[:, 4:], **CLOSE)


def test_half_precision_and_adapters(tiny_llama):
    from peft import LoraConfig, get_peft_model

    ids = ids_of(1, 12)
    half = recurrent_of(copy.deepcopy(tiny_llama).bfloat16())
    assert half(ids, labels=ids).loss.isfinite()
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    recurrent = WindowRecurrence(get_peft_model(copy.deepcopy(tiny_llama), config), 6).eval()
    plain = recurrent_of(tiny_llama)
    plain.update.load_state_dict(recurrent.update.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(recurrent(ids).logits, plain(ids).logits, **CLOSE)


def test_what_cannot_be_is_refused(tiny_llama):
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(InputError, match="layer 9"):
        WindowRecurrence(copy.deepcopy(tiny_llama), layer=9)
    with pytest.raises(InputError, match="window"):
        WindowRecurrence(copy.deepcopy(tiny_llama), window=0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2))
    with pytest.raises(ModelError, match="Llama"):
        WindowRecurrence(gpt2)
