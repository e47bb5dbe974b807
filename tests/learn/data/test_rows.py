"""Rows: every kind of TRL's formats, in all the shapes in which it is published."""

import json

import pytest
import torch

from chat_templates import ALTERNATES, KINDS, TOOLS, build_tokenizer
from tokenry.core.batch import TokenBatch
from tokenry.core.boundaries import encoded
from tokenry.core.errors import InputError
from tokenry.learn.data import (
    DataOptions,
    PreferenceCollator,
    as_dataset,
    batch_of,
    completion_rows,
    preference_rows,
    read_rows,
)

CHATML = KINDS[0].template


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes", CHATML)


def said(tokenizer, row):
    return tokenizer.decode([i for i, t in zip(row["ids"], row["target"], strict=True) if t])


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"text": "the cat sat"}, "text", " cat sat</s>"),
        ({"messages": [user("hi"), bot("hello"), user("a"), bot("b")]}, "messages",
         "hello<|im_end|>b<|im_end|>"),
        ({"prompt": "the cat", "completion": " sat"}, "completion", " sat</s>"),
        ({"prompt": [user("hi")], "completion": [bot("hello")]}, "completion", "hello<|im_end|>"),
        ({"prompt": "hi", "completion": [bot("hello")]}, "completion", "hello<|im_end|>"),
        ({"prompt": [user("hi")], "completion": "hello"}, "completion", "hello<|im_end|>"),
        ({"prompt": [user("hi")], "completion": [bot("a"), user("b"), bot("c")]}, "completion",
         "a<|im_end|>c<|im_end|>"),
        ({"prompt": [user("hi"), bot("the")], "completion": [bot(" cat")]}, "completion",
         " cat<|im_end|>"),
        ({"prompt": "hi", "prompt_id": "7", "messages": [user("hi"), bot("hello")]}, "messages",
         "hello<|im_end|>"),
    ],
)  # fmt: skip
def test_supervised_rows_target_what_is_to_be_learned(tokenizer, row, kind, expected):
    read = read_rows([row], tokenizer)
    assert read.kind == kind
    assert said(tokenizer, read.rows[0]) == expected
    collate = PreferenceCollator.of(tokenizer, ("completion",))
    batch = batch_of(collate(list(as_dataset(completion_rows(read.rows), ("completion",)))))
    assert batch.ids[0].tolist() == read.rows[0]["ids"]
    assert batch.target[0].tolist() == read.rows[0]["target"]


def test_unpaired_rows_have_a_completion_and_a_label(tokenizer):
    rows = [
        {"prompt": "the cat", "completion": " sat", "label": True},
        {"prompt": [user("hi")], "completion": [bot("hello")], "label": False},
    ]
    read = read_rows(rows, tokenizer)
    assert read.kind == "unpaired"
    data = as_dataset(read.rows, ("completion",), ("row.label",))
    collate = PreferenceCollator.of(tokenizer, ("completion",), ("row.label",))
    batch = batch_of(collate(list(data)))
    assert batch.column("label").tolist() == [1.0, 0.0]
    assert tokenizer.decode(batch.ids[0][batch.target[0]]) == " sat</s>"
    with pytest.raises(InputError, match="row 0: \"label\" must be true or false, got 'yes'"):
        read_rows([rows[0] | {"label": "yes"}], tokenizer)


