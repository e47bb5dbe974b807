"""The bench of subwords: which words and texts are told apart, and where its losses count."""

import torch

from tokenry.lab.subwords import (
    SubwordBench,
    docstring_tokens,
    frequent_words,
    next_token_loss,
    with_answers,
)
from tokenry.lab.toy_model import toy_model
from tokenry.tasks.suites.lang_game import LangGame

BENCH = SubwordBench(3, pretraining=1, fine_tuning=2, batch=2, block=8, tests=4, width=16)


def test_the_words_are_split_and_the_last_twentieth_of_the_text_is_held_back():
    known, unseen = BENCH.split_words
    assert (len(known), len(unseen)) == (300, 100)
    assert sorted(known + unseen) == sorted(frequent_words(400))
    assert all(3 <= len(word) <= 9 for word in known + unseen)
    tokenizer, ids = docstring_tokens(BENCH.vocabulary)
    assert len(tokenizer) == BENCH.vocabulary
    text, blocks = BENCH.texts
    assert text == ids[: len(text)]
    assert abs(len(text) / len(ids) - 0.95) < 1e-4
    assert blocks.shape == (200, 8)
    assert blocks.flatten().tolist() == ids[len(text) : len(text) + 1600]


def test_only_the_right_option_is_learned():
    tokenizer, _ = docstring_tokens(BENCH.vocabulary)
    questions = LangGame(frequent_words(50), ("starts",)).generate(3, 0)
    ids, labels = with_answers(tokenizer, questions)
    for question, row, label in zip(questions, ids, labels, strict=True):
        right = question.options[question.answer]
        assert tokenizer.decode(label[label >= 0]) == " " + right
        length = int((label >= 0).nonzero().max()) + 1
        assert tokenizer.decode(row[:length]) == f"{question.prompt} {right}"
    model = toy_model(len(tokenizer), 128, 0, width=16).eval()
    with torch.no_grad():
        logprob = model(ids).logits.log_softmax(-1)
        counted = [
            -float(logprob[row, at - 1, ids[row, at]])
            for row, at in (labels >= 0).nonzero().tolist()
        ]
        loss = float(next_token_loss(model, ids, labels))
    assert abs(loss - sum(counted) / len(counted)) < 1e-5


def test_accuracy_is_measured_before_on_the_way_and_after():
    model = BENCH.pretrained(0.3)
    before = model.lm_head.weight.clone()
    answers = BENCH.fine_tuned(model, every=1)
    assert list(answers) == [0, 1, 2]
    assert {len(flags) for flags in answers.values()} == {4}
    assert torch.equal(model.lm_head.weight, before)
    assert BENCH.held_back(model).shape == (200,)
