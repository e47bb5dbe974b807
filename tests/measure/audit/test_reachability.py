"""Reachability: searches against enumeration, the gradient against differences, the bound."""

import itertools
import math

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.measure.audit.reachability import (
    attention_unreachability_bound,
    backoff_prompt_search,
    gcg_prompt_search,
    greedy_back_generation,
    one_hot_gradient,
    reachability_loss,
    reachable_set,
)

CANDIDATES = range(10)
STATE = [3, 7, 1]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


def last_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0, -1].float()


def outputs(model, k):
    """R^k by enumeration over the candidates: the outputs with exactly k control tokens."""
    rows = [[*prompt, *STATE] for prompt in itertools.product(CANDIDATES, repeat=k)]
    with torch.no_grad():
        return set(model(torch.tensor(rows)).logits[:, -1].argmax(-1).tolist())


def loss(model, prompt, target):
    """Mean cross-entropy of the target's tokens, one forward pass for each."""
    total, ids = 0.0, [*prompt, *STATE]
    for token in target:
        total -= float(last_logits(model, ids).log_softmax(-1)[token])
        ids.append(token)
    return total / len(target)


def test_one_control_token_reaches_exactly_the_enumerated_set(model):
    free, one = outputs(model, 0), outputs(model, 1)
    found = {
        y
        for y in range(64)
        if greedy_back_generation(model, STATE, [y], 1, candidates=CANDIDATES).reached
    }
    assert found == free | one
    assert len(found) > 1


def test_two_control_tokens_reach_a_part_of_the_enumerated_set(model):
    allowed = outputs(model, 0) | outputs(model, 1) | outputs(model, 2)
    for target in range(0, 64, 7):
        result = greedy_back_generation(model, STATE, [target], 2, candidates=CANDIDATES)
        assert result.reached <= (target in allowed)
        assert result.loss == pytest.approx(loss(model, result.prompt, [target]), abs=1e-4)
        output = int(last_logits(model, [*result.prompt, *STATE]).argmax())
        assert result.reached == (output == target)
        assert result.length <= 2
        assert len(result.losses) == result.length + 1


def test_nothing_is_prepended_when_the_state_says_it_by_itself(model):
    (free,) = outputs(model, 0)
    result = backoff_prompt_search(model, STATE, [free])
    assert (result.prompt, result.method, result.reached) == ((), "none", True)


def test_a_greedy_step_is_the_best_of_all_tokens(model):
    target = min(set(range(64)) - outputs(model, 0) - outputs(model, 1))
    result = greedy_back_generation(model, STATE, [target], 1, candidates=CANDIDATES)
    losses = [loss(model, [v], [target]) for v in CANDIDATES]
    assert result.loss == pytest.approx(min(losses), abs=1e-4)


def test_targets_of_several_tokens_are_judged_token_by_token(model):
    first = int(last_logits(model, STATE).argmax())
    second = int(last_logits(model, [*STATE, first]).argmax())
    result = greedy_back_generation(model, STATE, [first, second], 1)
    assert result.reached
    assert result.prompt == ()
    assert result.loss == pytest.approx(loss(model, [], [first, second]), abs=1e-4)
    other = (second + 1) % 64
    result = greedy_back_generation(model, STATE, [first, other], 1, candidates=CANDIDATES)
    if not result.reached:
        best = min(loss(model, [v], [first, other]) for v in CANDIDATES)
        assert result.loss == pytest.approx(best, abs=1e-4)


def test_batches_do_not_matter_and_the_blacklist_holds(model):
    whole = greedy_back_generation(model, STATE, [5], 2)
    pieces = greedy_back_generation(model, STATE, [5], 2, tokens_per_batch=7)
    assert (pieces.prompt, pieces.reached) == (whole.prompt, whole.reached)
    assert pieces.losses == pytest.approx(whole.losses, abs=1e-4)
    banned = {0, 1, 2, 3}
    assert not banned & set(greedy_back_generation(model, STATE, [5], 2, blacklist=banned).prompt)
    result = gcg_prompt_search(
        model, STATE, [5], 3, topk=12, batch=20, iters=4, candidates=range(8), blacklist=banned
    )
    assert set(result.prompt) <= {4, 5, 6, 7}


@pytest.mark.parametrize("target", [[5], [5, 2]])
def test_the_gradient_is_that_of_the_embeddings(model, target):
    prompt, step = (4, 9), 1e-2
    embed = model.get_input_embeddings()
    gradient = one_hot_gradient(model, prompt, STATE, target, torch.arange(64))
    assert gradient.shape == (2, 64)
    text = torch.tensor([[*prompt, *STATE, *target[:-1]]])

    @torch.no_grad()
    def moved(position, direction, by):
        embedded = embed(text).clone()
        embedded[0, position] += by * direction
        logits = model(inputs_embeds=embedded).logits[0, -len(target) :]
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(target)))

    for position in range(2):
        for token in range(0, 64, 13):
            direction = embed(torch.tensor(token)).detach()
            scale = step / float(direction.norm()) if float(direction.norm()) else 1.0
            slope = (moved(position, direction, scale) - moved(position, direction, -scale)) / (
                2 * scale
            )
            assert float(gradient[position, token]) == pytest.approx(slope, abs=2e-2, rel=2e-2)


