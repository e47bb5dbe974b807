"""Rollouts used more than once: each row once an update, clipping at work, resumed exactly."""

import copy
import json
from statistics import fmean

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from tokenry.core.errors import InputError
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.data import batch_of
from tokenry.learn.loading import STAND_IN
from tokenry.learn.policy.buffer import RolloutBuffer, load_micro_batches
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.rollouts import sample_rollouts
from tokenry.learn.reference import FrozenModel
from tokenry.learn.run import train

PROMPTS = [{"prompt": f"the {noun}"} for noun in ("cat", "dog", "mat", "theory", "father", "age")]
QUIET = {
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "samples": 4,
    "max_new_tokens": 5,
    "seed": 3,
}


def vowels(prompt, completion):
    return sum(letter in "aeiou" for letter in completion) / 4


def fields(rows=6, groups=2):
    ids = torch.arange(rows * 3).view(rows, 3)
    return {"ids": ids, "group": torch.arange(rows) % groups, "column.x": ids[:, 0].float()}


@pytest.mark.parametrize("whole_groups", [False, True])
def test_an_update_uses_every_row_once_in_an_order_of_its_own(whole_groups):
    given = [fields(12, 4), fields(8, 4)]
    buffer = RolloutBuffer(given, minibatches=4, whole_groups=whole_groups, seed="a")
    orders = []
    for update in range(3):
        steps = [buffer.step(4 * update + part) for part in range(4)]
        assert steps[1][0]["ids"].equal(buffer.step(4 * update + 1)[0]["ids"])  # repeatable
        for place, whole in enumerate(given):
            parts = [step[place] for step in steps]
            drawn = torch.cat([part["ids"] for part in parts])
            assert sorted(drawn[:, 0].tolist()) == whole["ids"][:, 0].tolist()
            assert {len(part["ids"]) for part in parts} == {len(whole["ids"]) // 4}
            for part in parts:
                assert part["column.x"].tolist() == part["ids"][:, 0].tolist()
                if whole_groups:
                    assert len(part["group"].unique()) == 1
        orders.append([step[0]["ids"][:, 0].tolist() for step in steps])
    assert len({str(order) for order in orders}) > 1
    other = RolloutBuffer(given, minibatches=4, whole_groups=whole_groups, seed="b")
    assert [other.step(part)[0]["ids"][:, 0].tolist() for part in range(4)] != orders[0]


def test_one_minibatch_is_what_was_drawn_and_empty_parts_are_stand_ins():
    given = [fields()]
    assert RolloutBuffer(given).step(5)[0] is given[0]
    parts = [RolloutBuffer([fields(2)], minibatches=3).step(part)[0] for part in range(3)]
    assert [STAND_IN in part for part in parts] == [False, False, True]
    assert parts[2][STAND_IN].tolist() == [True]


def test_what_is_saved_is_loaded(tmp_path):
    given = [fields(), fields(4)]
    RolloutBuffer(given).save(tmp_path / "x.safetensors")
    found = load_micro_batches(tmp_path / "x.safetensors", "cpu")
    for one, other in zip(given, found, strict=True):
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match="middle of a rollout buffer"):
        load_micro_batches(tmp_path / "missing", "cpu")


def run(loaded, output, **settings):
    model, tokenizer = loaded
    options = {"rewards": [vowels], **QUIET, **settings}
    return train("ppo", PROMPTS, (copy.deepcopy(model), tokenizer), output, **options).record


def logged(record, name):
    return [entry[name] for entry in record["history"] if name in entry]


@pytest.fixture
def loaded(tiny_llama_text, tiny_tokenizer):
    return tiny_llama_text, tiny_tokenizer


def test_ratios_are_clipped_from_the_second_use_on_and_never_before(loaded, tmp_path):
    once = run(loaded, tmp_path / "once")
    assert logged(once, "clip_fraction") == [0.0] * 3
    assert logged(once, "kl/old") == pytest.approx([0.0] * 3, abs=1e-6)
    twice = run(loaded, tmp_path / "often", updates=3)
    assert twice["steps"] == 9
    clipped = logged(twice, "clip_fraction")
    assert clipped[0::3] == [0.0] * 3  # just drawn
    assert min(clipped[2::3]) > 0.05
    # an estimate on a few tokens, which is negative now and then
    assert fmean(logged(twice, "kl/old")[1::3]) > 1e-3
    assert twice["rollout"] == {"samples": 4, "max_new_tokens": 5, "updates": 3}


def test_dropout_leaves_nothing_to_clip_at_the_first_use(loaded, tmp_path):
    """And with dropout on, what is clipped is noise: why it is off by default."""
    model, tokenizer = loaded
    for options, noisy in (({}, False), ({"dropout": True}, True)):
        record = run(
            (model, tokenizer),
            tmp_path / str(noisy),
            lora={"r": 4, "lora_dropout": 0.5, "lora_alpha": 256, "init_lora_weights": False},
            **options,
        )
        assert (max(logged(record, "clip_fraction")) > 0.1) == noisy


