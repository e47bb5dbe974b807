"""TVM: targets by hand and by simulation, the loss's minimiser, and reading values."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.decode.search import best_of_n
from tokenry.learn.compute import compute_loss
from tokenry.learn.objective import objective
from tokenry.learn.rewards.token_value import (
    TVM,
    TokenValueModel,
    ValueHead,
    prefix_values,
    token_value_loss,
)
from tokenry.model.score import score
from tokenry.tasks.worlds.reward_tree import RewardTree

A, B, C, D, E = range(10, 15)
SOLUTIONS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.booleans()),
    min_size=1,
    max_size=20,
)


def test_three_solutions_by_hand():
    found = prefix_values([[A, B, C], [A, B, D], [A, E]], [True, False, False])
    assert found == [
        pytest.approx([1 / 3, 1 / 2, 1]),
        pytest.approx([1 / 3, 1 / 2, 0]),
        pytest.approx([1 / 3, 0]),
    ]


def test_solutions_that_part_at_once_get_their_outcomes():
    assert prefix_values([[A, B], [C, D, E], [B]], [1, 0, 1]) == [[1, 1], [0, 0, 0], [1]]


def test_every_sample_counts_also_when_it_repeats():
    assert prefix_values([[A], [A], [A], [A, B]], [1, 1, 0, 0])[0] == [0.5]


@given(SOLUTIONS)
def test_a_prefix_is_worth_the_count_weighted_mean_of_how_it_goes_on(drawn):
    solutions = [ids for ids, _ in drawn]
    values = prefix_values(solutions, [good for _, good in drawn])
    # the mean of the first tokens' values is the pass rate
    firsts = [value[0] for value in values]
    assert sum(firsts) / len(firsts) == pytest.approx(sum(good for _, good in drawn) / len(drawn))
    for length in range(1, 5):
        for prefix in {tuple(ids[:length]) for ids in solutions if len(ids) >= length}:
            inside = [n for n, ids in enumerate(solutions) if tuple(ids[:length]) == prefix]
            total = 0.0
            for n in inside:  # ended here: its outcome; going on: its next value
                more = len(solutions[n]) > length
                total += values[n][length] if more else float(drawn[n][1])
            assert values[inside[0]][length - 1] == pytest.approx(total / len(inside))


def test_targets_are_unbiased_and_vary_less_than_outcomes():
    """A generator on a tree whose leaves are right with known probability."""
    tree = RewardTree.random(0, vocabulary=2, depth=3)
    right = torch.sigmoid(2 * tree.reward[-1]).flatten()  # P(correct | leaf)
    leaf_logprob = tree.along(tree.reference).sum(1)
    leaves = [tuple(leaf) for leaf in tree.leaves.tolist()]
    exact = {}
    for length in (1, 2):
        for prefix in itertools.product(range(2), repeat=length):
            chance = torch.tensor([leaf[:length] == prefix for leaf in leaves]) * leaf_logprob.exp()
            exact[prefix] = float((chance * right).sum() / chance.sum())
    generator = torch.Generator().manual_seed(0)
    estimates: dict[tuple, list[float]] = {prefix: [] for prefix in exact}
    outcomes: dict[tuple, list[float]] = {prefix: [] for prefix in exact}
    for _ in range(400):
        drawn = torch.multinomial(leaf_logprob.exp(), 12, replacement=True, generator=generator)
        good = torch.rand(12, generator=generator) < right[drawn]
        texts = [leaves[n] for n in drawn.tolist()]
        for text, value, outcome in zip(
            texts, prefix_values(texts, good.tolist()), good.tolist(), strict=True
        ):
            for length in (1, 2):
                estimates[text[:length]].append(value[length - 1])
                outcomes[text[:length]].append(float(outcome))
    for prefix, value in exact.items():
        found, plain = torch.tensor(estimates[prefix]), torch.tensor(outcomes[prefix])
        assert float(found.mean()) == pytest.approx(value, abs=0.05)
        assert float(found.var()) < float(plain.var())


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_the_minimiser_is_the_mean_target(kind):
    predicted = torch.zeros(1, 1, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 1.0, 0.4]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    optimizer = torch.optim.LBFGS([predicted], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = token_value_loss(predicted.expand(1, 4), target, mask, kind)
        value.backward()
        return value

    optimizer.step(loss)
    value = predicted if kind == "mse" else predicted.sigmoid()
    assert float(value.detach()) == pytest.approx(0.6, abs=1e-4)


def batch_of(rows, values, prompt=2):
    targets = [[False] * prompt + [True] * (len(row) - prompt) for row in rows]
    batch = TokenBatch.from_ids(rows, targets)
    column = torch.zeros(batch.shape)
    column[batch.target] = torch.tensor([v for row in values for v in row])
    return batch.with_columns(value=column)


def test_the_loss_is_the_mean_over_all_tokens_and_ignores_the_rest():
    predicted = torch.tensor([[9.0, 0.5, 1.0], [torch.nan, 0.0, torch.inf]], requires_grad=True)
    mask = torch.tensor([[False, True, True], [False, True, False]])
    target = torch.tensor([[5.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    loss = token_value_loss(predicted, target, mask)
    assert float(loss.detach()) == pytest.approx((0.25 + 1 + 1) / 3)
    loss.backward()
    assert bool((predicted.grad[~mask] == 0).all())
    torch.testing.assert_close(predicted.grad[mask], torch.tensor([-1.0, 2.0, -2.0]) / 3)


def test_training_reads_the_state_before_the_token_and_the_model_agrees(tiny_model):
    """The objective's predictions, through scores, are the value model's, one position earlier."""
    batch = batch_of([[5, 6, 7, 8, 9], [4, 3, 2]], [[0.5, 0.25, 1.0], [0.75]])
    torch.manual_seed(0)
    head = TVM().modules(tiny_model)
    values = TokenValueModel(tiny_model, head)(batch.ids, batch.attention)
    expected = torch.cat([(values[0, 1:4] - torch.tensor([0.5, 0.25, 1.0])), values[1, 1:2] - 0.75])
    found = compute_loss(TVM(), batch, tiny_model, modules=head)
    torch.testing.assert_close(found.loss, expected.square().mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.metrics["value/error"], expected.abs().mean().detach())
    assert float(values.detach()[1, 3:].abs().max()) == 0  # padding


def test_precompute_values_what_stands_before_each_token():
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [A, B, C], "rejected_ids": [A, B, D]},
        {"prompt_ids": [1, 2], "chosen_ids": [A, B, C], "rejected_ids": [A, E]},
        {"prompt_ids": [1, 3], "chosen_ids": [A, B, C], "rejected_ids": [D]},
    ]
    found = TVM().precompute(rows, None)
    assert found[0]["chosen_value"] == pytest.approx([1 / 2, 1 / 2, 2 / 3])
    assert found[0]["rejected_value"] == pytest.approx([1 / 2, 1 / 2, 2 / 3])
    assert found[1]["rejected_value"] == pytest.approx([1 / 2, 1 / 2])
    assert found[2]["chosen_value"] == pytest.approx([1 / 2, 1, 1])
    assert found[2]["rejected_value"] == pytest.approx([1 / 2])
    given = [{**rows[0], "chosen_value": [0.1, 0.2, 0.3]}]
    assert TVM().precompute(given, None)[0]["chosen_value"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_a_value_model_learns_the_values_of_a_prompts_prefixes(tiny_llama, kind):
    """Only the head is trained, and it can tell the prefixes apart."""
    rows = TVM().precompute(
        [{"prompt_ids": [5, 6], "chosen_ids": [7, 8, 1], "rejected_ids": [7, 9, 1]}], None
    )
    ids = [[5, 6, 7, 8, 1], [5, 6, 7, 9, 1]]
    batch = batch_of(ids, [rows[0]["chosen_value"], rows[0]["rejected_value"]])
    torch.manual_seed(0)
    objective = TVM(kind)
    head = objective.modules(tiny_llama)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    scores = score(tiny_llama, batch, ("hidden",))
    for _ in range(150):
        loss = objective(batch, scores, None, modules=head).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scorer = TokenValueModel(tiny_llama, head).scorer(rows_per_batch=2)
    found = scorer([5, 6], [[7], [7, 8], [7, 9]])
    assert found == pytest.approx([0.5, 1.0, 0.0], abs=0.1)


def test_the_scorer_reads_the_last_token_and_steers_a_search(tiny_llama):
    torch.manual_seed(1)
    model = TokenValueModel(tiny_llama, ValueHead(32))
    completions = [[7], [8, 9, 10], [11, 12]]
    found = model.scorer(rows_per_batch=2)([5, 6], completions)
    for value, completion in zip(found, completions, strict=True):
        ids = torch.tensor([[5, 6, *completion]])
        alone = model(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
        assert value == pytest.approx(float(alone.detach()), abs=1e-4)
    ended = model.scorer(ends=[10, 12])([5, 6], completions)
    assert ended == pytest.approx(model.scorer()([5, 6], [[7], [8, 9], [11]]), abs=1e-5)
    best = best_of_n(tiny_llama, [5, 6], model.scorer(), 8, max_new_tokens=4)
    assert best.scores[0] == max(best.scores)


def test_half_precision_states_and_values_that_are_logits():
    head = ValueHead(4, "bce").bfloat16()
    output = head(torch.randn(2, 3, 4))
    assert output.shape == (2, 3)
    assert head.value(output).dtype == torch.float32
    loss = token_value_loss(
        torch.tensor([[1e4, -1e4]]), torch.tensor([[1.0, 1.0]]), torch.ones(1, 2).bool(), "bce"
    )
    assert float(loss) == pytest.approx(5e3)
    assert math.isfinite(float(loss))


def test_what_is_missing_or_unknown_is_named(tiny_llama):
    batch = batch_of([[5, 6, 7]], [[0.5]])
    with pytest.raises(InputError, match="modules"):
        compute_loss(TVM(), batch, tiny_llama)
    with pytest.raises(UnknownNameError, match="mse"):
        TVM("mae")  # type: ignore[arg-type]
    assert objective["tvm"] is TVM
