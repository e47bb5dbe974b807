"""The bench of policies: the same start, prompts and budget for all, and exact measures."""

import pytest

from tokenry.lab.policy_bench import RATES, SAMPLES, UNITS, PolicyBench, Trained, against_grpo
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import GRPO
from tokenry.tasks.worlds.written_addition import WrittenAddition

SMALL = {"tokens": 500, "prompts": 2, "judged": 6, "fit_steps": 10}


def idle(rollouts):
    return 0 * rollouts.reward


def test_the_budget_is_of_tokens_and_ends_with_the_step_that_uses_it_up():
    bench = PolicyBench(0, **SMALL)
    trained = bench.train(GRPO())
    used = [tokens for tokens, _ in trained.path]
    assert used[-2] < bench.tokens <= used[-1]
    assert all(0 <= reward <= 1 for _, reward in trained.path)
    assert used[0] <= bench.prompts * SAMPLES * bench.world.longest


def test_an_objective_that_learns_nothing_leaves_the_measures_as_they_were():
    bench = PolicyBench(1, **SMALL)
    policy = bench.train(PolicyGradient(idle)).policy
    assert bench.measure(policy) == bench.measure(bench.base)


def test_measures_are_counts_of_the_answers():
    bench = PolicyBench(2, world=WrittenAddition(1), level=0.5, tokens=100, judged=50)
    values = bench.measure(bench.base)
    batch, correct = bench.answers(bench.base, bench.judged, 2 * SAMPLES)
    assert values["pass@1"] == pytest.approx(correct.float().mean())
    assert values["length"] == pytest.approx(batch.target.sum() / len(batch.ids))
    assert 0.3 < values["pass@1"] < values["pass@8"] <= 1
    prompt = batch.ids[batch.group == 3][:, : bench.world.asked]
    assert (prompt == prompt[0]).all()  # samples of a prompt are counted together


def test_a_path_is_smoothed_before_it_is_compared():
    path = [(float(n), float(n % 2)) for n in range(1, 21)]
    assert Trained(None, path).tokens_to(0.5, over=2) == 2
    assert Trained(None, path).tokens_to(0.6, over=2) == 20
    assert Trained(None, path[:3]).tokens_to(0.6, over=8) == 3
    assert Trained(None, path[:4]).roughness == pytest.approx((8 / 9) ** 0.5)  # of 1, -1 and 1
    assert Trained(None, path[:1]).roughness == 0


def test_a_comparison_has_every_measure_of_every_method_at_one_rate():
    table = against_grpo({"idle": PolicyGradient(idle)}, 0, "smoke")
    for name in ("grpo", "idle"):
        assert table.mean(f"{name}: learning rate") in RATES
        assert all(len(table.values(f"{name}: {label}")) == 2 for label in UNITS)
    for label in ("pass@1", "entropy"):
        assert table.values(f"idle: {label}") == table.values(f"before: {label}")
