"""The synthetic reasoner: what each block does, grades, rewards, and ends."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.reasoning_blocks import (
    DEBATE,
    DECOMPOSE,
    REASON,
    REFINE,
    TERMINATE,
)
from tokenry.tasks.worlds.reasoning import SyntheticReasoning

ROWS = 6000


def world(**options):
    made = SyntheticReasoning(**{"noise": 0.0, "steps": 3} | options)
    generator = torch.Generator().manual_seed(0)
    made.reset(ROWS, generator)
    return made, generator


def after(made, generator, *actions):
    rewards = torch.zeros(ROWS)
    for action in actions:
        _, reward, _ = made.step(torch.full((ROWS,), action), generator)
        rewards += reward
    return rewards


def share(flags):
    return pytest.approx(float(flags), abs=0.05)  # 7 standard deviations of a mean of 6000


def test_a_step_is_taken_and_slips_and_tangles_are_as_often_as_it_says():
    made, generator = world(tangled=0.0, slip=0.2)
    left = made.state["left"].clone()
    after(made, generator, REASON)
    assert torch.equal(made.state["left"], left - 1)
    assert share(0.2) == made.state["wrong"].float().mean().item()
    tangled, generator = world(tangled=1.0, slip=0.2, stuck=0.7)
    left = tangled.state["left"].clone()
    after(tangled, generator, REASON)
    assert share(0.7) == (tangled.state["left"] == left).float().mean().item()
    assert share(0.4) == tangled.state["wrong"].float().mean().item()


def test_decomposing_untangles_and_takes_no_step():
    made, generator = world(tangled=1.0)
    left = made.state["left"].clone()
    for _ in range(2):
        after(made, generator, DECOMPOSE)
        assert not made.state["tangled"].any()
        assert torch.equal(made.state["left"], left)
        assert not made.state["wrong"].any()
        assert not made.state["moved"].any()


def test_debate_takes_two_steps_where_there_are_other_methods():
    made, generator = world(alternatives=1.0, slip=0.5)
    left = made.state["left"].clone()
    after(made, generator, DEBATE)
    assert torch.equal(made.state["left"], (left - 2).clamp_min(0))
    assert not made.state["wrong"].any()
    none, generator = world(alternatives=0.0, slip=0.2, tangled=0.0)
    left = none.state["left"].clone()
    after(none, generator, DEBATE)
    assert torch.equal(none.state["left"], left - 1)
    assert share(0.2) == none.state["wrong"].float().mean().item()


def test_refining_mends_and_first_of_all_reasons():
    made, generator = world(tangled=0.0, slip=0.5, mend=0.8)
    left = made.state["left"].clone()
    after(made, generator, REFINE)
    assert torch.equal(made.state["left"], left - 1)
    was = made.state["wrong"].clone()
    after(made, generator, REFINE)
    assert share(0.8) == (~made.state["wrong"][was]).float().mean().item()
    assert not made.state["wrong"][~was].any()


def test_rewards_add_up_to_the_progress_and_the_success():
    made, generator = world()
    start = made.progress().clone()
    assert not start.any()
    total = after(made, generator, REASON, REASON, REASON, TERMINATE)
    torch.testing.assert_close(total, made.progress() + made.solved().float())
    assert bool(made.state["ended"].all())
    assert float(after(made, generator, REASON).abs().max()) == 0  # ended ones stay
    right = (made.state["left"] == 0) & ~made.state["wrong"]
    assert torch.equal(made.solved(), right)
    assert 0 < float(right.float().mean()) < 1


def test_the_last_action_terminates_and_nothing_before_has_an_answer():
    made, generator = world(max_actions=3)
    for number in range(3):
        assert not made.seen.answered.any()
        _, _, done = made.step(torch.full((ROWS,), DECOMPOSE), generator)
        assert bool(done.all()) == (number == 2)


def test_grades_say_the_hidden_state_and_noise_replaces_some():
    made, generator = world(tangled=0.5, alternatives=0.5, slip=0.5)
    seen, _, _ = made.step(torch.full((ROWS,), REASON), generator)
    now = made.state
    assert torch.equal(seen.grades[:, 0] == 1, now["wrong"])
    assert torch.equal(seen.grades[:, 2] == 1, now["wrong"])
    assert torch.equal(seen.grades[:, 1] == 1, now["tangled"])
    assert torch.equal(seen.grades[:, 3] == 3, now["tangled"])
    assert torch.equal(seen.grades[:, 4] == 3, now["others"])
    assert torch.equal(seen.grades[:, 5] == 3, now["left"] == 0)
    assert torch.equal(seen.grades[:, 5] == 2, now["left"] == 1)
    assert torch.equal(seen.grades[:, 6] == 3, now["moved"])
    noisy, generator = world(noise=0.3)
    changed = (noisy.seen.grades != noisy.grades()).float().mean()
    assert changed.item() == share(0.2)  # of three grades one is the old one


def test_wrong_settings_are_refused():
    for wrong in ({"slip": 0.6}, {"noise": 1.5}, {"steps": 0}, {"max_actions": 0}):
        with pytest.raises(InputError):
            SyntheticReasoning(**wrong)
