"""A language model that answers tasks."""

import pytest
import torch

from tokenry.decode.answers import ModelAnswers
from tokenry.decode.generate import generate
from tokenry.tasks.suites.lang_game import LangGame
from tokenry.tasks.task import Generate, Loglikelihood, evaluate


@pytest.fixture
def answers(tiny_llama_text, tiny_tokenizer):
    return ModelAnswers((tiny_llama_text, tiny_tokenizer), batch_size=3)


def test_likelihoods_are_sums_of_the_candidates_tokens(answers, tiny_llama_text, tiny_tokenizer):
    requests = [
        Loglikelihood("the cat", (" sat", " sat there", " theory")),
        Loglikelihood("a", (" dog", " mat on the mat")),
    ]
    found = answers.loglikelihood(requests)
    assert [len(values) for values in found] == [3, 2]
    for request, values in zip(requests, found, strict=True):
        start = len(tiny_tokenizer(request.prompt)["input_ids"])
        for candidate, value in zip(request.candidates, values, strict=True):
            ids = torch.tensor([tiny_tokenizer(request.prompt + candidate)["input_ids"]])
            with torch.no_grad():
                logprob = tiny_llama_text(ids).logits[0].log_softmax(-1)
            expected = sum(float(logprob[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
            assert value == pytest.approx(expected, abs=1e-4)


def test_texts_are_greedy_and_cut_at_the_first_stop(answers):
    loaded = answers.loaded
    whole = generate(loaded, "the cat", sampler="greedy", max_new_tokens=12).texts[0]
    assert answers.generate([Generate("the cat", 12)]) == [whole]
    stop = whole[4:6]
    (cut,) = answers.generate([Generate("the cat", 12, (stop,))])
    assert cut == whole[: whole.index(stop)]


def test_chat_messages_are_a_prompt_too(answers):
    messages = [{"role": "user", "content": "the cat"}]
    (text,) = answers.generate([Generate(messages, 4)])
    assert isinstance(text, str)
    shown = "<|user|>\nthe cat</s>\n<|assistant|>\n"
    (own,) = answers.loglikelihood([Loglikelihood(messages, ("a",))])
    (plain,) = answers.loglikelihood([Loglikelihood(shown, ("a",))])
    assert own == pytest.approx(plain)


def test_texts_can_be_put_as_chat_messages(answers):
    asked = ModelAnswers(answers.loaded, as_chat=True)
    messages = [{"role": "user", "content": "the cat"}]
    for text in ("the cat", messages):
        assert asked.generate([Generate(text, 6)]) == answers.generate([Generate(messages, 6)])
        one, other = (
            made.loglikelihood([Loglikelihood(of, ("a", "the"))])
            for made, of in ((asked, text), (answers, messages))
        )
        assert one == other
    assert asked.generate([Generate("the cat", 6)]) != answers.generate([Generate("the cat", 6)])


def test_a_task_is_evaluated_on_it(answers):
    words = "a the sea seen tea feature creature eleven nowhere bring thing going".split()  # noqa: SIM905
    report = evaluate(answers, LangGame(words), 6)
    assert 0 <= report.value <= 1
    assert all(len(answer) == 4 for answer in report.answers)
