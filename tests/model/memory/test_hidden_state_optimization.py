"""Hidden-state optimisation against plain evaluation and finite differences."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.model.memory.hidden_state_optimization import HiddenStateOptimizer, Reading

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def ids_of(*shape, seed=0):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain_nll(model, ids):
    logprobs = model(ids).logits[:, :-1].float().log_softmax(-1)
    nll = -logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(nll, (1, 0))


@pytest.mark.parametrize("segment", [1, 4, 7, 50])
def test_without_a_step_it_is_plain_evaluation(tiny_model, segment):
    ids = ids_of(2, 23)  # longer than the tiny Gemma's window of 8
    reading = HiddenStateOptimizer(tiny_model, lr=0.0, segment=segment)(ids)
    torch.testing.assert_close(reading.nll, plain_nll(tiny_model, ids), **CLOSE)
    assert float(reading.mean_nll()[0]) == pytest.approx(float(reading.nll[0].sum() / 22))


def test_the_first_segment_is_scored_before_any_step(tiny_model):
    ids = ids_of(2, 18)
    reading = HiddenStateOptimizer(tiny_model, lr=0.05, segment=6)(ids)
    plain = plain_nll(tiny_model, ids)
    # the token after the segment is foreseen by the same forward pass
    torch.testing.assert_close(reading.nll[:, :7], plain[:, :7], **CLOSE)
    assert not torch.allclose(reading.nll[:, 7:], plain[:, 7:], atol=1e-2)


def test_weights_stay_bit_for_bit_and_get_no_gradient(tiny_llama):
    model = copy.deepcopy(tiny_llama)  # other tests may have left gradients on the shared one
    model.zero_grad()
    before = [weight.detach().clone() for weight in model.parameters()]
    HiddenStateOptimizer(model, lr=0.1, segment=5)(ids_of(1, 20))
    for weight, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, old)
        assert weight.grad is None
        assert weight.requires_grad


def loss_at(model, states, ids, at):
    """Sum of -log p of ids[at+1:] when the first `at` positions have these keys and values."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(states):
        cache.update(keys, values, number)
    with torch.no_grad():
        logits = model(ids[:, at:], past_key_values=cache, use_cache=True,
                       position_ids=torch.arange(at, ids.shape[1])[None]).logits  # fmt: skip
    logprobs = logits[:, :-1].log_softmax(-1)
    return -float(logprobs.gather(-1, ids[:, at + 1 :, None]).sum())


def test_gradients_are_those_of_the_segments_loss():
    """The first moments after a segment, against finite differences of its loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    ids = torch.randint(0, 16, (1, 10))
    optimizer = HiddenStateOptimizer(model, lr=0.02, segment=5)
    before = optimizer(ids[:, :5])
    after = optimizer.read(before, ids[:, 5:], torch.ones(1, 5).bool(), None, [0])
    b1 = optimizer.betas[0]
    states = [(keys.double(), values.double()) for keys, values in before.states]
    step = 1e-3
    for layer, which, place in [(0, 0, 3), (0, 1, 1), (1, 0, 4), (1, 1, 0)]:
        m, old = after.moments[layer][which][0], before.moments[layer][which][0]
        gradient = (m[:, :, place] - b1 * old[:, :, place]) / (1 - b1)
        for dimension in (0, 5):
            values = []
            for sign in (1, -1):
                moved = [list(pair) for pair in states]
                changed = moved[layer][which].clone()
                changed[0, 0, place, dimension] += sign * step
                moved[layer][which] = changed
                values.append(loss_at(model, moved, ids, 5))
            difference = (values[0] - values[1]) / (2 * step)
            assert float(gradient[0, 0, dimension]) == pytest.approx(difference, rel=1e-2, abs=2e-3)


def test_the_step_is_adams_with_each_states_own_age(tiny_llama):
    """Against torch's Adam on one state for as many steps as the state is old."""
    optimizer = HiddenStateOptimizer(tiny_llama, lr=0.01, segment=4)
    reading = Reading.empty(1, "cpu")
    ids = ids_of(1, 12)
    history = []
    for begin in (0, 4, 8):
        part = ids[:, begin : begin + 4]
        reading = optimizer.read(reading, part, torch.ones_like(part).bool(), None, [0])
        history.append(reading)
    assert reading.age.tolist() == [3] * 4 + [2] * 4 + [1] * 4
    state = torch.zeros_like(history[0].states[1][1][:, :, :4])
    adam = torch.optim.Adam([state], lr=0.01)
    old = torch.zeros_like(state)
    for step, past in enumerate(history):
        m = past.moments[1][1][0][:, :, :4]
        state.grad = (m - 0.9 * old) / 0.1
        old = m
        adam.step()
        moved = past.states[1][1][:, :, :4] - history[0].states[1][1][:, :, :4]
        first = state.clone() if step == 0 else first  # noqa: F821
        torch.testing.assert_close(moved, state - first, rtol=1e-3, atol=1e-5)


