"""A language model's answers: log-likelihoods against a plain pass, and greedy texts that stop."""

import pytest
import torch

from tokenry.measure.answering import LanguageModel
from tokenry.tasks.suites.lang_game import LangGame
from tokenry.tasks.task import Generate, Loglikelihood, evaluate, likeliest


@pytest.fixture
def answering(tiny_llama_text, tiny_tokenizer):
    return LanguageModel(tiny_llama_text, tiny_tokenizer)


def test_a_candidates_likelihood_is_the_sum_over_its_tokens(answering):
    prompts = [("The cat", (" sat", " on the mat")), ("A", (" dog",))]
    found = answering.loglikelihood([Loglikelihood(*request) for request in prompts])
    assert [len(row) for row in found] == [2, 1]
    for (prompt, candidates), row in zip(prompts, found, strict=True):
        for candidate, value in zip(candidates, row, strict=True):
            before = answering.tokenizer(prompt)["input_ids"]
            text = answering.tokenizer(candidate, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = answering.model(torch.tensor([[*before, *text]])).logits[0]
            logprob = logits.log_softmax(-1)[len(before) - 1 : -1]
            expected = logprob.gather(-1, torch.tensor(text)[:, None]).sum()
            assert value == pytest.approx(float(expected), abs=1e-4)


def test_a_task_of_choices_is_answered_by_the_likeliest(answering):
    words = ["sea", "tea", "thing", "going", "nowhere", "eleven", "creature"]
    report = evaluate(answering, LangGame(words, ("starts",)), count=5, seed=1)
    for item, answer, score in zip(report.items, report.answers, report.scores, strict=True):
        assert score["accuracy"] == (likeliest(answer) == item.about["answer"])


def test_texts_are_greedy_and_end_at_their_stop(answering):
    whole, short, stopped = answering.generate(
        [
            Generate("The cat", 12),
            Generate("The cat", 3),
            Generate("The cat", 12, stop=(answering.generate([Generate("The cat", 12)])[0][2:4],)),
        ]
    )
    assert whole.startswith(short)
    assert len(short) < len(whole)
    assert whole.startswith(stopped)
    assert len(stopped) <= 2
    ids = answering.tokenizer("The cat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = int(answering.model(ids).logits[0, -1].argmax())
    assert whole.startswith(answering.tokenizer.decode([first], skip_special_tokens=True))
