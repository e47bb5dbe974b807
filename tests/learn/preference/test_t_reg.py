"""T-REG against its paper: the token gradient identity, the stopped weight, the self-rewards."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.data import preference_rows
from tokenry.learn.data.precompute import PrecomputeContext
from tokenry.learn.objective import objective
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.t_reg import (
    TokenRewardTerm,
    TReg,
    contrastive_prompt_reward,
    request_ids,
)
from tokenry.learn.preference.weighted import PreferenceObjective

LENGTHS = (3, 2, 4, 1)  # completion tokens of chosen 0, 1 and rejected 0, 1


def case(seed=0, scale=1.0, dtype=torch.float64):
    """A batch of two pairs with token rewards, and log-probabilities of policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[5, 5] + [1] * length for length in LENGTHS]
    target = [[False, False] + [True] * length for length in LENGTHS]
    batch = TokenBatch.from_ids(rows, target, group=[0, 1, 0, 1])
    policy, reference = (
        -torch.rand(batch.shape, generator=generator, dtype=dtype) * scale * 3 for _ in range(2)
    )
    reward = torch.rand(batch.shape, generator=generator, dtype=torch.float64) - 0.5
    return batch.with_columns(self_reward=reward), policy, reference


def scores(batch, logprob):
    return Scores(batch.ids, batch.target, logprob=logprob)


def run(objective, batch, policy, reference):
    return objective(batch, scores(batch, policy), scores(batch, reference))


def gradient_of(objective, batch, policy, reference):
    leaf = policy.clone().requires_grad_()
    loss = run(objective, batch, leaf, reference).loss
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def test_the_reward_of_a_token_four_times_likelier_under_the_better_prompt():
    reward = contrastive_prompt_reward(torch.tensor(0.4).log(), torch.tensor(0.1).log())
    assert float(reward) == pytest.approx(0.3, abs=1e-6)


@given(st.floats(-50, 0), st.floats(-50, 0))
def test_the_reward_is_bounded_odd_and_zero_between_equal_prompts(better, worse):
    better, worse = torch.tensor(better), torch.tensor(worse)
    reward = contrastive_prompt_reward(better, worse)
    assert -0.5 <= float(reward) <= 0.5
    assert float(reward) == pytest.approx(
        -float(contrastive_prompt_reward(worse, better)), abs=1e-6
    )
    assert float(contrastive_prompt_reward(better, better)) == 0.0


@pytest.mark.parametrize("how", ["alpha", "rewards"])
def test_is_dpo_in_value_and_gradient_when_alpha_or_all_rewards_are_zero(how):
    batch, policy, reference = case()
    objective = TReg(alpha=0.0) if how == "alpha" else TReg()
    if how == "rewards":
        batch = batch.with_columns(self_reward=torch.zeros(batch.shape))
    found = gradient_of(objective, batch, policy, reference)
    torch.testing.assert_close(found, gradient_of(DPO(), batch, policy, reference))


@pytest.mark.parametrize("alpha", [0.25, 2.0])
def test_a_tokens_gradient_is_dpos_with_weight_one_plus_or_minus_alpha_times_its_reward(alpha):
    batch, policy, reference = case(1)
    _, dpo = gradient_of(DPO(0.7), batch, policy, reference)
    loss, ours = gradient_of(TReg(0.7, alpha), batch, policy, reference)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(ours, dpo * (1 + sign * alpha * batch.column("self_reward")))
    assert float(loss) != float(run(DPO(0.7), batch, policy, reference).loss)


