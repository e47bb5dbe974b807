"""ACT against its definition: closed forms, a double loop, gradients by hand."""

import copy
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.act import ACT, rank_loss
from tokenry.tasks.verifiers.programs import ConstraintSet, Verifier, length_between

NUMBERS = st.floats(-3, 0)
RATES = st.sampled_from([0.0, 0.25, 0.5, 1.0])
RESPONSES = st.lists(st.tuples(NUMBERS, RATES, st.integers(0, 2)), min_size=1, max_size=7)


def tensors(responses):
    scores, csr, group = zip(*responses, strict=True)
    return (
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(csr, dtype=torch.float64),
        torch.tensor(group),
    )


def double_loop(responses, margin, ft_weight, skip_ties=False):
    total = {}
    for group in {g for _, _, g in responses}:
        members = [(p, c) for p, c, g in responses if g == group]
        loss, ranked = 0.0, False
        for p_i, c_i in members:
            for p_j, c_j in members:
                if c_i < c_j:
                    ranked = True
                    loss += max(0.0, p_i - p_j + margin * (c_j - c_i))
        best = max(members, key=lambda m: (m[1], m[0]))[0]
        total[group] = loss - ft_weight * best * (ranked or not skip_ties)
    return [total[group] for group in sorted(total)]


@pytest.mark.parametrize(
    ("scores", "margin", "expected"),
    [((-1.0, -1.5), 0.0, 0.5), ((-2.0, -1.5), 0.0, 0.0), ((-2.0, -1.5), 1.0, 0.5)],
)
def test_worked_example_of_two_responses(scores, margin, expected):
    loss = rank_loss(torch.tensor(scores), torch.tensor([0.0, 1.0]), margin=margin, ft_weight=0.0)
    assert loss.tolist() == pytest.approx([expected])


@given(RESPONSES, st.floats(0, 2), st.floats(0, 2), st.booleans())
def test_equals_the_double_loop_over_pairs(responses, margin, ft_weight, skip_ties):
    found = rank_loss(*tensors(responses), margin=margin, ft_weight=ft_weight, skip_ties=skip_ties)
    assert found.tolist() == pytest.approx(double_loop(responses, margin, ft_weight, skip_ties))


def test_three_responses_of_distinct_rates_are_three_pairs():
    scores = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)  # all three pairs violated
    rank_loss(scores, torch.tensor([0.0, 0.5, 1.0]), ft_weight=0.0).sum().backward()
    assert scores.grad.tolist() == [2.0, 0.0, -2.0]


def test_a_violated_pair_pulls_its_responses_together_with_unit_slope():
    scores = torch.tensor([-1.0, -1.5, -9.0], requires_grad=True)
    rank_loss(scores, torch.tensor([0.0, 1.0, 0.0]), ft_weight=0.0).sum().backward()
    assert scores.grad.tolist() == [1.0, -1.0, 0.0]


def test_equal_rates_rank_nothing():
    scores = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = rank_loss(scores, torch.tensor([0.5, 0.5]), margin=1.0, ft_weight=0.0).sum()
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert scores.grad.tolist() == [0.0, 0.0]


def test_likelihood_goes_to_the_best_response_and_among_equals_to_the_likeliest():
    scores = torch.tensor([-3.0, -1.0, -0.5], requires_grad=True)
    rank_loss(scores, torch.tensor([1.0, 1.0, 0.0]), ft_weight=2.0).sum().backward()
    assert scores.grad.tolist() == [-1.0, -1.0 - 2.0, 2.0]
    only_ties = torch.tensor([-3.0, -1.0], requires_grad=True)
    rank_loss(only_ties, torch.ones(2), skip_ties=True).sum().backward()
    assert only_ties.grad.tolist() == [0.0, 0.0]


def test_order_of_responses_and_a_common_shift_do_not_matter():
    scores, csr = torch.tensor([-1.0, -2.0, -0.3]), torch.tensor([0.2, 1.0, 0.2])
    reference = rank_loss(scores, csr, margin=0.5, ft_weight=0.0)
    for order in permutations(range(3)):
        shuffled = rank_loss(scores[list(order)] + 7, csr[list(order)], margin=0.5, ft_weight=0.0)
        torch.testing.assert_close(shuffled, reference)


def batch_of(lengths, groups, csr):
    rows = [[0, *range(1, n + 1)] for n in lengths]
    target = [[False] + [True] * n for n in lengths]
    batch = TokenBatch.from_ids(rows, target, group=groups)
    return batch.with_columns(csr=torch.tensor(csr))


def test_scores_are_means_over_the_response_and_padding_does_not_count():
    batch = batch_of([1, 3], [0, 0], [0.0, 1.0])
    logprob = torch.tensor([[torch.nan, -1.0, -50.0, torch.nan], [0.0, -1.0, -2.0, -3.0]])
    policy = Scores(batch.ids, batch.target, logprob=logprob)
    assert float(ACT(ft_weight=0.0)(batch, policy).loss) == pytest.approx(1.0)  # -1 - (-2)
    assert float(ACT(ft_weight=1.0)(batch, policy).loss) == pytest.approx(1.0 + 2.0)
    assert float(ACT(ft_weight=0.0, length_power=0.0)(batch, policy).loss) == pytest.approx(5.0)