def test_moments_and_ages_move_with_the_memory(tiny_llama):
    ids = ids_of(1, 20)
    short = HiddenStateOptimizer(tiny_llama, lr=0.01, segment=5, memory=8)(ids)
    assert [tensor.shape[2] for pair in short.states for tensor in pair] == [8] * 6
    assert short.age.tolist() == [2, 2, 2, 1, 1, 1, 1, 1]
    m, _ = short.moments[0][0]
    assert m.shape == short.states[0][0].shape
    # one segment later the kept positions have the moments that they had, decayed and added to
    optimizer = HiddenStateOptimizer(tiny_llama, lr=0.01, segment=5, memory=8)
    more = ids_of(1, 5, seed=3)
    nothing = torch.zeros(1, 5).bool()
    after = optimizer.read(short, more, torch.ones(1, 5).bool(), nothing, [0])
    torch.testing.assert_close(after.moments[0][0][0][:, :, :3], 0.9 * m[:, :, 5:])
    assert after.age.tolist() == [2, 2, 2, 1, 1, 1, 1, 1]


def test_a_memory_without_a_step_attends_to_the_latest_positions(tiny_llama):
    ids = ids_of(1, 9)
    reading = HiddenStateOptimizer(tiny_llama, lr=0.0, segment=1, memory=64)(ids)
    short = HiddenStateOptimizer(tiny_llama, lr=0.0, segment=1, memory=4)(ids)
    torch.testing.assert_close(short.nll[:, :6], reading.nll[:, :6], **CLOSE)
    assert not torch.allclose(short.nll[:, 6:], reading.nll[:, 6:], atol=1e-3)


@pytest.mark.parametrize("lr", [0.0, 0.01])
def test_rows_are_independent_and_padding_is_nothing(tiny_model, lr):
    """Ragged rows padded on the right; the same rows alone."""
    optimizer = HiddenStateOptimizer(tiny_model, lr=lr, segment=6)
    ids = ids_of(2, 20)
    attention = torch.ones_like(ids)
    attention[1, 14:] = 0
    both = optimizer(ids, attention)
    assert bool((both.nll[1, 14:] == 0).all())
    for row, length in ((0, 20), (1, 14)):
        alone = optimizer(ids[row : row + 1, :length])
        torch.testing.assert_close(both.nll[row, :length], alone.nll[0], rtol=2e-3, atol=2e-3)


def test_left_padding_only_shifts_the_segments(tiny_llama):
    ids = ids_of(1, 14)
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], dim=1)
    attention = torch.cat([torch.zeros(1, 6), torch.ones(1, 14)], dim=1)
    optimizer = HiddenStateOptimizer(tiny_llama, lr=0.01, segment=6)
    found = optimizer(padded, attention)
    torch.testing.assert_close(found.nll[:, 6:], optimizer(ids).nll, rtol=2e-3, atol=2e-3)
    assert bool((found.nll[:, :7] == 0).all())


def test_it_lowers_the_loss_of_a_text_that_repeats(tiny_llama):
    ids = ids_of(1, 8).repeat(1, 8)
    plain = HiddenStateOptimizer(tiny_llama, lr=0.0, segment=8)(ids).mean_nll()
    better = HiddenStateOptimizer(tiny_llama, lr=0.03, segment=8)(ids).mean_nll()
    assert float(better) < float(plain) - 0.05


def test_classification_without_a_step_is_plain_scoring(tiny_llama):
    demonstrations = [([5, 6, 7], [8]), ([9, 10], [11, 12])]
    query, labels = [5, 6, 20], [[8], [11, 12], [30, 2, 3]]
    plain = HiddenStateOptimizer(tiny_llama, lr=0.0).classify(demonstrations, query, labels)
    context = [5, 6, 7, 8, 9, 10, 11, 12, 5, 6, 20]
    for value, label in zip(plain.tolist(), labels, strict=True):
        nll = plain_nll(tiny_llama, torch.tensor([[*context, *label]]))
        assert value == pytest.approx(-float(nll[0, len(context) :].sum()), abs=1e-3)
    learned = HiddenStateOptimizer(tiny_llama, lr=0.03).classify(demonstrations, query, labels)
    assert not torch.allclose(plain, learned, atol=1e-2)


def test_demonstrations_teach_their_label():
    """The same prompt again and again with one label: with the steps, that label gains."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    demonstrations = [([5, 6], [8])] * 6
    plain, learned = (
        HiddenStateOptimizer(model, lr=lr).classify(demonstrations, [5, 6], [[8], [9]])
        for lr in (0.0, 0.03)
    )
    assert float(learned[0] - learned[1]) > float(plain[0] - plain[1])


def test_half_precision_states_learn_too(tiny_llama):
    import copy

    model = copy.deepcopy(tiny_llama).bfloat16()
    ids = ids_of(1, 8).repeat(1, 6)
    reading = HiddenStateOptimizer(model, lr=1e-3, segment=8)(ids)
    assert reading.nll.dtype == torch.float32
    keys = reading.states[0][0]
    assert keys.dtype == torch.float32
    # steps below bfloat16's resolution add up in the float32 states
    assert not torch.equal(keys, keys.bfloat16().float())


def test_bad_settings_are_refused(tiny_llama):
    for options in ({"segment": 0}, {"memory": 0}, {"lr": -1.0}, {"betas": (1.0, 0.9)}):
        with pytest.raises(InputError):
            HiddenStateOptimizer(tiny_llama, **options)
    with pytest.raises(ShapeError, match="ids must be"):
        HiddenStateOptimizer(tiny_llama)(torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match="at least one token"):
        HiddenStateOptimizer(tiny_llama).classify([], [3], [[]])
