"""Training data: sources -> rows of token ids -> `datasets.Dataset` -> TokenBatch."""

from tokenry.learn.data.collator import PreferenceCollator, batch_of
from tokenry.learn.data.columns import as_dataset
from tokenry.learn.data.pairs import (
    BadRows,
    Skipped,
    Truncate,
    preference_dataset,
    preference_rows,
)
from tokenry.learn.data.sources import read_jsonl

__all__ = [
    "BadRows",
    "PreferenceCollator",
    "Skipped",
    "Truncate",
    "as_dataset",
    "batch_of",
    "preference_dataset",
    "preference_rows",
    "read_jsonl",
]