PAIR = {"prompt": [user("hi")], "chosen": [bot("hello")], "rejected": [bot("the cat")]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": PAIR["chosen"], "rejected": PAIR["rejected"]},
        {"prompt": [user("hi")], "chosen": "hello", "rejected": "the cat"},
        {"chosen": [user("hi"), bot("hello")], "rejected": [user("hi"), bot("the cat")]},
        {"prompt": "hi", "chosen": [user("hi"), bot("hello")],
         "rejected": [user("hi"), bot("the cat")], "messages": [user("hi"), bot("hello")]},
        {"prompt": [user("hi")], "chosen": [user("hi"), bot("hello")],
         "rejected": [user("hi"), bot("the cat")]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "h"},
                                                 {"type": "text", "text": "i"}]}],
         "chosen": [bot([{"type": "text", "text": "hello"}])],
         "rejected": [bot("the cat", tool_calls=None)]},
    ],
)  # fmt: skip
def test_every_published_shape_of_a_pair_gives_the_same_tokens(tokenizer, row):
    (expected,), _ = preference_rows([PAIR], tokenizer)
    (given,), _ = preference_rows([row], tokenizer)
    for name in ("prompt", "chosen", "rejected", "prompt_ids", "chosen_ids", "rejected_ids"):
        assert given[name] == expected[name], name
    (prompt,), _ = preference_rows([row], tokenizer, prompts_only=True)
    assert prompt["prompt_ids"] == expected["prompt_ids"] or "prompt" in row


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Human: hi\n\nBot: a cat", "Human: hi\n\nBot: the cat", "Human: hi\n\nBot:"),
        ("Q: hi A: there", "Q: hi A: the cat", "Q: hi A:"),
        ("Q: hi A: the cat", "Q: hi A: the", "Q: hi A:"),
        ("Q: hi A: the cat", "Q: hi A: the dog", "Q: hi A: the"),
        ("A:\nthe", "A:\ncat", "A:\n"),
    ],
)  # fmt: skip
def test_texts_without_a_prompt_share_it_up_to_a_whole_word(tokenizer, chosen, rejected, prompt):
    (row,), _ = preference_rows([{"chosen": chosen, "rejected": rejected}], tokenizer)
    assert row["prompt"] == prompt
    assert row["prompt"] + row["chosen"] == chosen
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        assert tokenizer.decode(row["prompt_ids"] + row[f"{side}_ids"]) == text + "</s>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "other", "chosen": [user("hi"), bot("a")], "rejected": [user("hi"), bot("b")]},
         '"prompt" is not among the messages'),
        (PAIR | {"chosen": [user("a"), bot("b")]}, '"chosen" does not continue the prompt'),
        (PAIR | {"chosen": "hello"}, "all texts or all messages"),
        (PAIR | {"chosen": [bot("")]}, '"chosen" is an empty completion'),
        (PAIR | {"chosen": PAIR["rejected"]}, "are equal"),
        (PAIR | {"chosen": [{"role": "assistant", "content": [{"type": "image_url"}]}]},
         "\"chosen\" must be .* part of type 'image_url'"),
        (PAIR | {"chosen": [bot("a", name="Ada")]}, 'does not write "name"'),
        (PAIR | {"tools": "{"}, '"tools" is no JSON'),
        (PAIR | {"tools": ["f"]}, '"tools" must be a list of JSON schemas'),
        (PAIR | {"chosen": [bot("half \ud83d")]}, "lone surrogate"),
        (PAIR | {"reference_chosen_logprob": [-1.0]}, "got 1: it was made with another"),
        (PAIR | {"reference_chosen_logprob": 3.0}, "for each of the .* got float"),
        (PAIR | {"reference_rejected_logprob": [float("nan")] * 4}, "finite .* got nan at 0"),
        (PAIR | {"reference_rejected_logprob": [-1.0, 2.0, -1.0, -1.0]}, "got 2.0 at 1"),
    ],
)  # fmt: skip
def test_a_bad_pair_names_its_row_and_can_be_skipped(tokenizer, row, message):
    if "reference_rejected_logprob" in row:
        (good,), _ = preference_rows([PAIR], tokenizer)
        values = row["reference_rejected_logprob"]
        size = len(good["rejected_ids"])
        row = row | {"reference_rejected_logprob": [*values[:size], *[-1.0] * (size - len(values))]}
    with pytest.raises(InputError, match=f"row 1: .*{message}"):
        read_rows([PAIR, row], tokenizer)
    read = read_rows([PAIR, row, PAIR], tokenizer, bad_rows="skip")
    assert len(read.rows) == 2
    assert read.skipped.count == 1
    assert read.skipped.first.startswith("row 1: ")