def test_a_swap_along_the_gradient_lowers_the_linearised_loss(tiny_llama):
    """The sign: for a small embedding matrix the best linearised swap is truly better."""
    import copy

    model = copy.deepcopy(tiny_llama)
    with torch.no_grad():  # tokens that differ little: the linearisation is nearly exact
        weight = model.get_input_embeddings().weight
        centre = weight[10].clone()
        model.lm_head.weight = torch.nn.Parameter(weight.clone())
        weight.copy_(centre + 0.01 * (weight - centre))
    prompt, target = (4, 9), [5]
    gradient = one_hot_gradient(model, prompt, STATE, target, torch.arange(64))
    before = loss(model, prompt, target)
    for position in range(2):
        token = int(gradient[position].argmin())
        swapped = list(prompt)
        swapped[position] = token
        gain = float(gradient[position, token] - gradient[position, prompt[position]])
        assert gain < 0
        assert loss(model, swapped, target) - before == pytest.approx(gain, rel=0.2)


def test_the_best_loss_of_gcg_never_rises_and_is_the_prompts(tiny_llama):
    for target in ([63], [63, 17]):
        result = gcg_prompt_search(
            tiny_llama, STATE, target, 4, topk=16, batch=12, iters=8,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        assert list(result.losses) == sorted(result.losses, reverse=True) or result.reached
        assert result.loss == pytest.approx(loss(tiny_llama, result.prompt, target), abs=1e-4)
        assert result.length == 4
    again = gcg_prompt_search(
        tiny_llama, STATE, [63, 17], 4, topk=16, batch=12, iters=8,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert again == result


def test_gcg_starts_from_the_prompt_it_is_given(tiny_llama):
    init = greedy_back_generation(tiny_llama, STATE, [63], 2).prompt
    result = gcg_prompt_search(tiny_llama, STATE, [63], 4, init=init, iters=0)
    assert result.prompt[-len(init) :] == init
    with pytest.raises(InputError, match="more than k=1"):
        gcg_prompt_search(tiny_llama, STATE, [63], 1, init=[1, 2])


def test_backing_off_keeps_the_best_attempt(tiny_llama):
    for target in (63, 40):
        result = backoff_prompt_search(
            tiny_llama, STATE, [target], greedy=1, lengths=(2, 3), topk=8, batch=8, iters=3
        )
        greedy = greedy_back_generation(tiny_llama, STATE, [target], 1)
        assert result.reached >= greedy.reached
        if not result.reached:
            assert result.loss <= greedy.loss
        output = int(last_logits(tiny_llama, [*result.prompt, *STATE]).argmax())
        assert result.reached == (output == target)


def test_the_reachable_set_is_exact_for_one_token_and_grows(model):
    sets = reachable_set(model, STATE, 3, candidates=CANDIDATES)
    assert set(sets[0]) == outputs(model, 0)
    assert set(sets[1]) == outputs(model, 0) | outputs(model, 1)
    assert set(sets[2]) <= outputs(model, 0) | outputs(model, 1) | outputs(model, 2)
    for length, found in enumerate(sets):
        for output, prompt in found.items():
            assert len(prompt) <= length
            assert int(last_logits(model, [*prompt, *STATE]).argmax()) == output
        assert length == 0 or set(sets[length - 1]) <= set(found)
    everything = reachable_set(model, STATE, 2, candidates=CANDIDATES, expand=10)
    assert set(sets[2]) <= set(everything[2])


def test_the_exploration_loss_by_hand():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    p = logits.softmax(0).tolist()
    reached = torch.tensor([True, False, True, False])
    rest = [p[1] / (p[1] + p[3]), p[3] / (p[1] + p[3])]
    entropy = -sum(value * math.log(value) for value in rest)
    away = (math.log(p[0]) + math.log(p[2])) / 2
    value = reachability_loss(logits, reached, push=2.0, pull=3.0)
    assert float(value) == pytest.approx(2 * away + 3 * entropy, abs=1e-5)
    all_but_one = torch.tensor([True, True, True, False])
    assert float(reachability_loss(logits, all_but_one, push=0.0)) == pytest.approx(0, abs=1e-6)
    nothing = torch.zeros(4, dtype=torch.bool)
    assert float(reachability_loss(logits, nothing, pull=0.0)) == 0
    assert float(reachability_loss(logits, ~nothing, push=0.0)) == 0
    assert reachability_loss(torch.randn(2, 3, 4), reached).shape == (2, 3)
    with pytest.raises(ShapeError, match=r"\[4\]"):
        reachability_loss(logits, reached[:2])


def attend(x0, control, wq, wk, wv):
    keys = torch.cat([control, x0.expand(*control.shape[:-2], -1, -1)], -2)
    scores = (x0 @ wq) @ (keys @ wk).mT / math.sqrt(wk.shape[1])
    return scores.softmax(-1) @ (keys @ wv)


def head(seed, scale=0.3):
    draw = torch.Generator().manual_seed(seed)
    x0, wq, wk, wv = (
        torch.randn(rows, 4, generator=draw, dtype=torch.float64) * size
        for rows, size in ((3, 1.0), (4, scale), (4, scale), (4, 1.0))
    )
    return x0, wq, wk, wv, draw


@pytest.mark.parametrize("seed", range(4))
def test_no_control_below_the_bound_reaches_the_wanted_output(seed):
    x0, wq, wk, wv, draw = head(seed)
    norm = 0.4
    wanted = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    least = float(attention_unreachability_bound(x0, wq, wk, wv, wanted, norm).max())
    assert least > 1
    k = math.ceil(least) - 1
    for_all = torch.randn(200, k, 4, generator=draw, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([for_all], lr=0.05)

    def distance():
        control = for_all * (norm / for_all.norm(dim=-1, keepdim=True)).clamp(max=1.0)
        reached = attend(x0, control, wq, wk, wv)
        # of the wanted direction any multiple will do: the bound is on the part orthogonal to it
        along = (reached * wanted).sum(-1, keepdim=True) / wanted.square().sum(-1, keepdim=True)
        return (reached - along * wanted).norm(dim=-1).amax(-1)

    for _ in range(25):
        optimizer.zero_grad()
        distance().sum().backward()
        optimizer.step()
    assert float(distance().detach().min()) > 1e-3


def test_the_bound_is_the_formula_and_never_overflows():
    x0, wq, wk, wv, draw = head(0)
    wanted = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    norm = 0.7
    free = attend(x0, x0[:0], wq, wk, wv)
    weight = ((x0 @ wq) @ (x0 @ wk).T / 2).exp().sum(1)
    unit = wanted / wanted.norm(dim=1, keepdim=True)
    part = (free - (free * unit).sum(1, keepdim=True) * unit).norm(dim=1)
    top = [torch.linalg.svdvals(w)[0] for w in (wq, wk, wv)]
    alpha = top[0] * top[1] * norm * x0.norm(dim=1).max() / 2
    expected = weight * part * torch.exp(-alpha) / (top[2] * norm)
    torch.testing.assert_close(
        attention_unreachability_bound(x0, wq, wk, wv, wanted, norm), expected
    )
    huge = attention_unreachability_bound(x0 * 300, wq, wk, wv, wanted, norm)
    assert not huge.isnan().any()


def test_what_attention_says_by_itself_needs_no_control():
    x0, wq, wk, wv, _ = head(1)
    free = attend(x0, x0[:0], wq, wk, wv)
    for scale in (1.0, -2.5):
        bound = attention_unreachability_bound(x0, wq, wk, wv, scale * free, 1.0)
        assert bound.tolist() == [0, 0, 0]
    silent = attention_unreachability_bound(x0, wq, wk, wv, torch.zeros_like(free), 1.0)
    assert (silent > 0).all()  # nothing at all: every part has to be cancelled


def test_more_weight_on_the_state_needs_more_control():
    x0, wq, wk, wv, draw = head(2)
    wanted = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    twice = torch.cat([x0, x0])  # the same outputs, twice the weight g
    bound = attention_unreachability_bound(x0, wq, wk, wv, wanted, 1.0)
    double = attention_unreachability_bound(twice, wq, wk, wv, torch.cat([wanted] * 2), 1.0)
    torch.testing.assert_close(double[:3], 2 * bound)


def test_a_causal_position_sees_only_what_is_before_it():
    x0, wq, wk, wv, draw = head(3)
    wanted = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    causal = attention_unreachability_bound(x0, wq, wk, wv, wanted, 1.0, causal=True)
    whole = attention_unreachability_bound(x0, wq, wk, wv, wanted, 1.0)
    torch.testing.assert_close(causal[-1], whole[-1])
    assert not torch.isclose(causal[0], whole[0])


def test_impossible_questions_are_named(tiny_llama):
    with pytest.raises(InputError, match="at least one token"):
        greedy_back_generation(tiny_llama, [], [5])
    with pytest.raises(InputError, match="no token is left"):
        greedy_back_generation(tiny_llama, STATE, [5], candidates=[1], blacklist=[1])
    with pytest.raises(InputError, match=r"0\.\.63"):
        greedy_back_generation(tiny_llama, STATE, [5], candidates=[64])
    with pytest.raises(ShapeError, match="wanted"):
        attention_unreachability_bound(*head(0)[:4], torch.zeros(2, 4), 1.0)
    with pytest.raises(InputError, match="max_norm is"):
        attention_unreachability_bound(*head(0)[:4], torch.zeros(3, 4), 0.0)
