import pytest
import torch

from tokenry.tasks.worlds import lookup


def asked(question):
    words = question.prompt.split()
    return int(words[7].removeprefix("k")), int(words[8].removeprefix("f"))


def test_the_value_is_that_of_the_key_which_is_asked_for():
    for question in lookup.questions(100, 0.0, torch.Generator().manual_seed(0)):
        words = question.evidence.split()
        key, _ = asked(question)
        assert words[2 * key : 2 * key + 2] == [f"k{key}", f"v{question.value}"]
        assert question.prompt.startswith(f"{question.evidence} ? k")


@pytest.mark.parametrize(("correlation", "share"), [(0.0, 1 / 6), (0.9, 0.9 + 0.1 / 6), (1.0, 1.0)])
def test_the_filler_names_the_value_as_often_as_it_says(correlation, share):
    drawn = lookup.questions(3000, correlation, torch.Generator().manual_seed(1))
    named = sum(asked(question)[1] == question.value for question in drawn) / len(drawn)
    assert named == pytest.approx(share, abs=0.03)


def test_a_pair_is_the_right_value_over_a_wrong_one():
    tokenizer = lookup.tokenizer()
    for row in lookup.pairs(50, 0.5, torch.Generator().manual_seed(2)):
        assert row["chosen"] != row["rejected"]
        assert tokenizer.decode(row["prompt_ids"]) == row["prompt"]
        assert len(row["prompt_ids"]) == 10
        for side in ("chosen", "rejected"):
            value, end = row[f"{side}_ids"]
            assert row[side] == f"v{value - lookup.FIRST_VALUE} ."
            assert lookup.WORDS[end] == "."
