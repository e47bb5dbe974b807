import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.text.alignment import Span, project, shared_spans
from tokenry.text.vocabulary import token_bytes


@st.composite
def segmentation(draw, text, empties=True):
    cuts = draw(st.sets(st.integers(1, len(text) - 1))) if len(text) > 1 else set()
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[i:j] for i, j in itertools.pairwise(edges)]
    if empties:  # special tokens carry no bytes
        for place in draw(st.lists(st.integers(0, len(pieces)), max_size=3)):
            pieces.insert(place, b"")
    return pieces


@st.composite
def two_segmentations(draw, empties=True):
    text = draw(st.binary(min_size=1, max_size=30))
    return text, draw(segmentation(text, empties)), draw(segmentation(text, empties))


def inner_boundaries(pieces):
    return set(itertools.accumulate(len(piece) for piece in pieces))


@given(two_segmentations())
def test_spans_partition_the_text_and_the_tokens_of_both(case):
    text, a, b = case
    spans = shared_spans(a, b)
    for start, end, size in ((0, 1, len(a)), (2, 3, len(b)), (4, 5, len(text))):
        edges = [0, *(span[end] for span in spans)]
        assert edges[-1] == size
        assert [span[start] for span in spans] == edges[:-1]
    for span in spans:
        piece = text[span.byte_start : span.byte_end]
        assert piece
        assert b"".join(a[span.a_start : span.a_end]) == piece
        assert b"".join(b[span.b_start : span.b_end]) == piece


@given(two_segmentations())
def test_spans_are_minimal(case):
    _, a, b = case
    both = (inner_boundaries(a) & inner_boundaries(b)) - {0}
    assert {span.byte_end for span in shared_spans(a, b)} == both


@given(two_segmentations(), st.integers(0, 100))
def test_sums_are_preserved(case, seed):
    _, a, b = case
    spans = shared_spans(a, b)
    values = torch.randn(2, len(a), generator=torch.Generator().manual_seed(seed)).double()
    sums = project(values, spans, "a")
    expected = [values[:, s.a_start : s.a_end].sum(-1) for s in spans]
    torch.testing.assert_close(sums, torch.stack(expected, -1))
    torch.testing.assert_close(sums.sum(-1), values.sum(-1))


@given(two_segmentations())
def test_lengths_do_as_well_as_bytes_and_sides_may_be_swapped(case):
    _, a, b = case
    spans = shared_spans(a, b)
    lengths = [np.array([len(piece) for piece in side]) for side in (a, b)]
    assert shared_spans(*lengths) == spans
    assert shared_spans(*(torch.from_numpy(side) for side in lengths)) == spans
    swapped = [Span(s.b_start, s.b_end, s.a_start, s.a_end, *s[4:]) for s in spans]
    assert shared_spans(b, a) == swapped


@given(st.data())
def test_equal_segmentations_give_one_span_a_token(data):
    text = data.draw(st.binary(min_size=1, max_size=20))
    pieces = data.draw(segmentation(text, empties=False))
    spans = shared_spans(pieces, pieces)
    assert [(s.a_start, s.a_end) for s in spans] == [(i, i + 1) for i in range(len(pieces))]


def test_worked_example():
    spans = shared_spans([b"the", b" cat", b"s"], [b"th", b"e", b" ", b"cats"])
    assert spans == [Span(0, 1, 0, 2, 0, 3), Span(1, 3, 2, 4, 3, 8)]
    assert project(torch.tensor([1.0, 2.0, 4.0]), spans, "a").tolist() == [1, 6]
    assert project(torch.tensor([1.0, 2.0, 4.0, 8.0]), spans, "b").tolist() == [3, 12]


def test_tokens_without_bytes_join_the_span_before_them():
    spans = shared_spans([b"", b"a", b"", b"b", b""], [b"a", b"b"])
    assert [(s.a_start, s.a_end) for s in spans] == [(0, 3), (3, 5)]


def test_sentencepiece_leading_space_is_taken_off():
    marked, plain = [b" The", b" cat"], [b"The", b" c", b"at"]
    expected = [Span(0, 1, 0, 1, 0, 3), Span(1, 2, 1, 3, 3, 7)]
    assert shared_spans(marked, plain) == expected
    assert shared_spans([b" ", b"The", b" cat"], plain)[0] == Span(0, 2, 0, 1, 0, 3)
    assert shared_spans(plain, [b"", *marked])[0] == Span(0, 1, 0, 2, 0, 3)
    # a space that both have is text
    assert shared_spans([b" a"], [b" ", b"a"])[0].byte_end == 2


def test_a_real_tokenizer_against_single_bytes(tiny_tokenizer):
    text = "naïve café, 東京 and 🙂"
    table = token_bytes(tiny_tokenizer)
    pieces = [table[i] for i in tiny_tokenizer(text, add_special_tokens=False)["input_ids"]]
    single = [bytes([byte]) for byte in text.encode()]
    spans = shared_spans(pieces, single)
    assert [s.byte_end - s.byte_start for s in spans] == [len(piece) for piece in pieces]


def test_projection_is_differentiable():
    spans = shared_spans([b"a", b"b", b"c"], [b"ab", b"c"])
    values = torch.zeros(3, requires_grad=True)
    weights = torch.tensor([2.0, 5.0])
    (gradient,) = torch.autograd.grad((project(values, spans, "a") * weights).sum(), values)
    assert gradient.tolist() == [2, 2, 5]


def test_no_text_has_no_spans():
    assert shared_spans([], []) == []
    assert project(torch.zeros(0), [], "a").shape == (0,)


def test_wrong_inputs_say_what_is_wrong():
    with pytest.raises(InputError, match=r"byte 2 .*normalise"):
        shared_spans([b"abc"], [b"ab", b"C"])
    with pytest.raises(InputError, match="3 and 4 bytes"):
        shared_spans([3], [2, 2])
    with pytest.raises(InputError, match="both sides"):
        shared_spans([b"abc"], [3])
    with pytest.raises(InputError, match=">= 0"):
        shared_spans([4, -1], [3])
    spans = shared_spans([3], [2, 1])
    with pytest.raises(ShapeError, match="2 tokens of side b"):
        project(torch.zeros(3), spans, "b")
    with pytest.raises(InputError, match="side"):
        project(torch.zeros(1), spans, "c")  # pyright: ignore[reportArgumentType]