def test_a_template_that_raises_is_a_bad_row():
    tokenizer = build_tokenizer("bytes", ALTERNATES)
    bad = {**PAIR, "prompt": [{"role": "system", "content": "a"}, user("hi")]}
    with pytest.raises(InputError, match=r"row 1: .*roles must alternate user/assistant"):
        read_rows([PAIR, bad], tokenizer)
    assert read_rows([bad, PAIR], tokenizer, bad_rows="skip").skipped.count == 1
    with pytest.raises(InputError, match=r"row 0: .*roles must alternate"):
        preference_rows([bad], tokenizer, prompts_only=True)


def test_pairs_that_differ_in_reasoning_or_calls_alone_are_pairs():
    tokenizer = build_tokenizer("bytes", TOOLS)
    calls = [{"function": {"name": "f", "arguments": json.dumps({"x": x})}} for x in (1, 2)]
    rows = [
        {"prompt": "hi", "chosen": [bot("a", reasoning_content="the cat")],
         "rejected": [bot("a", reasoning_content="the mat")]},
        {"prompt": "hi", "tools": json.dumps([{"name": "f"}]),
         "chosen": [bot(None, tool_calls=calls[:1])],
         "rejected": [bot(None, tool_calls=calls[1:])]},
    ]  # fmt: skip
    read = read_rows(rows, tokenizer)
    assert read.rows[0]["chosen"] == "<think>the cat</think>a<|im_end|>"
    assert read.rows[1]["rejected"] == '<call>f {"x": 2}</call><|im_end|>'
    assert read.rows[1]["prompt"].startswith('<|im_start|>system\n[{"name": "f"}]')


def test_a_prompt_that_ends_with_the_assistant_is_continued(tokenizer):
    prompt = [user("hi"), bot("the cat")]
    row = {"prompt": prompt, "chosen": [bot(" sat")], "rejected": [bot(" and the dog")]}
    (pair,), _ = preference_rows([row], tokenizer)
    (alone,), _ = preference_rows([row], tokenizer, prompts_only=True)
    assert pair["prompt"] == alone["prompt"] == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nthe cat"
    )  # fmt: skip
    assert pair["prompt_ids"] == alone["prompt_ids"]
    assert pair["chosen"] == " sat<|im_end|>"


def test_only_the_assistants_tokens_of_longer_completions_count(tokenizer):
    row = PAIR | {"chosen": [bot("hello"), user("and the dog"), bot("sat there")]}
    rows, _ = preference_rows([row, PAIR], tokenizer)
    size = len(rows[0]["chosen_ids"])
    rows[0]["chosen_weight"] = [float(n + 1) for n in range(size)]
    rows[0]["rejected_weight"] = [1.0] * len(rows[0]["rejected_ids"])
    for side in ("chosen", "rejected"):
        rows[1][f"{side}_weight"] = [1.0] * len(rows[1][f"{side}_ids"])
    columns = ("token.weight",)
    data = as_dataset(rows, columns=columns)
    batch = batch_of(PreferenceCollator.of(tokenizer, columns=columns)(list(data)))
    counted = [tokenizer.decode(i[t]) for i, t in zip(batch.ids, batch.target, strict=True)]
    assert counted == ["hello<|im_end|>sat there<|im_end|>", "hello<|im_end|>",
                       "the cat<|im_end|>", "the cat<|im_end|>"]  # fmt: skip
    weight = batch.column("weight")
    start = len(rows[0]["prompt_ids"])
    places = batch.target[0].nonzero()[:, 0]
    assert weight[0][batch.target[0]].tolist() == (places - start + 1).tolist()
    assert not weight[~batch.target].any()


def test_reference_columns_are_there_for_all_rows_or_for_none(tokenizer):
    rows, _ = preference_rows([PAIR, PAIR], tokenizer)
    for side in ("chosen", "rejected"):
        rows[0][f"reference_{side}_logprob"] = [-1.0] * len(rows[0][f"{side}_ids"])
    with pytest.raises(InputError, match='row 1: "reference_chosen_logprob" is missing'):
        as_dataset(rows)
    del rows[0]["reference_chosen_logprob"]
    with pytest.raises(InputError, match='row 0: "reference_chosen_logprob" is missing'):
        as_dataset(rows[:1])


