"""Preference data: the formats that are read, and errors that name the line and the field."""

import json

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.data import (
    PreferenceCollator,
    as_dataset,
    batch_of,
    preference_dataset,
    preference_rows,
)

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
        (
            {"chosen": "a", "rejected": "b"},
            r'line 2: without a "prompt" .*start with the same words',
        ),
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


def test_columns_of_the_data_reach_their_tokens(tiny_tokenizer):
    rows, _ = preference_rows([GOOD, GOOD | {"prompt": "a longer prompt"}], tiny_tokenizer)
    for number, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            row[f"{side}_weight"] = [
                number + place / 100 for place in range(len(row[f"{side}_ids"]))
            ]
            row[f"{side}_csr"] = number + (side == "chosen") / 2
    columns = ("token.weight", "row.csr")
    data = as_dataset(rows, columns=columns)
    batch = batch_of(PreferenceCollator.of(tiny_tokenizer, columns=columns)(list(data)))
    assert batch.column("csr").tolist() == [0.5, 1.5, 0.0, 1.0]
    weight = batch.column("weight")
    assert not weight[~batch.target].any()
    for row, (number, side) in enumerate([(0, "chosen"), (1, "chosen"), (0, "rejected")]):
        expected = torch.tensor(rows[number][f"{side}_weight"])
        torch.testing.assert_close(weight[row][batch.target[row]], expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "missing"),
        ([1.0], "one number for each of the"),
        ("negative", "not negative"),
        ("nan", "finite"),
        (1.0, "one number for each of the"),
    ],
)
def test_a_bad_column_names_the_row_and_the_field(jsonl, tiny_tokenizer, value, message):
    rows, _ = preference_rows(jsonl(GOOD, GOOD), tiny_tokenizer)
    for row in rows:
        for side in ("chosen", "rejected"):
            row[f"{side}_weight"] = [1.0] * len(row[f"{side}_ids"])
    length = len(rows[1]["rejected_ids"])
    bad = {"negative": -0.5, "nan": float("nan")}
    rows[1]["rejected_weight"] = (
        [1.0] * (length - 1) + [bad[value]] if isinstance(value, str) else value
    )
    with pytest.raises(InputError, match=message) as error:
        as_dataset(rows, columns=("token.weight",))
    assert "line 2" in str(error.value)
    assert '"rejected_weight"' in str(error.value)


def test_bad_rows_can_be_skipped_and_are_counted(jsonl, tiny_tokenizer):
    lines = [GOOD, GOOD | {"rejected": GOOD["chosen"]}, GOOD | {"chosen": " "}, GOOD]
    rows, skipped = preference_rows(jsonl(*lines), tiny_tokenizer, bad_rows="skip")
    assert len(rows) == 2
    assert skipped.count == 2
    assert "line 2" in skipped.first
    assert "equal" in skipped.first
    with pytest.raises(InputError, match="all 1 rows were skipped"):
        preference_rows(jsonl(lines[1]), tiny_tokenizer, bad_rows="skip")


def test_prompts_for_rollouts_need_no_completions_and_are_padded_on_the_left(tiny_tokenizer):
    rows, _ = preference_rows(
        [{"prompt": "the cat sat"}, {"prompt": "a"}], tiny_tokenizer, prompts_only=True
    )
    data = as_dataset(rows, completions=())
    fields = PreferenceCollator.of(tiny_tokenizer, completions=())(list(data))
    assert fields["prompts"].shape == fields["prompts_attention"].shape
    assert fields["prompts_attention"][:, -1].all()
    assert not fields["prompts_attention"][1, 0]
    with pytest.raises(InputError, match='"prompt" is missing'):
        preference_rows([{"chosen": "a"}], tiny_tokenizer, prompts_only=True)
