"""The contract of the role `task`: every registered task's examples are put through all of it."""

import math

import pytest

from role_cases import cases
from tokenry.tasks.task import Generate, Loglikelihood, Task, evaluate, task

EACH = pytest.mark.parametrize("made", cases(task))
COUNT = 24


class Oracle:
    """Answers every request with the item's solution."""

    def __init__(self, items):
        self.by_request = {repr(item.request): item.solution for item in items}

    def generate(self, requests):
        return [self.by_request[repr(request)] for request in requests]

    loglikelihood = generate


@EACH
def test_it_is_a_task(made):
    example = made()
    assert isinstance(example, Task)
    items = example.items(COUNT, 0)
    assert len(items) == COUNT
    assert all(isinstance(item.request, Generate | Loglikelihood) for item in items)


@EACH
def test_items_depend_on_the_seed_alone(made):
    example = made()
    one, again, other = (list(map(repr, example.items(COUNT, seed))) for seed in (3, 3, 4))
    assert one == again
    assert one != other


@EACH
def test_the_solution_gets_the_best_score_and_its_reward_is_finite(made):
    example = made()
    items = example.items(COUNT, 1)
    solved = [item for item in items if item.solution is not None]
    assert solved, "no item of this task has a known solution"
    for item in solved:
        best = example.score(item, item.solution)[example.primary]
        assert math.isfinite(example.reward(item, item.solution))
        for other in solved:
            if isinstance(other.solution, type(item.solution)) and len(other.solution) == len(
                item.solution
            ):
                assert example.score(item, other.solution)[example.primary] <= best


@EACH
def test_an_oracle_reaches_what_the_solutions_are_worth(made):
    example = made()
    items = example.items(COUNT, 2)
    if any(item.solution is None for item in items):
        pytest.skip("some items have no known solution")
    report = evaluate(Oracle(items), example, COUNT, seed=2)
    scores = [example.score(item, item.solution)[example.primary] for item in items]
    assert report.value == pytest.approx(sum(scores) / COUNT)
