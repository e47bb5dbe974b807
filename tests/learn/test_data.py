"""Preference data: the formats that are read, and errors that name the line and the field."""

import json

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.data import PreferenceCollator, preference_dataset

GOOD = {"prompt": "the cat", "chosen": " sat there", "rejected": " gathered"}


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


USER, BOT = ("user", "the cat?"), ("assistant", "sat there")


@pytest.fixture
def jsonl(tmp_path):
    def write(*lines):
        path = tmp_path / "pairs.jsonl"
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        )
        return path

    return write


def test_texts_become_the_same_tokens_as_from_pairs(tiny_tokenizer, jsonl):
    rows = preference_dataset(jsonl(GOOD, "", GOOD | {"prompt": "a dog"}), tiny_tokenizer)
    assert len(rows) == 2
    fields = PreferenceCollator.of(tiny_tokenizer)(list(rows))
    pairs = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
    expected = TokenBatch.from_pairs(tiny_tokenizer, pairs)
    for name in ("ids", "attention", "target"):
        assert torch.equal(fields[name], getattr(expected, name)), name
    assert fields["group"].tolist() == [0, 1, 0, 1]


def test_messages_go_through_the_chat_template_and_only_the_last_answer_counts(tiny_tokenizer):
    history = messages(("user", "hi"), ("assistant", "the dog sat"), USER)
    row = {"prompt": history, "chosen": messages(BOT), "rejected": messages(("assistant", "no"))}
    (found,) = preference_dataset([row], tiny_tokenizer)
    assert found["chosen"] == "sat there</s>"
    assert found["prompt"].endswith("the cat?</s>\n<|assistant|>\n")
    assert tiny_tokenizer.decode(found["chosen_ids"]) == "sat there</s>"


def test_an_implicit_prompt_is_what_both_conversations_start_with(tiny_tokenizer):
    explicit = {
        "prompt": messages(USER),
        "chosen": messages(BOT),
        "rejected": messages(("assistant", "no")),
    }
    implicit = {
        "chosen": messages(USER, BOT),
        "rejected": messages(USER, ("assistant", "no")),
    }
    one, two = preference_dataset([explicit, implicit], tiny_tokenizer)
    assert one == two


def test_as_chat_wraps_texts_as_one_user_and_one_assistant_message(tiny_tokenizer):
    row = {"prompt": "the cat?", "chosen": "sat there", "rejected": "no"}
    wrapped = {
        "prompt": messages(USER),
        "chosen": messages(BOT),
        "rejected": messages(("assistant", "no")),
    }
    assert list(preference_dataset([row], tiny_tokenizer, as_chat=True)) == list(
        preference_dataset([wrapped], tiny_tokenizer)
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", ', r"line 2 is not JSON: .* column"),
        ('["a"]', r"line 2 must be a JSON object"),
        ({"prompt": "a", "chosen": "b"}, r'line 2: the field "rejected" is missing'),
        ({"chosen": "a", "rejected": "b"}, r'line 2: the field "prompt" is missing'),
        (GOOD | {"chosen": "  "}, r'line 2: "chosen" is an empty completion'),
        (GOOD | {"rejected": GOOD["chosen"]}, r"line 2: .*equal"),
        (GOOD | {"rejected": 3}, r'line 2: "rejected" must be a text or a list of messages'),
        (GOOD | {"chosen": messages(BOT)}, r"line 2: .*all texts or all messages"),
        (GOOD | {"chosen": [{"role": "assistant"}]}, r'line 2: "chosen" must be .*"content"'),
        (
            {"chosen": messages(USER), "rejected": messages(("user", "b"))},
            r"line 2: .*start with the same",
        ),
        (GOOD | {"prompt": "the cat " * 40}, r'line 2: "prompt" is too long: .*max_length=20'),
        (GOOD | {"rejected": "the cat " * 40}, r'line 2: "rejected" is too long'),
    ],
)
def test_bad_lines_are_named(jsonl, tiny_tokenizer, line, message):
    with pytest.raises(InputError, match=message):
        preference_dataset(jsonl(GOOD, line), tiny_tokenizer, max_length=20)


def test_missing_and_empty_files_are_errors(jsonl, tiny_tokenizer, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        preference_dataset(tmp_path / "none.jsonl", tiny_tokenizer)
    with pytest.raises(InputError, match="no preference pairs"):
        preference_dataset(jsonl(""), tiny_tokenizer)


def test_truncating_the_prompt_keeps_its_end_and_is_the_same_for_both_sides(tiny_tokenizer):
    row = GOOD | {"prompt": "the cat sat on the mat and the dog sat there"}
    whole = next(iter(preference_dataset([row], tiny_tokenizer)))
    longest = max(len(whole["chosen_ids"]), len(whole["rejected_ids"]))
    (cut,) = preference_dataset([row], tiny_tokenizer, max_length=longest + 3, truncate="prompt")
    assert cut["prompt_ids"] == whole["prompt_ids"][-3:]
    assert cut["chosen_ids"] == whole["chosen_ids"]


def test_truncating_the_completion_keeps_its_start(tiny_tokenizer):
    whole = next(iter(preference_dataset([GOOD], tiny_tokenizer)))
    size = len(whole["prompt_ids"]) + 2
    (cut,) = preference_dataset([GOOD], tiny_tokenizer, max_length=size, truncate="completion")
    assert cut["chosen_ids"] == whole["chosen_ids"][:2]
    assert cut["prompt_ids"] == whole["prompt_ids"]


def test_completions_that_differ_only_beyond_the_cut_are_refused(tiny_tokenizer):
    row = {"prompt": "the cat", "chosen": " sat there one", "rejected": " sat there two"}
    size = len(tiny_tokenizer("the cat")["input_ids"]) + 1
    with pytest.raises(InputError, match="same tokens within"):
        preference_dataset([row], tiny_tokenizer, max_length=size, truncate="completion")


def test_precomputed_logprobs_land_on_the_completion_tokens(tiny_tokenizer):
    (row,) = preference_dataset([GOOD], tiny_tokenizer)
    sizes = len(row["chosen_ids"]), len(row["rejected_ids"])
    row |= {
        "reference_chosen_logprob": [-1.0 - i for i in range(sizes[0])],
        "reference_rejected_logprob": [-9.0] * sizes[1],
    }
    collate = PreferenceCollator.of(tiny_tokenizer)
    fields = collate([row])
    assert (
        fields["reference_logprob"][0][fields["target"][0]].tolist()
        == row["reference_chosen_logprob"]
    )
    assert (fields["reference_logprob"][~fields["target"]] == 0).all()
    with pytest.raises(InputError, match="another tokenizer"):
        collate([row | {"reference_rejected_logprob": [-9.0]}])