def test_any_number_of_responses_per_prompt():
    batch = batch_of([1] * 5, [0, 0, 0, 1, 1], [0.0, 0.5, 1.0, 1.0, 0.0])
    logprob = torch.tensor([-1.0, -2.0, -3.0, -2.0, -1.0])[:, None].expand(5, 2)
    result = ACT(ft_weight=0.0)(batch, Scores(batch.ids, batch.target, logprob=logprob))
    assert result.metrics["loss"].tolist() == pytest.approx([1 + 2 + 1, 1])
    assert float(result.metrics["rewards/accuracy"]) == 0.0
    assert float(result.metrics["rank/pairs"]) == 2.0


def test_logits_of_1e4_stay_finite():
    batch = batch_of([1, 1], [0, 0], [0.0, 1.0])
    logprob = torch.tensor([[0.0, -1e-3], [0.0, -2e4]]).bfloat16().requires_grad_()
    loss = ACT()(batch, Scores(batch.ids, batch.target, logprob=logprob)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(logprob.grad).all()


def context(tokenizer=None, model=None):
    return SimpleNamespace(tokenizer=tokenizer, model=model, seed=0)


def test_plain_pairs_count_chosen_one_and_rejected_zero_unless_the_data_say_otherwise():
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "rejected_csr": 0.4},
    ]
    found = ACT().precompute(copy.deepcopy(rows), context())
    assert [(r["chosen_csr"], r["rejected_csr"]) for r in found] == [(1.0, 0.0), (1.0, 0.4)]
    assert ACT().completions == ("chosen", "rejected")


def test_constraints_rate_the_pairs():
    rows = [{"prompt": "p", "chosen": "one two three", "rejected": "one"}]
    found = ACT(constraints=("length_between(1, 2)",)).precompute(rows, context())
    assert (found[0]["chosen_csr"], found[0]["rejected_csr"]) == (0.0, 1.0)


def test_a_group_constraint_joins_rows_side_by_side():
    same = ConstraintSet.of(Verifier("same", lambda _, ys: len(set(ys)) == 1, "group"))
    rows = [
        {"prompt": p, "chosen": "a", "rejected": r, "constraint_group": "g"}
        for p, r in (("p", "b"), ("q", "c"))
    ]
    found = ACT(constraints=same).precompute(rows, context())
    assert [(r["chosen_csr"], r["rejected_csr"]) for r in found] == [(1.0, 0.0)] * 2


def test_samples_take_the_place_of_the_pair(tiny_tokenizer, tiny_llama_text):
    objective = ACT(samples=3, constraints=ConstraintSet.of(length_between(0, 2)), max_new_tokens=6)
    prompt = tiny_tokenizer("the cat")["input_ids"]
    rows = [{"prompt": "the cat", "prompt_ids": prompt}] * 2
    found = objective.precompute(rows, context(tiny_tokenizer, tiny_llama_text))
    assert objective.completions == ("sample_0", "sample_1", "sample_2")
    for row in found:
        for side in objective.completions:
            assert 1 <= len(row[f"{side}_ids"]) <= 6
            assert row[f"{side}_csr"] == float(len(row[side].split()) <= 2)
    assert len({tuple(found[0][f"{side}_ids"]) for side in objective.completions}) > 1
    again = objective.precompute(rows, context(tiny_tokenizer, tiny_llama_text))
    assert again == found


def test_what_cannot_be_ranked_is_an_error():
    assert objective["act"] is ACT
    with pytest.raises(InputError, match="constraints"):
        ACT(samples=4)
    with pytest.raises(ShapeError, match="alike"):
        rank_loss(torch.zeros(2), torch.zeros(3))
    batch = TokenBatch.from_ids([[0, 1]]).with_columns(csr=torch.ones(1))
    with pytest.raises(ShapeError, match="group"):
        ACT()(batch, Scores(batch.ids, batch.target, logprob=torch.zeros(1, 2)))


def test_rates_are_of_the_texts_that_are_trained_on(tiny_tokenizer, tiny_llama_text):
    """Rates that came along with the rows are of other samples, or of other constraints."""
    objective = ACT(samples=2, constraints=("length_between(0, 1000)",), max_new_tokens=3)
    row = {
        "prompt": "the cat",
        "prompt_ids": tiny_tokenizer("the cat")["input_ids"],
        "sample_0_ids": [5],
        "sample_0_csr": 0.0,
        "sample_1_csr": 0.25,
    }
    found = objective.precompute([row], context(tiny_tokenizer, tiny_llama_text))
    assert [found[0][f"sample_{n}_csr"] for n in range(2)] == [1.0, 1.0]
    assert row["sample_0_csr"] == 0.0  # the rows given stay as they are
    pair = {"prompt": "p", "chosen": "one two three", "rejected": "one", "chosen_csr": 1.0}
    found = ACT(constraints=("length_between(1, 2)",)).precompute([pair], context())
    assert (found[0]["chosen_csr"], found[0]["rejected_csr"]) == (0.0, 1.0)


def test_nothing_to_rank_and_settings_out_of_range_are_errors():
    with pytest.raises(InputError, match="no responses to rank"):
        rank_loss(torch.zeros(0), torch.zeros(0))
    for wrong in ({"margin": -1.0}, {"ft_weight": float("nan")}, {"length_power": float("inf")}):
        with pytest.raises(InputError, match=f"ACT.{next(iter(wrong))} is"):
            ACT(**wrong)
    with pytest.raises(InputError, match=r"ACT\.samples is -2"):
        ACT(samples=-2, constraints=("length_between(1, 2)",))
