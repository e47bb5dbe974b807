"""Rows and rewards: what a row says is enough to score its completion."""

import json
import pickle
from dataclasses import dataclass

import pytest

from role_cases import cases
from tokenry.core.errors import InputError
from tokenry.tasks.rows import TaskReward, demonstration_rows, prompt_rows
from tokenry.tasks.suites.arithmetic import Arithmetic
from tokenry.tasks.suites.lang_game import LangGame
from tokenry.tasks.task import Generate, Item, Task, task

CHOICE = LangGame("a the tea feature creature eleven nowhere bring thing going".split(), ("ends",))  # noqa: SIM905


@dataclass(frozen=True)
class Chat(Task):
    """Asks in messages; `about` is what a test wants it to be."""

    about: object = None
    solution: object = "yes"
    primary = "right"

    def items(self, count, seed):
        request = Generate([{"role": "user", "content": "Yes?"}], 5, ("\n",))
        return [Item(request, self.solution, {"about": self.about})] * count

    def score(self, item, answer):
        assert item.request == Generate([{"role": "user", "content": "Yes?"}], 5, ("\n",))
        return {"right": float(answer == "yes") + 2.0 * (item.about["about"] == [1])}


@pytest.mark.parametrize("made", cases(task))
def test_rows_of_every_task_that_asks_for_texts_reward_as_it_scores(made):
    example = made()
    items = example.items(12, 3)
    if not all(isinstance(item.request, Generate) for item in items):
        with pytest.raises(InputError, match="log-likelihoods"):
            prompt_rows(example, 12, 3)
        return
    rows = json.loads(json.dumps(prompt_rows(example, 12, 3)))
    reward = TaskReward(example)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    prompts = columns.pop("prompt")
    assert prompts == [item.request.prompt for item in items]
    for shift in (0, 1, 5):
        answers = [items[(n + shift) % 12].solution for n in range(12)]
        wanted = [example.reward(*pair) for pair in zip(items, answers, strict=True)]
        assert reward(prompts=prompts, completions=answers, **columns) == wanted
    assert columns["answer"] == [item.solution for item in items]


def test_demonstrations_are_prompts_with_their_solutions():
    items = Arithmetic().items(4, 2)
    assert demonstration_rows(Arithmetic(), 4, 2) == [
        {"prompt": item.request.prompt, "completion": item.solution} for item in items
    ]
    assert demonstration_rows(Chat(), 1) == [
        {
            "prompt": [{"role": "user", "content": "Yes?"}],
            "completion": [{"role": "assistant", "content": "yes"}],
        }
    ]
    with pytest.raises(InputError, match="without a solution"):
        demonstration_rows(Chat(solution=None), 1)


def test_messages_are_scored_by_their_last():
    row = prompt_rows(Chat([1]), 1)[0]
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    reward = TaskReward(Chat([1]))
    pairs = {"prompts": [row["prompt"]] * 2, "item": [row["item"]] * 2}
    assert reward(completions=said, **pairs) == [3.0, 2.0]


def test_the_answer_follows_the_last_marker():
    row = prompt_rows(Arithmetic(), 1)[0]
    right = row["answer"]
    texts = {f"so #### 1 #### {right}": 1.0, f"#### {right} ####": 0.0, right: 0.0, "": 0.0}
    count = len(texts)
    columns = {"prompts": [row["prompt"]] * count, "item": [row["item"]] * count}
    assert TaskReward(Arithmetic(), "####")(completions=list(texts), **columns) == [*texts.values()]


def test_the_reward_can_be_sent_to_a_worker_and_has_a_name_to_log():
    reward = TaskReward(Arithmetic(), "####")
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert reward.__name__ == "Arithmetic_reward"


def test_what_cannot_be_rows_is_refused():
    with pytest.raises(InputError, match="log-likelihoods"):
        prompt_rows(CHOICE, 2)
    with pytest.raises(InputError, match="JSON"):
        prompt_rows(Chat({1}), 1)
    with pytest.raises(InputError, match="JSON"):
        prompt_rows(Chat(float("nan")), 1)
    with pytest.raises(InputError, match="count is 0"):
        prompt_rows(Arithmetic(), 0)
    with pytest.raises(InputError, match="the column `item`"):
        TaskReward(Arithmetic())(prompts=["x"], completions=["1"])