def test_precomputed_references_skip_what_does_not_count(tokenizer):
    from conftest import build_llama
    from tokenry.learn.reference import FrozenModel, precompute_reference
    from tokenry.model.score import score

    row = PAIR | {"chosen": [bot("hello"), user("and"), bot("sat")]}
    rows, _ = preference_rows([row, PAIR], tokenizer)
    model, collate = build_llama(vocab_size=len(tokenizer)), PreferenceCollator.of(tokenizer)
    data = precompute_reference(as_dataset(rows), collate, FrozenModel(model))
    fields = collate(list(data))
    batch = batch_of(fields)
    expected = score(model, batch).need("logprob")
    torch.testing.assert_close(fields["reference_logprob"], expected)


def test_tokens_across_the_boundary_and_added_ends_are_in_the_record():
    tokenizer = build_tokenizer("bytes", KINDS[7].template)  # writes no end token
    rows = [{"prompt": "A: ", "chosen": "hello", "rejected": "(x"}, PAIR]
    read = read_rows(rows, tokenizer)
    record = read.to_dict()
    assert record["read_as"] == "preference"
    assert (record["crossing"], record["ended"]) == (read.crossing, read.ended)
    assert read.ended == 2
    assert read.crossing == 2  # " hello", and the space that is left of the prompt before "(x"
    assert "2 tokens reach" in read.summary()
    assert "2 end tokens added" in read.summary()
    assert json.loads(json.dumps(record))["options"] == DataOptions().to_dict()


def test_both_sides_of_a_pair_stand_behind_the_same_prompt(tokenizer):
    row = {"prompt": "A: ", "chosen": "hello", "rejected": "(x"}
    (pair,), _ = preference_rows([row], tokenizer)
    assert tokenizer.decode(pair["prompt_ids"]) == "A:"
    for side in ("chosen", "rejected"):
        whole = [*encoded(tokenizer, row["prompt"] + row[side]), tokenizer.eos_token_id]
        assert pair["prompt_ids"] + pair[f"{side}_ids"] == whole


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "a b", "messages": [user("a"), bot("b")]}, {}, "as text or as messages"),
        ({"conversations": []}, {}, 'rename "conversations" to "messages"'),
        ({"instruction": "a", "output": "b"}, {}, 'rename "instruction"'),
        (
            {"text": "a b"},
            {"accepts": ("preference",)},
            r"are text data; wanted: chosen \+ rejected",
        ),
        ({"text": None}, {}, r"the fields none; wanted: .* or prompt \+ completion \+ label"),
        ({"text": "a b"}, {"kind": "preferences"}, "kind is 'preferences'; it must be one of"),
        ({"text": "a b"}, {"kind": "text", "accepts": ("prompt",)}, "it must be auto or prompt"),
        ({"text": 3}, {}, '"text" must be a text, got'),
        ({"messages": "hi"}, {}, '"messages" must be a list'),
        ({"prompt": "a", "label": True}, {"kind": "unpaired"}, '"completion" is missing'),
        ({"text": "a b"}, {"max_length": 1}, "max_length is 1"),
        ({"text": "a b"}, {"truncate": "left"}, "truncate is 'left'; it must be one of"),
        ({"text": "a b"}, {"bad_rows": "drop"}, "bad_rows is 'drop'"),
    ],
)
def test_rows_of_another_kind_say_what_is_wanted(tokenizer, row, options, message):
    with pytest.raises(InputError, match=message):
        read_rows([row], tokenizer, **options)


