"""Encoders that answer texts in words, and what they answer from shortened ones."""

import pytest
import torch

from tokenry.lab.shortened import (
    CLS,
    ID_OF,
    PAD,
    ReviewPrompt,
    answered,
    answers_by_share,
    encoded,
    encoder_of,
    logits_of,
    reviews_judged,
)
from tokenry.model.attribution.globenc import GlobEnc
from tokenry.tasks.worlds.reviews import BLAME, PRAISE, review


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))


def test_words_are_ids_behind_a_start_padded_on_the_right():
    ids = encoded([["the", "plot"], ["dull"]])
    assert ids.tolist() == [[CLS, ID_OF["the"], ID_OF["plot"]], [CLS, ID_OF["dull"], PAD]]


def test_an_encoder_learns_reviews_and_does_not_see_padding():
    model = encoder_of(review, seed=1, steps=120)
    generator = torch.Generator().manual_seed(0)
    texts = [review(generator) for _ in range(100)]
    rows, answers = [words for words, _ in texts], torch.tensor([answer for _, answer in texts])
    right = answered(model, rows, answers)
    assert right.mean() > 0.7
    assert answered(model, rows, 1 - answers).equal(1 - right)
    alone = logits_of(model, [["the", "plot", "was", "dull"]])
    padded = logits_of(model, [["the", "plot", "was", "dull"], ["the"] * 9])
    torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-4)


def first_and_last(scorer, ids, target):
    """Scores that rank the words by their place, the first highest; the start comes first."""
    return torch.arange(len(ids), 0, -1).float()


def test_shares_of_the_words_are_kept_by_the_scores_of_the_method():
    ways = {"first": (first_and_last, "top"), "last": (first_and_last, "bottom")}
    made = [(["the", "the", *[PRAISE[0]] * 2], 1), ([BLAME[0], BLAME[1], "the", "the"], 0)]

    def make(generator):
        return made[int(torch.randint(2, (), generator=generator))]

    found = answers_by_share(make, ways, (100, 50), seed=3, steps=120, count=30)
    assert set(found) == {("all", 100), *((way, k) for way in ways for k in (100, 50))}
    whole = found["all", 100]
    assert whole.shape == (30,)
    assert whole.mean() > 0.9
    assert found["first", 100].equal(whole)
    assert found["last", 100].equal(whole)
    # half of the words tell blame from its first ones and praise from its last ones only
    assert 0 < found["first", 50].mean() <= 1


def test_a_prompt_of_four_reviews_in_turn(tiny_llama, tiny_tokenizer):
    tiny = tiny_llama
    prompt = ReviewPrompt(tiny, _ids_below(tiny_tokenizer, 64), torch.Generator().manual_seed(0))
    assert prompt.judged("the plot was dull") in (0, 1)
    assert prompt.judged("the plot was dull") == prompt.judged("the plot was dull")
    settings = [("all", 100, (GlobEnc(), "top"))]
    found = reviews_judged(tiny, _ids_below(tiny_tokenizer, 64), settings, 2, seed=0)
    assert list(found) == [("all", 100)]
    assert len(found["all", 100]) == 2


def _ids_below(tokenizer, size):
    """The tokenizer with its ids folded into a tiny model's vocabulary."""

    class Folded:
        def __call__(self, text, **options):
            found = tokenizer(text, **options)
            ids = found["input_ids"]
            folded = ids % size if isinstance(ids, torch.Tensor) else [i % size for i in ids]
            return {**found, "input_ids": folded}

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    return Folded()