def test_one_update_of_one_minibatch_is_the_default(loaded, tmp_path):
    plain = run(loaded, tmp_path / "plain")
    explicit = run(loaded, tmp_path / "explicit", updates=1, minibatches=1)
    assert logged(plain, "loss") == logged(explicit, "loss")


def test_the_trainer_takes_the_steps_of_a_loop_written_by_hand(loaded, tmp_path, monkeypatch):
    """2 updates of 2 minibatches with plain gradient descent: draw, prepare, four steps, again."""
    import tokenry.learn.policy.sources.plain as plain
    import tokenry.learn.trainer as module

    drawn = []

    def seeded(*arguments, **options):
        with torch.random.fork_rng():
            torch.manual_seed(len(drawn))
            drawn.append(sample_rollouts(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(plain, "sample_rollouts", seeded)
    settings = {"optim": "sgd", "learning_rate": 0.5, "updates": 2, "minibatches": 2}
    prompts = []
    real = module.ObjectiveTrainer._roll_out

    def watched(self, inputs):
        found = real(self, inputs)
        prompts.append(found)
        return found

    monkeypatch.setattr(module.ObjectiveTrainer, "_roll_out", watched)
    record = run(loaded, tmp_path / "run", **settings)
    assert len(drawn) == 3

    objective, model = PPO(), copy.deepcopy(loaded[0]).train()
    reference = FrozenModel.copy_of(model)
    losses = []
    for draw, (batch, theirs) in enumerate(zip(drawn, prompts, strict=True)):
        batch = batch.with_columns(reward=batch_of(theirs).column("reward"))
        scores = compute_scores(
            objective, batch, model, reference, needs=objective.rollout_needs, grad=False
        )
        batch = objective.prepare(batch, scores.policy, scores.reference)
        for name in ("advantage", "old_logprob"):
            ours, other = batch.column(name), batch_of(theirs).column(name)
            torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4)
        buffer = RolloutBuffer([theirs], 2, seed=f"3:0:{draw}")
        for step in range(4):
            [part] = buffer.step(step)
            loss = compute_loss(objective, batch_of(part), model, reference).loss
            losses.append(float(loss.detach()))
            model.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            with torch.no_grad():
                for weight in model.parameters():
                    weight -= 0.5 * weight.grad
    assert logged(record, "loss") == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("stop", [1, 2, 5, 6])
def test_a_run_resumed_in_the_middle_of_a_buffer_gives_the_uninterrupted_losses(
    stop, loaded, tmp_path
):
    """3 draws of 2 updates with 2 minibatches each; stopped in, between and after updates."""
    settings = {"updates": 2, "minibatches": 2, "save_strategy": "steps", "save_steps": stop}
    settings["save_total_limit"] = 20
    whole = run(loaded, tmp_path / "whole", **settings)
    checkpoint = tmp_path / "whole" / f"checkpoint-{stop}"
    assert (checkpoint / "rollouts-0.safetensors").is_file() == (stop % 4 != 0)

    folder = tmp_path / "resumed"
    folder.mkdir()
    checkpoint.rename(folder / checkpoint.name)
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"state": "running"}))
    resumed = run(loaded, folder, resume=True, **settings)
    losses = {entry["step"]: entry["loss"] for entry in whole["history"] if "loss" in entry}
    again = {entry["step"]: entry["loss"] for entry in resumed["history"] if "loss" in entry}
    assert set(again) == set(losses) == set(range(1, 13))
    assert {s: again[s] for s in again if s > stop} == {s: losses[s] for s in losses if s > stop}


def test_a_run_resumed_where_rollouts_are_drawn_draws_the_same(loaded, tmp_path):
    """In the middle of an epoch the Trainer restores the random state after the first batches."""
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = run(loaded, tmp_path / "whole", num_train_epochs=2, **settings)
    (tmp_path / "whole" / "checkpoint-6").rename(tmp_path / "gone")
    resumed = run(loaded, tmp_path / "whole", num_train_epochs=2, resume=True, **settings)
    assert logged(resumed, "loss") == logged(whole, "loss")


def test_settings_that_leave_steps_empty_or_have_no_effect_are_refused(loaded, tmp_path):
    with pytest.raises(InputError, match="the smallest micro-batch of an epoch has 8"):
        run(loaded, tmp_path / "a", minibatches=9)
    model, tokenizer = loaded
    pairs = [{"prompt": "the cat", "chosen": " sat", "rejected": " gathered"}]
    with pytest.raises(InputError, match="DPO learns from the data's completions"):
        train("dpo", pairs, (copy.deepcopy(model), tokenizer), tmp_path / "b", updates=2)
