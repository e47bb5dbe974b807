from dataclasses import dataclass
from typing import ClassVar

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.suites.lang_game import LangGame
from tokenry.tasks.task import Generate, Item, Loglikelihood, Task, evaluate, likeliest, means

WORDS = tuple("a the sea tea feature creature eleven nowhere bring thing going".split())  # noqa: SIM905


@dataclass(frozen=True)
class Echo(Task):
    """Asks for a word; half of the items ask for the likelier of two."""

    primary: ClassVar[str] = "right"

    def items(self, count, seed):
        texts = [f"say w{(seed + n) % 5}" for n in range(count)]
        return [
            Item(Generate(text, 4), text[4:])
            if n % 2
            else Item(Loglikelihood(text, (text[4:], "no")), (1.0, 0.0))
            for n, text in enumerate(texts)
        ]

    def score(self, item, answer):
        if isinstance(item.request, Loglikelihood):
            return {"right": float(likeliest(answer) == 0), "choice": 1.0}
        return {"right": float(answer == item.solution)}


class Model:
    def generate(self, requests):
        return [request.prompt[4:] for request in requests]

    def loglikelihood(self, requests):
        return [[-1.0, -2.0] if "w1" in request.prompt else [-2.0, -1.0] for request in requests]


def test_requests_of_both_kinds_are_asked_for_together_and_scored_in_order():
    report = evaluate(Model(), Echo(), 10)
    assert [score["right"] for score in report.scores[1::2]] == [1.0] * 5
    assert report.value == pytest.approx(0.6)  # w1 is asked for once among five choices
    assert report.aggregate["choice"] == 1.0
    assert report.items[1].request.prompt == "say w1"


def test_a_plain_function_answers_texts_and_no_choices():
    class Texts(Echo):
        def items(self, count, seed):
            return [item for item in super().items(2 * count, seed) if item.request is not None][
                1::2
            ]

    assert evaluate(lambda prompt: prompt[4:], Texts(), 4).value == 1.0
    with pytest.raises(InputError, match="loglikelihood"):
        evaluate(lambda prompt: prompt, Echo(), 4)


def test_a_mean_is_over_the_items_that_have_the_score():
    assert means([{"a": 1.0, "b": 4.0}, {"a": 0.0}]) == {"a": 0.5, "b": 4.0}


def test_a_task_may_have_its_own_reward_and_aggregate():
    class Strict(Echo):
        def reward(self, item, answer):
            return 2.0

        def aggregate(self, scores):
            return {"right": min(score["right"] for score in scores)}

    item = Strict().items(2, 0)[1]
    assert Strict().reward(item, "no") == 2.0
    assert Echo().reward(item, item.solution) == 1.0
    assert evaluate(Model(), Strict(), 10).value == 0.0


@pytest.mark.parametrize(
    ("answers", "what"),
    [(["x"], "got 1 answers"), ([1.0] * 2, "got float"), (["a", "b", "c"], "got 3 answers")],
)
def test_answers_of_the_wrong_form_are_refused(answers, what):
    class Wrong(Model):
        def generate(self, requests):
            return answers

    with pytest.raises(InputError, match=what):
        evaluate(Wrong(), Echo(), 4)


def test_scores_must_be_finite_and_have_the_primary_one():
    class Broken(Echo):
        def score(self, item, answer):
            return {"other": 1.0}

    class Infinite(Echo):
        def score(self, item, answer):
            return {"right": float("nan")}

    with pytest.raises(InputError, match="primary"):
        evaluate(Model(), Broken(), 2)
    with pytest.raises(InputError, match="not finite"):
        evaluate(Model(), Infinite(), 2)


def test_impossible_requests_are_refused():
    with pytest.raises(InputError):
        Generate("x", 0)
    with pytest.raises(InputError):
        Loglikelihood("x", ("a", ""))
    with pytest.raises(InputError):
        evaluate(Model(), Echo(), 0)


def test_langgame_counts_by_kind_of_question():
    game = LangGame(WORDS, ("contains", "ends"))
    items = game.items(30, 5)
    assert {item.about["kind"] for item in items} == {"contains", "ends"}
    first = items[0]
    wrong = [-float(n == first.about["answer"]) for n in range(4)]
    assert game.score(first, first.solution) == {"accuracy": 1.0, first.about["kind"]: 1.0}
    assert game.score(first, wrong)["accuracy"] == 0.0
    question = game.generate(30, 5)[0]
    assert first.request.prompt == question.prompt
    assert first.request.candidates[question.answer] == f" {question.options[question.answer]}"
