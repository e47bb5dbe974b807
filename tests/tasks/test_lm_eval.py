"""The adapter of lm-evaluation-harness, with a model that follows its interface."""

from tokenry.tasks.lm_eval import LMEvalAnswers
from tokenry.tasks.task import Generate, Item, Loglikelihood, Task, evaluate, likeliest


class LM:
    """As `lm_eval.api.model.LM`: requests have `args`, likelihoods come with a truth value."""

    def loglikelihood(self, requests):
        self.asked = [request.args for request in requests]
        return [(-float(len(context) + len(text)), False) for context, text in self.asked]

    def generate_until(self, requests):
        self.asked = [request.args for request in requests]
        return [f"{context}!" for context, _ in self.asked]

    def apply_chat_template(self, history):
        return "".join(f"<{message['role']}>{message['content']}" for message in history)


class Shortest(Task):
    """Choices of different numbers of candidates, of which the shortest is right; and a text."""

    primary = "right"

    def items(self, count, seed):
        choices = [("aa", "b", "ccc"), ("dd", "e"), ("f",)]
        asked = [Item(Loglikelihood("x", choices[n % 3])) for n in range(count - 1)]
        return [*asked, Item(Generate([{"role": "user", "content": "hi"}], 5, ("\n",)))]

    def score(self, item, answer):
        if isinstance(answer, str):
            return {"right": float(answer == "<user>hi!")}
        sizes = [len(text) for text in item.request.candidates]
        return {"right": float(sizes[likeliest(answer)] == min(sizes)), "count": len(answer)}


def test_its_likelihoods_and_texts_answer_a_task():
    lm = LM()
    report = evaluate(LMEvalAnswers(lm), Shortest(), 4)
    assert report.value == 1.0
    assert [len(answer) for answer in report.answers[:3]] == [3, 2, 1]
    assert report.answers[0] == [-3.0, -2.0, -4.0]


def test_requests_have_the_harness_form():
    lm = LM()
    LMEvalAnswers(lm).generate([Generate("x", 7, ("\n", "."))])
    settings = {"until": ["\n", "."], "max_gen_toks": 7, "do_sample": False}
    assert lm.asked == [("x", settings)]
    LMEvalAnswers(lm).loglikelihood([Loglikelihood("x", ("a", "b"))])
    assert lm.asked == [("x", "a"), ("x", "b")]