def test_a_kind_can_be_forced(tokenizer):
    row = {"prompt": "the cat", "completion": " sat", "label": True, "text": "a dog"}
    reads = {
        kind: read_rows([row], tokenizer, kind).rows[0]
        for kind in ("text", "completion", "unpaired", "prompt")
    }
    assert said(tokenizer, reads["text"]).endswith(" dog</s>")
    assert said(tokenizer, reads["completion"]) == " sat</s>"
    assert reads["unpaired"]["completion_label"] is True
    assert tokenizer.decode(reads["prompt"]["prompt_ids"]) == "the cat"


def test_length_limits_hold_for_every_kind(tokenizer):
    long = "the cat sat on the mat and the dog sat there"
    for row, kind in (
        ({"text": long}, "text"),
        ({"messages": [user("hi"), bot(long)]}, "messages"),
        ({"prompt": long}, "prompt"),
        ({"prompt": "hi", "completion": long, "label": True}, "unpaired"),
    ):
        with pytest.raises(InputError, match=r"row 0: .*max_length=9"):
            read_rows([row], tokenizer, kind, max_length=9)
    (text,) = read_rows([{"text": long}], tokenizer, max_length=5, truncate="completion").rows
    assert text["ids"] == encoded(tokenizer, long)[:5]
    (prompt,) = read_rows([{"prompt": long}], tokenizer, max_length=5, truncate="prompt").rows
    assert prompt["prompt_ids"] == encoded(tokenizer, long)[-5:]


def test_rows_are_the_tokens_of_from_pairs_and_from_messages(tokenizer):
    pair = {"prompt": "A: ", "completion": "hello"}
    talk = [user("hi"), bot("the cat"), user("and"), bot("the dog")]
    for row, batch in (
        (pair, TokenBatch.from_pairs(tokenizer, [tuple(pair.values())])),
        ({"messages": talk}, TokenBatch.from_messages(tokenizer, [talk])),
    ):
        (read,) = read_rows([row], tokenizer).rows
        size = len(read["ids"])  # what follows the last target is left out of the row
        assert read["ids"] == batch.ids[0, :size].tolist()
        assert read["target"] == batch.target[0, :size].tolist()
        assert not batch.target[0, size:].any()


def test_characters_of_a_completions_tokens_are_found_where_they_were_made(tokenizer):
    from tokenry.learn.data.precompute import PrecomputeContext

    context = PrecomputeContext(tokenizer)
    row = {"prompt": "the ", "chosen": "cat sat", "rejected": "(x"}
    (pair,), _ = preference_rows([row], tokenizer)
    for side in ("chosen", "rejected"):
        spans = context.offsets(pair, side)
        assert len(spans) == len(pair[f"{side}_ids"])
        texts = [pair[side][start:end] for start, end in spans]
        assert "".join(texts) == row[side]
        assert texts[-1] == ""  # the end token
        names = [tokenizer.decode([token]) for token in pair[f"{side}_ids"][:-1]]
        for name, text in zip(names, texts, strict=False):
            assert name.endswith(text)
    sampled = pair | {"chosen": "hello", "chosen_ids": encoded(tokenizer, "hello")}
    assert [b for _, b in context.offsets(sampled, "chosen")][-1] == len("hello")
    with pytest.raises(InputError, match="is not what its token ids were made from"):
        context.offsets(pair | {"chosen_ids": [5, 6, 7]}, "chosen")


@pytest.mark.parametrize("kind", [KINDS[n] for n in (0, 2, 3, 5, 6, 7)], ids=lambda kind: kind.name)
@pytest.mark.parametrize("row", [PAIR, {"chosen": [user("hi"), bot("hello")],
                                        "rejected": [user("hi"), bot("the cat")]}])  # fmt: skip
def test_texts_of_chat_pairs_are_those_of_trl(kind, row):
    from trl.data_utils import apply_chat_template, maybe_extract_prompt

    tokenizer = build_tokenizer("bytes", kind.template)
    expected = apply_chat_template(maybe_extract_prompt(dict(row)), tokenizer)
    (ours,), _ = preference_rows([row], tokenizer)
    assert ours["prompt"] == expected["prompt"]
    for side in ("chosen", "rejected"):
        assert ours[side] == expected[side].rstrip()
