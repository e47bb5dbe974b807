"""The toy loop: sampling agrees with the model, training learns, the same seed is the same run."""

import copy

import torch

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import (
    NegativeLogLikelihood,
    completed,
    fit_toy,
    from_rows,
    sample_on,
    seeded_modules,
    train_copy,
    train_on,
)
from tokenry.learn.preference.sparsepo import SparsePO
from tokenry.learn.preference.tars import TARS

ROWS = torch.tensor([[0, 1, 2, 3], [0, 3, 2, 1]])


def batches(generator):
    rows = ROWS[torch.randint(2, (8,), generator=generator)]
    return TokenBatch.from_ids(rows.tolist())


def test_training_learns_and_repeats_itself():
    start = toy_model(5, 8, seed=0, width=16, layers=1)
    seen = []
    runs = [
        train_on(
            batches, NegativeLogLikelihood(), copy.deepcopy(start), steps=60, learning_rate=1e-2,
            decay=0.5, observe=seen.append, every=25,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert seen == [0, 25, 50, 60] * 2
    for one, two in zip(*(run.parameters() for run in runs), strict=True):
        assert torch.equal(one, two)
    drawn = sample_on(runs[0], ROWS[:, :2], 2, torch.Generator(), greedy=True)
    assert drawn.tolist() == ROWS[:, 2:].tolist()


def test_a_fitted_toy_is_kept_for_the_same_data_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    drawn = []

    def watched(generator):
        drawn.append(1)
        return batches(generator)

    def fitted(**change):
        given = {"data": "rows", "steps": 3, "width": 16, "layers": 1, **change}
        return fit_toy(watched, 5, 8, 0, **given)

    first, again = fitted(), fitted()
    assert len(drawn) == 3
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not first.training
    assert not any(weight.requires_grad for weight in first.parameters())
    for change in ({"data": "others"}, {"steps": 4}, {"learning_rate": 1e-3}, {"decay": 0.1}):
        before = len(drawn)
        fitted(**change)
        assert len(drawn) > before, change


def test_a_fitted_toy_stops_when_it_is_good(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    drawn, asked = [], []

    def watched(generator):
        drawn.append(1)
        return batches(generator)

    def good(model):
        asked.append(len(drawn))
        return len(asked) == 2

    fit_toy(watched, 5, 8, 0, data="", steps=50, good=good, every=3, width=16, layers=1)
    assert asked == [3, 6]
    assert len(drawn) == 6


def test_completions_count_and_prompts_do_not():
    batch = completed(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0], [0]]))
    assert batch.ids.tolist() == [[1, 2, 0], [3, 4, 0]]
    assert batch.target.tolist() == [[False, False, True]] * 2
    assert batch.attention.all()


def test_batches_of_rows_have_the_completions_and_columns_that_are_needed():
    rows = [
        {"prompt_ids": [n, n], "chosen_ids": [1, 2][:n], "rejected_ids": [3]}
        | {
            f"{side}_reference_log_energy": sign * n
            for side, sign in (("chosen", 1), ("rejected", -1))
        }
        for n in (1, 2)
    ]
    batch = from_rows(TARS(), rows, 40)(torch.Generator().manual_seed(0))
    assert batch.group.tolist() == [*range(40)] * 2
    assert torch.equal(batch.ids[:40, :2], batch.ids[40:, :2])
    number = batch.ids[:, 0]
    assert set(number.tolist()) == {1, 2}
    assert torch.equal(batch.target.sum(1), torch.cat([number[:40], torch.ones(40).long()]))
    sign = torch.cat([torch.ones(40), -torch.ones(40)])
    assert torch.equal(batch.column("reference_log_energy"), sign * number)


def test_a_copy_is_trained_measured_and_the_model_kept():
    start = toy_model(5, 8, seed=0, width=16, layers=1)
    before = copy.deepcopy(start.state_dict())
    policy, points = train_copy(
        batches, NegativeLogLikelihood(), start, steps=5, learning_rate=1e-2, every=2,
        measure=lambda step, policy: (step, float(policy.lm_head.weight.detach().sum())),
    )  # fmt: skip
    assert [step for step, _ in points] == [0, 2, 4, 5]
    assert len({total for _, total in points}) == 4
    assert points[-1][1] == float(policy.lm_head.weight.detach().sum())
    assert not policy.training
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())


def test_an_objective_says_how_its_own_weights_are_trained():
    """A mask without gradient only decays: by rate * weight_decay a step, at the modules' rate."""
    start = toy_model(5, 8, seed=0, width=16, layers=1)
    objective = SparsePO(modules_learning_rate=0.5)
    modules = seeded_modules(objective, start, seed=3)
    torch.testing.assert_close(
        seeded_modules(objective, start, seed=3).state_dict(), modules.state_dict()
    )

    class Unmoved(NegativeLogLikelihood):
        modules_learning_rate, modules_weight_decay = 0.5, 0.01

        def __call__(self, batch, policy, reference=None, modules=None, **_):
            loss = super().__call__(batch, policy)
            nothing = 0.0 * sum(weight.sum() for weight in modules.parameters())
            return type(loss)(loss.loss + nothing)

    weights = {name: value.clone() for name, value in modules.state_dict().items()}
    train_copy(batches, Unmoved(), start, steps=1, learning_rate=1e-3, modules=modules)
    for name, value in modules.state_dict().items():
        torch.testing.assert_close(value, weights[name] * (1 - 0.5 * 0.01))


def test_ascent_is_the_opposite():
    start = toy_model(5, 8, seed=0, width=16, layers=1)
    batch = TokenBatch.from_ids(ROWS.tolist())
    from tokenry.learn.compute import compute_loss

    one, two = (compute_loss(NegativeLogLikelihood(d), batch, start).loss for d in (1.0, -1.0))
    torch.testing.assert_close(one, -two)


def test_samples_follow_the_model_and_end():
    model = toy_model(5, 16, seed=1, width=16, layers=2).eval()
    prompts = torch.tensor([[0, 1]])
    with torch.no_grad():
        expected = model(prompts).logits[0, -1].softmax(-1)
    drawn = sample_on(model, prompts.expand(4000, -1), 1, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn[:, 0], minlength=5) / 4000
    assert (share - expected).abs().max() < 0.03
    ended = sample_on(model, prompts.expand(50, -1), 8, torch.Generator().manual_seed(0), end=2)
    assert ended.shape == (50, 8)
    for row in ended.tolist():
        if 2 in row:
            assert set(row[row.index(2) :]) == {2}


def test_a_control_of_embedded_words_is_the_same_as_the_words():
    model = toy_model(5, 16, seed=1, width=16, layers=2).eval()
    words, prompt = torch.tensor([[3, 4]]), torch.tensor([[0, 1]])
    control = model.get_input_embeddings()(words)[0].detach()
    draws = [
        sample_on(model, torch.cat([words, prompt], 1), 6, torch.Generator(), greedy=True),
        sample_on(model, prompt, 6, torch.Generator(), control=control, greedy=True),
    ]
    assert torch.equal(*draws)
