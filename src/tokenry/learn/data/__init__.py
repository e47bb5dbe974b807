"""Training data: sources -> rows of token ids -> `datasets.Dataset` -> TokenBatch.

sources    files, pipes, folders, rows in memory
kinds      which of TRL's published formats a row is
fields     texts and messages, brought to one form
rows       the one reader, and the record of what was read
pairs      the same for preferences alone
columns    further columns, checked; the dataset
collator   rows of the dataset -> fields of a batch
"""

from tokenry.core.batch import Truncate
from tokenry.learn.data.collator import PreferenceCollator, batch_of
from tokenry.learn.data.columns import as_dataset, further_columns
from tokenry.learn.data.kinds import KINDS, SUPERVISED, Kind
from tokenry.learn.data.pairs import preference_dataset, preference_rows
from tokenry.learn.data.rows import (
    BadRows,
    DataOptions,
    DataRows,
    Skipped,
    completion_rows,
    read_rows,
)
from tokenry.learn.data.sources import Source, read_jsonl, read_source

__all__ = [
    "KINDS",
    "SUPERVISED",
    "BadRows",
    "DataOptions",
    "DataRows",
    "Kind",
    "PreferenceCollator",
    "Skipped",
    "Source",
    "Truncate",
    "as_dataset",
    "batch_of",
    "completion_rows",
    "further_columns",
    "preference_dataset",
    "preference_rows",
    "read_jsonl",
    "read_rows",
    "read_source",
]
