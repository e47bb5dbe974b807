"""The taxonomy: every place exists, and the guide shows the table of the records."""

import importlib
import typing
from pathlib import Path

import pytest

from tokenry.papers.reduction_taxonomy import REDUCER_TAXONOMY, Family, table

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "reduction.md"


@pytest.mark.parametrize("record", REDUCER_TAXONOMY, ids=lambda record: record.method)
def test_every_method_is_where_the_table_says(record):
    module, _, name = record.place.rpartition(".")
    assert hasattr(importlib.import_module(f"tokenry.{module}"), name)
    assert record.family in typing.get_args(Family)
    for text in (record.where, record.signal, record.granularity, record.training, record.modality):
        assert text


def test_every_family_has_a_method():
    assert {record.family for record in REDUCER_TAXONOMY} == set(typing.get_args(Family))


def test_the_guide_shows_the_records():
    assert "\n".join(table()) in GUIDE.read_text()