def test_value_by_hand():
    """beta 1: R_w = 1, R_l = -0.5, so w = sigmoid(-1.5); chosen rewards .3, -.1; rejected .2."""
    batch = TokenBatch.from_ids([[0, 1, 1], [0, 1]], group=[0, 0])
    rewards = torch.tensor([[0.0, 0.3, -0.1], [0.0, 0.2, 9.0]])
    policy = torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.5, 0.0]])
    reference = torch.tensor([[0.0, -1.5, -2.5], [0.0, -1.0, 0.0]])
    result = run(TReg(1.0, 0.5), batch.with_columns(self_reward=rewards), policy, reference)
    weight = 1 / (1 + math.exp(1.5))
    regularizer = weight * (-(0.3 * -1.0 + -0.1 * -2.0) - 0.2 * -1.5)
    assert float(result.metrics["regularizer"]) == pytest.approx(0.5 * regularizer, abs=1e-6)
    expected = math.log1p(math.exp(-1.5)) + 0.5 * regularizer
    assert float(result.loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("host", ["dpo", "simpo"])
def test_gradient_is_the_finite_difference_with_the_weight_and_the_rewards_held(host):
    batch, policy, reference = case(2)
    beta, alpha, gamma = 0.8, 0.6, 0.3
    reward = torch.where(batch.target, batch.column("self_reward"), 0.0)
    length = batch.target.sum(-1)

    def parts(logprob):
        own = torch.where(batch.target, logprob, 0.0)
        if host == "dpo":
            sequence = beta * (own - torch.where(batch.target, reference, 0.0)).sum(-1)
            return sequence[:2] - sequence[2:], beta * (reward * own).sum(-1)
        sequence = beta * own.sum(-1) / length
        return sequence[:2] - sequence[2:] - gamma, beta * (reward * own).sum(-1) / length

    weight = torch.sigmoid(-parts(policy)[0])

    def documented(logprob):
        margin, agreement = parts(logprob)
        hosted = torch.log1p(torch.exp(-margin))
        return (hosted - alpha * weight * (agreement[:2] + agreement[2:])).mean()

    objective = TReg(beta, alpha, host, gamma)
    loss, gradient = gradient_of(objective, batch, policy, reference)
    torch.testing.assert_close(loss, documented(policy))
    step = 1e-6
    for place in batch.target.nonzero().tolist():
        shift = torch.zeros_like(policy)
        shift[tuple(place)] = step
        numeric = (documented(policy + shift) - documented(policy - shift)) / (2 * step)
        assert float(gradient[tuple(place)]) == pytest.approx(float(numeric), abs=1e-8)
    assert (gradient[~batch.target] == 0).all()


def test_simpo_as_host_needs_no_reference_and_is_simpo_when_alpha_is_zero():
    batch, policy, _ = case()
    objective = TReg(2.5, 0.0, host="simpo", gamma=1.4)
    assert not any(need.startswith("reference") for need in objective.needs)
    own = torch.where(batch.target, policy, 0.0).sum(-1) / batch.target.sum(-1)
    expected = -torch.nn.functional.logsigmoid(2.5 * (own[:2] - own[2:]) - 1.4).mean()
    torch.testing.assert_close(objective(batch, scores(batch, policy), None).loss, expected)


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_swapping_better_and_worse_flips_the_regulariser(seed):
    batch, policy, reference = case(seed)
    swapped = batch.with_columns(self_reward=-batch.column("self_reward"))
    found = [run(TReg(), b, policy, reference).metrics["regularizer"] for b in (batch, swapped)]
    torch.testing.assert_close(found[0], -found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("host", ["dpo", "simpo"])
def test_log_probabilities_of_minus_1e4_and_garbage_outside_the_target_stay_finite(host, dtype):
    batch, policy, reference = case(scale=1e4, dtype=dtype)
    spoiled = torch.where(batch.target, batch.column("self_reward"), math.nan)
    leaf = torch.where(batch.target, policy, math.nan).requires_grad_()
    result = run(TReg(host=host), batch.with_columns(self_reward=spoiled), leaf, reference)
    result.loss.backward()
    assert result.loss.isfinite()
    assert leaf.grad.isfinite().all()
    clean = run(TReg(host=host), batch, policy, reference)
    torch.testing.assert_close(result.loss, clean.loss, check_dtype=False)


def test_its_term_is_a_part_of_free_compositions():
    batch, policy, reference = case()
    composed = PreferenceObjective(beta=0.1, terms=(TokenRewardTerm(0.1, 0.25),))
    assert "token.self_reward" in composed.needs
    torch.testing.assert_close(
        run(composed, batch, policy, reference).loss, run(TReg(), batch, policy, reference).loss
    )


class WordTokenizer:
    """Words to ids, whatever they are; just enough of a tokenizer for the annotation."""

    chat_template = None
    words = ("better", "worse")

    def __call__(self, text, **_):
        return {"input_ids": [self.words.index(w) for w in text.split() if w in self.words] + [2]}

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(f"word{i}" for i in ids)


def judge(batch, needs):
    """Gives id 7 more log-probability behind the request for a better answer (id 0)."""
    asked_better = (batch.ids[:, :1] == 0).double()
    logprob = torch.where(batch.ids == 7, -2.0 + 1.5 * asked_better, -1.0)
    return scores(batch, torch.where(batch.target, logprob, 0.0))


def test_precompute_scores_the_same_answer_ids_under_both_requests():
    rows = [
        {"prompt_ids": [4], "chosen_ids": [7, 8, 9], "rejected_ids": [8, 7]},
        {"prompt_ids": [5], "chosen_ids": [8], "rejected_ids": [7], "chosen_self_reward": [0.125]},
    ]
    objective = TReg(better="better {prompt}", worse="worse {prompt}")
    context = PrecomputeContext(WordTokenizer(), reference=judge, batch_size=2)
    found = objective.precompute(rows, context)
    high = 1 / (1 + math.exp(-1.5)) - 0.5
    assert found[0]["chosen_self_reward"] == pytest.approx([high, 0.0, 0.0])
    assert found[0]["rejected_self_reward"] == pytest.approx([0.0, high])
    assert found[1]["chosen_self_reward"] == [0.125]  # the data's own stay
    assert found[1]["rejected_self_reward"] == pytest.approx([high])
    swapped = TReg(better=objective.worse, worse=objective.better).precompute(
        [{"prompt_ids": [4], "chosen_ids": [7], "rejected_ids": [8]}], context
    )
    assert swapped[0]["chosen_self_reward"] == pytest.approx([-high])


def test_requests_go_through_the_chat_template_when_there_is_one():
    seen = {}

    def apply(messages, **options):
        seen["messages"] = messages
        return "rendered"

    tokenizer = WordTokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.apply_chat_template = apply
    tokenizer.get_chat_template = lambda **_: tokenizer.chat_template
    assert request_ids(tokenizer, "improve {prompt} {x}", {"prompt_ids": [3]}) == [2]
    assert seen["messages"] == [{"role": "user", "content": "improve word3 {x}"}]


def test_in_a_conversation_the_request_stands_in_the_users_last_words(tiny_tokenizer):
    """And not around the whole rendered chat, role words included."""
    row = {
        "prompt": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a cat?"},
            {"role": "assistant", "content": "sat there"},
            {"role": "user", "content": "the mat?"},
        ],
        "chosen": [{"role": "assistant", "content": "on the mat"}],
        "rejected": [{"role": "assistant", "content": "there"}],
    }
    [read] = preference_rows([row], tiny_tokenizer)[0]
    text = tiny_tokenizer.decode(request_ids(tiny_tokenizer, "improve {prompt} now", read))
    asked = [*row["prompt"][:3], {"role": "user", "content": "improve the mat? now"}]
    assert text == tiny_tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True
    )
    assert text.count("<|user|>") == 2
    assert row["prompt"][3]["content"] == "the mat?"

    plain = {"prompt": "the mat?", "chosen": " on the mat", "rejected": " there"}
    [read] = preference_rows([plain], tiny_tokenizer, as_chat=True)[0]
    once = tiny_tokenizer.decode(request_ids(tiny_tokenizer, "improve {prompt} now", read))
    assert once == "<|user|>\nimprove the mat? now</s>\n<|assistant|>\n"


def test_a_chat_that_is_a_text_already_and_one_without_a_user_are_refused(tiny_tokenizer):
    rendered = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": "the mat?"}], tokenize=False, add_generation_prompt=True
    )
    row = {"prompt": rendered, "chosen": "on the mat", "rejected": "there"}
    [read] = preference_rows([row], tiny_tokenizer)[0]
    with pytest.raises(InputError, match='give "prompt" as messages'):
        request_ids(tiny_tokenizer, "improve {prompt}", read)
    alone = {"prompt_ids": [5], "prompt_messages": [{"role": "system", "content": "be brief"}]}
    with pytest.raises(InputError, match="no user speaks in the prompt"):
        request_ids(tiny_tokenizer, "improve {prompt}", alone)


def test_is_filed_under_its_paper_and_refuses_what_it_cannot_do():
    assert objective["t-reg"] is TReg
    assert {entry.key: entry.paper for entry in objective}["t-reg"] == 32
    with pytest.raises(UnknownNameError, match="ppo"):
        TReg(host="ppo")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prompt"):
        TReg(worse="be bad")
    batch, policy, reference = case()
    with pytest.raises(InputError, match="self_reward"):
        run(TReg(), replace(batch, columns={}), policy, reference)
