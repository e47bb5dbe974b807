import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError

rows_of_ids = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5)


@given(rows_of_ids, st.sampled_from(["left", "right"]))
def test_ids_survive_padding_on_either_side(rows, side):
    batch = TokenBatch.from_ids(rows, padding_side=side)
    for number, row in enumerate(rows):
        assert batch.ids[number][batch.attention[number]].tolist() == row
        assert int(batch.target[number].sum()) == len(row) - 1
    assert batch.lengths.tolist() == [len(row) for row in rows]


@given(rows_of_ids, rows_of_ids, st.sampled_from(["left", "right"]))
def test_concat_then_select_gives_the_parts_back(one, two, side):
    first = TokenBatch.from_ids(one, padding_side=side)
    both = first.concat(TokenBatch.from_ids(two, padding_side=side), side=side)
    again = both.select(slice(0, len(one)))
    assert [r[a].tolist() for r, a in zip(again.ids, again.attention, strict=True)] == one


def test_pairs_target_just_the_completion_and_its_end(tiny_tokenizer):
    batch = TokenBatch.from_pairs(tiny_tokenizer, [("the cat", " sat"), ("", "on")])
    for row, completion in ((0, " sat"), (1, "on")):
        target = batch.ids[row][batch.target[row]]
        assert target[-1] == tiny_tokenizer.eos_token_id
        assert tiny_tokenizer.decode(target[:-1]) == completion
    assert batch.ids[1, 0] == tiny_tokenizer.bos_token_id


def test_truncation_is_an_error_unless_its_side_is_named(tiny_tokenizer):
    pair = [("the cat sat on the mat", " and the dog sat there")]
    whole = TokenBatch.from_pairs(tiny_tokenizer, pair)
    limit = whole.shape[1] - 2
    with pytest.raises(InputError, match="2 more than max_length"):
        TokenBatch.from_pairs(tiny_tokenizer, pair, max_length=limit)
    by_prompt = TokenBatch.from_pairs(tiny_tokenizer, pair, max_length=limit, truncate="prompt")
    assert torch.equal(by_prompt.ids[by_prompt.target], whole.ids[whole.target])
    by_end = TokenBatch.from_pairs(tiny_tokenizer, pair, max_length=limit, truncate="completion")
    assert torch.equal(by_end.ids[~by_end.target], whole.ids[~whole.target])
    with pytest.raises(InputError, match="cannot remove them"):
        TokenBatch.from_pairs(tiny_tokenizer, pair, max_length=3, truncate="prompt")


def test_messages_target_just_what_the_assistant_says(tiny_tokenizer):
    talk = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat there"},
        {"role": "user", "content": "and the dog"},
        {"role": "assistant", "content": "on the mat"},
    ]
    batch = TokenBatch.from_messages(tiny_tokenizer, [talk])
    said = tiny_tokenizer.decode(batch.ids[batch.target])
    assert said == "sat there</s>on the mat</s>"


def test_messages_that_open_with_the_assistant_target_its_words_alone(tiny_tokenizer):
    batch = TokenBatch.from_messages(
        tiny_tokenizer, [[{"role": "assistant", "content": "sat there"}]]
    )
    assert tiny_tokenizer.decode(batch.ids[batch.target]) == "sat there</s>"


def test_messages_without_an_assistant_are_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="no assistant message"):
        TokenBatch.from_messages(tiny_tokenizer, [[{"role": "user", "content": "hi"}]])


@pytest.mark.parametrize(
    ("attention", "target", "what"),
    [
        ([1, 1, 0], [0, 0, 1], "targets on padding"),
        ([0, 1, 1], [0, 1, 1], "first token"),
        ([1, 0, 1], [0, 0, 0], "padding between"),
        ([0, 1, 0], [0, 0, 0], None),
    ],
)
def test_masks_are_validated(attention, target, what):
    ids = torch.zeros(1, 3, dtype=torch.long)
    masks = torch.tensor([attention]).bool(), torch.tensor([target]).bool()
    if what is None:
        TokenBatch(ids, *masks)
    else:
        with pytest.raises(ShapeError, match=what):
            TokenBatch(ids, *masks)


def test_empty_rows_and_batches_are_refused():
    with pytest.raises(InputError, match="row 1 has no tokens"):
        TokenBatch.from_ids([[1], []])
    with pytest.raises(InputError, match="empty batch"):
        TokenBatch.from_ids([])
