"""RLoT on texts: grades that are read, blocks that are written, and a model that stays as it is."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.routing.rlot import Constraints, Navigator, played
from tokenry.decode.routing.rlot_text import (
    ASKED,
    PROMPTS,
    TextReasoning,
    block_prompt,
    grades_prompt,
    read_grades,
)
from tokenry.tasks.reasoning_blocks import REASON, REFINE, TERMINATE

ALWAYS = "A1: 3\nA2: 1\nA3: 2\nB1: 1\nB2: 3\nC1: 2\nC2: 3"


class Wants:
    """A network that wants a block whatever it sees."""

    def __init__(self, action):
        self.action = action

    def __call__(self, grades):
        return torch.nn.functional.one_hot(torch.full((len(grades),), self.action), 5).float()


def scripted(said, answers=()):
    """A model that grades everything alike and answers blocks one by one; what it was asked."""
    asked, left = [], list(answers)

    def write(prompt):
        asked.append(prompt)
        return said if prompt.endswith("(1 low, 2 middle, 3 high)\n") else left.pop(0)

    return write, asked


@pytest.mark.parametrize(
    ("said", "grades"),
    [
        (ALWAYS, [3, 1, 2, 1, 3, 2, 3]),
        ("", [2] * 7),
        ("A1: 5, C2 = 1", [2, 2, 2, 2, 2, 2, 1]),
        ("A1: 1\nA1: 3", [3, 2, 2, 2, 2, 2, 2]),
        ("B2: high\nC1 is 1", [2, 2, 2, 2, 2, 1, 2]),
        ("A1: 13", [2] * 7),
    ],
)
def test_grades_are_read_and_missing_ones_are_middling(said, grades):
    assert read_grades(said).tolist() == grades


def test_prompts_hold_the_question_the_text_and_what_is_asked():
    assert [line[:2] for line in ASKED] == ["A1", "A2", "A3", "B1", "B2", "C1", "C2"]
    assert len(PROMPTS) == 5
    for action in range(5):
        prompt = block_prompt("2 + 2?", "so far so good", action)
        assert all(part in prompt for part in ("2 + 2?", "so far so good", PROMPTS[action]))
    assert all(line in grades_prompt("2 + 2?", "") for line in ASKED)


def test_a_reasoning_goes_block_by_block_to_the_answer():
    write, asked = scripted(ALWAYS, ["Two and two", "make four.", "Answer: 4"])
    task = TextReasoning(write, "2 + 2?", lambda question, text: len(text) / 100, max_actions=3)
    rewards, actions = played(Navigator(Wants(REASON), Constraints(3)), task, 1, torch.Generator())
    assert actions.tolist() == [[REASON, REASON, TERMINATE]]
    assert task.text == "Two and two\nmake four.\nAnswer: 4"
    assert float(rewards) == pytest.approx((11 + 22 + 32) / 100)
    assert "Two and two\nmake four." in asked[-1]
    assert PROMPTS[TERMINATE] in asked[-1]
    assert task.seen.grades.tolist() == [[3, 1, 2, 1, 3, 2, 3]]


def test_refining_first_reasons_and_an_answer_ends_it():
    write, asked = scripted(ALWAYS, ["It is easy.\nAnswer: 4", "Answer: 4"])
    task = TextReasoning(write, "2 + 2?")
    task.reset()
    seen, reward, done = task.step(torch.tensor([REFINE]))
    assert PROMPTS[REASON] in asked[1]
    assert bool(seen.answered)
    assert not bool(done)
    assert float(reward) == 0
    _, _, done = task.step(torch.tensor([REASON]))
    assert PROMPTS[TERMINATE] in asked[-1]
    assert bool(done)
    before = (task.text, len(asked))
    task.step(torch.tensor([REASON]))  # it stays as it is
    assert (task.text, len(asked)) == before


def test_the_model_is_asked_and_not_changed(tiny_llama_text, tiny_tokenizer):
    before = copy.deepcopy(tiny_llama_text.state_dict())

    def write(prompt):
        ids = torch.tensor([tiny_tokenizer(prompt)["input_ids"][-40:]])
        return tiny_tokenizer.decode([int(tiny_llama_text(ids).logits[0, -1].argmax())])

    task = TextReasoning(write, "2 + 2?", max_actions=3)
    played(Navigator(Wants(1), Constraints(3)), task, 1, torch.Generator())
    for name, weight in tiny_llama_text.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(weight.grad is None for weight in tiny_llama_text.parameters())


def test_one_question_is_one_reasoning():
    task = TextReasoning(lambda prompt: "", "?")
    with pytest.raises(InputError, match="not 2"):
        task.reset(2)
    with pytest.raises(InputError, match="max_actions"):
        TextReasoning(lambda prompt: "", "?", max_actions=0)
