"""Intersection over union of boxes."""

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.boxes import BoxIoU, box_iou, boxes_iou, parse_boxes

A, B = (0, 0, 2, 2), (1, 1, 3, 3)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        (A, B, 1 / 7),
        (A, A, 1.0),
        (A, (0, 0, 1, 2), 0.5),
        (A, (2, 0, 4, 2), 0.0),
        (A, (5, 5, 6, 6), 0.0),
        (A, (2, 2, 0, 0), 0.0),
        ((2, 2, 0, 0), (2, 2, 0, 0), 0.0),
        ((0, 0, 0, 2), (0, 0, 0, 2), 0.0),
    ],
)
def test_iou(a, b, value):
    assert box_iou(a, b) == box_iou(b, a) == pytest.approx(value)
    assert BoxIoU()(["x"], [str(list(a))], [list(b)]) == pytest.approx([value])


def test_several_boxes_are_matched_once_each():
    assert boxes_iou([A, B], [B, A]) == 1.0
    assert boxes_iou([A], [A, (9, 9, 10, 10)]) == 0.5
    assert boxes_iou([A, A], [A]) == 0.5  # the second has none left
    assert boxes_iou([], [A]) == boxes_iou([A], []) == boxes_iou([], []) == 0.0
    near = (0, 0, 2, 1.5)  # 0.75 of A: the largest pair first
    assert boxes_iou([near, A], [A]) == 0.5


def test_boxes_are_read_from_texts():
    text = "<answer>[0, 0.5,2,-2.] and (1,1,3,3), not [1,2,3] nor [1,2,3,4,5]</answer>"
    assert parse_boxes(text) == [(0, 0.5, 2, -2), B]
    assert BoxIoU()(["x"] * 2, ["[0,0,2,2]"] * 2, [[[0, 0, 2, 2], [5, 5, 6, 6]], None]) == [
        0.5,
        None,
    ]
    with pytest.raises(InputError, match="'here' has no box"):
        BoxIoU()(["x"], ["[0,0,2,2]"], ["here"])
