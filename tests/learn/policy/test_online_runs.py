"""Whole runs on own completions: what they log, and what they do with bad input."""

import copy
import math
from statistics import stdev

import pytest
import torch

from policy_trainer import PROMPTS, Given, logged, rewarded, run
from tokenry.core.errors import InputError, NonFiniteError


@pytest.fixture
def loaded(tiny_llama_text, tiny_tokenizer):
    return tiny_llama_text, tiny_tokenizer


def test_a_run_logs_the_whole_draw_and_an_evaluation_the_whole_set(loaded, tmp_path):
    """Micro-batches of 3 and 1 prompts; None of a function, and a group without spread."""
    table, completions = {}, []
    for number, values in enumerate([(1.0, 0.0), (1.0, 1.0), (None, 0.5), (0.0, 2.0)]):
        own = [[10 + number, 1], [20 + number, 30, 1]]
        completions.append(own)
        table |= dict(zip(map(tuple, own), values, strict=True))
    found, _ = run(
        "grpo",
        loaded,
        tmp_path,
        PROMPTS[:4],
        rewards=[rewarded(table)],
        source=Given(loaded[1], completions),
        samples=2,
        pass_reward=1.0,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        updates=2,
        eval_data=PROMPTS[:4],
    )
    wanted = {
        "rewards/mean": 5.5 / 7,
        "rewards/left_out": 1 / 8,
        "rewards/spread": (stdev([1.0, 0.0]) + 0 + stdev([0.0, 2.0])) / 3,
        "groups/without_spread": 2 / 4,
        "pass@1": (0.5 + 1 + 0 + 0.5) / 4,
        "pass@2": 1.0,
        "completions/length": 2.5,
        "completions/length/right": (2 + 2 + 3 + 3) / 4,
        "completions/length/wrong": (3 + 3 + 2) / 3,
        "completions/cut": 0.0,
        "completions/left_out": 1 / 8,
    }
    for name, value in wanted.items():
        assert logged(found, name) == [pytest.approx(value)], name  # at the step that draws
        assert logged(found, f"eval_{name}") == [pytest.approx(value)], name
    assert len(logged(found, "entropy")) == 1
    assert len(logged(found, "clip_fraction/low")) == 2


def spread(prompt, completion):
    return float(len(completion))


def weights_moved(found, loaded):
    before = loaded[0].state_dict()
    return any(not value.equal(before[name]) for name, value in found.model.state_dict().items())


@pytest.mark.parametrize("objective", ["grpo", "dapo", "gspo", "dr-grpo", "cispo", "hapo"])
@pytest.mark.parametrize("samples", [1, 4])
def test_equal_rewards_and_groups_of_one_train_nothing_and_are_counted(
    objective, samples, loaded, tmp_path
):
    """No NaN, no step away from the start; what is left out is said."""
    reward = (lambda prompt, completion: 0.95) if samples > 1 else spread
    found, _ = run(
        objective,
        loaded,
        tmp_path,
        PROMPTS[:4],
        rewards=[reward],
        samples=samples,
        per_device_train_batch_size=2,
    )
    assert not weights_moved(found, loaded)
    assert logged(found, "loss") == [pytest.approx(0, abs=1e-7)] * 2
    assert logged(found, "groups/without_spread") == [1.0, 1.0]
    gone = 1.0 if objective in ("dapo", "hapo") else 0.0
    assert logged(found, "completions/left_out") == [gone, gone]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_stops_or_is_left_out(bad, loaded, tmp_path):
    def now_and_then(prompt, completion):
        return bad if "cat" in prompt else spread(prompt, completion)

    options = {"rewards": [now_and_then], "per_device_train_batch_size": 2}
    with pytest.raises(InputError, match=f"now_and_then gave {bad}"):
        run("grpo", loaded, tmp_path / "stops", PROMPTS[:2], **options)
    with pytest.warns(UserWarning, match="4 of 8 rows are left out"):
        found, _ = run(
            "grpo", loaded, tmp_path / "skips", PROMPTS[:2], on_reward_error="skip", **options
        )
    assert weights_moved(found, loaded)
    assert logged(found, "rewards/left_out") == [0.5]
    assert found.record["reward_counts"] == {"now_and_then": {"not finite": 4}}


def test_a_policy_that_has_run_away_gives_no_infinite_ratio(loaded, tmp_path):
    """Steps so large that ratios are far outside of any float: they stay bounded, the loss finite,
    or the run stops with a number that is named."""
    model = copy.deepcopy(loaded[0])
    with torch.no_grad():
        model.model.embed_tokens.weight *= 30  # a policy that is sure of everything
    for objective in ("grpo", "dapo", "gspo", "cispo"):
        try:
            found, gradients = run(
                objective,
                (model, loaded[1]),
                tmp_path / objective,
                PROMPTS[:2],
                rewards=[spread],
                updates=6,
                learning_rate=0.5,
                temperature=20.0,
                per_device_train_batch_size=2,
            )
        except NonFiniteError as error:
            assert "training stopped in step" in str(error)  # noqa: PT017
            continue
        assert all(g.isfinite().all() for step in gradients for g in step.values())
        assert max(logged(found, "ratio")) <= math.exp(20) * 1.01
        assert max(abs(kl) for kl in logged(found, "kl/old")) <= 20.01


def test_a_prompt_beyond_the_window_and_a_missing_column_stop_before_any_draw(
    loaded, tmp_path, tiny_tokenizer
):
    """The rest is `tests/learn/test_limits.py`'s and `tests/learn/rewards/test_training.py`'s."""
    drawn = []

    def source(policy, prompts, settings):
        drawn.append(prompts)
        raise AssertionError("nothing may be drawn")

    def wants(prompts, completions, answer):
        return [0.0] * len(prompts)

    long = [{"prompt": "the cat " * 400}]
    with pytest.raises(InputError, match="more than the model's 512 positions"):
        run("grpo", loaded, tmp_path / "long", long, rewards=[spread], source=source)
    with pytest.raises(InputError, match='wants asks for the column "answer"'):
        run("grpo", loaded, tmp_path / "column", PROMPTS, rewards=[wants], source=source)
    assert not drawn
    assert not (tmp_path / "long").exists()
