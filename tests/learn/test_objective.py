"""The hooks of an objective: their defaults, and the misspelt ones that are refused."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pytest
import torch

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.registry import Role
from tokenry.learn.objective import (
    HOOKS,
    Loss,
    Objective,
    check_hooks,
    is_on_policy,
    objective,
)


def derived(**attributes):
    """A plain objective with some attributes more."""
    own = {"needs": ("policy.logprob",), "unit": "token", **attributes}
    return dataclass(frozen=True)(type("Mine", (Objective,), own))


def test_every_hook_has_the_default_of_a_preference_objective():
    mine = derived()()
    assert mine.completions == mine.required_completions == ("chosen", "rejected")
    assert (mine.top_k, mine.num_rewards, mine.detaches) == (10, 1, "")
    assert mine.separable
    assert mine.trains_policy
    assert not mine.supervised
    assert (mine.modules_learning_rate, mine.modules_weight_decay, mine.at_reference) == (None,) * 3
    assert mine.divergence.name == "forward_kl"
    rows = [{"prompt": "a"}]
    assert mine.precompute(rows, None) is rows
    assert mine.modules(None) is mine.prefix(None, None) is None
    assert mine.stopped(None) == {}
    assert not is_on_policy(mine)
    assert is_on_policy(derived(prepare=lambda self, *given: given[0]))
    with pytest.raises(InputError, match="Mine does not learn from rollouts"):
        mine.prepare(None, None, None)


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_no_hook_can_be_misspelt_by_a_letter(hook):
    default = vars(Objective).get(hook)
    for wrong in (hook[:-1], hook + "x", hook[:2] + hook[1:]):
        if wrong not in HOOKS:
            with pytest.raises(UnknownNameError, match=f"Mine '{wrong}'.*did you mean.*{hook}"):
                check_hooks(derived(**{wrong: default}))
    check_hooks(derived(**{hook: default}))


def test_a_misspelt_hook_is_refused_however_it_is_written():
    class Annotated(Objective):
        trains_polcy: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Field(Objective):
        modules_weight_deca: float = 0.0

    class Computed(Objective):
        @property
        def num_reward(self):
            return 2

    class Cached(Objective):
        @cached_property
        def need(self):
            return ()

    class Inherited(Annotated):
        pass

    for kind in (Annotated, Field, Computed, Cached, Inherited):
        with pytest.raises(UnknownNameError, match="did you mean"):
            check_hooks(kind)


def test_what_the_objective_itself_reads_is_its_own():
    @dataclass(frozen=True)
    class Reading(Objective):
        beta: float = 0.1
        scale: ClassVar[float] = 2.0

        @torch.no_grad()
        def prepare(self, batch, policy, reference, **others):
            return [self.scaled(value) for value in batch]

        @staticmethod
        def halved(value):
            return value / 2

        def scaled(self, value):
            return self.halved(value) * (lambda: self.beta * self.scale)()

    check_hooks(Reading)


def test_every_registered_objective_passes_and_a_misspelt_one_does_not_register():
    for entry in objective:
        check_hooks(entry.value)
    role = Role("objective", Objective, (), check=objective.check)
    with pytest.raises(UnknownNameError, match="seperable"):
        role("mine")(derived(seperable=False))
    assert not role.names()


def test_what_is_no_objective_is_refused_with_what_to_derive_it_from():
    def loss(batch, policy, reference):
        return Loss(policy.need("logprob").sum())

    with pytest.raises(InputError, match=r"derive it from tokenry.learn.objective.Objective"):
        check_hooks(type(loss))
