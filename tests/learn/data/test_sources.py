"""Sources: the same rows from every form of file, and what is refused says what to do."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.data import preference_rows, read_jsonl, read_source

ROWS = [
    {"prompt": "the cat", "chosen": " sat", "rejected": " naïve 東京", "x": 0},
    {"prompt": "a", "x": 1},
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"


def parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


def saved_dataset(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(path))


FORMS = {
    "plain": lambda path: path.write_text(LINES, encoding="utf-8"),
    "byte order mark": lambda path: path.write_text(LINES, encoding="utf-8-sig"),
    "utf-16": lambda path: path.write_text(LINES, encoding="utf-16"),
    "utf-32": lambda path: path.write_text(LINES, encoding="utf-32"),
    "windows line ends": lambda path: path.write_bytes(LINES.replace("\n", "\r\n").encode()),
    "array": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "gzip": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "gzip of two parts": lambda path: path.write_bytes(
        b"".join(gzip.compress(line.encode()) for line in LINES.splitlines(keepends=True))
    ),
    "gzipped array in utf-16": lambda path: path.write_bytes(
        gzip.compress(json.dumps(ROWS).encode("utf-16"))
    ),
    "parquet": parquet,
    "datasets folder": saved_dataset,
}


def full(row):
    return {name: value for name, value in row.items() if value is not None}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_rows(tmp_path, form):
    path = tmp_path / "data"  # no name ending: the bytes decide
    FORMS[form](path)
    read = read_source(path)
    assert [full(row) for _, row in read.rows] == ROWS
    assert read.file == str(path)
    assert all(place.startswith(str(path)) for place, _ in read.rows)
    if path.is_file():
        assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_source(read) is read


def test_rows_in_memory_and_datasets_are_the_same_rows():
    from datasets import Dataset

    kinds = ROWS, iter(ROWS), Dataset.from_list(ROWS), Dataset.from_list(ROWS).with_format("torch")
    reads = [read_source(kind) for kind in kinds]
    assert all([full(row) for _, row in read.rows] == ROWS for read in reads)
    assert all(type(row["x"]) is int for read in reads for _, row in read.rows)
    assert reads[0].sha256 == reads[1].sha256
    assert reads[0].sha256 != read_source(ROWS[:1]).sha256
    assert reads[0].rows[1][0] == "row 1"


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(LINES))
    writer.start()
    read = read_source(pipe)
    writer.join()
    assert [row for _, row in read.rows] == ROWS
    assert read.sha256 == hashlib.sha256(LINES.encode()).hexdigest()


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_a_source(name):
    program = (
        "from tokenry.learn.data.sources import read_source; "
        f"print(len(read_source({name!r}).rows))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], input=LINES, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x81", "is not UTF-8 text: .* at byte 0"),
        (b"\xff\xfea", "is not UTF-16 text"),
        (LINES.encode("utf-16-le"), "byte 1 is 0; if it is UTF-16"),
        (gzip.compress(LINES.encode(), mtime=0)[:-9], "not whole gzip data"),
        (b"\x1f\x8bnonsense", "not whole gzip data"),
        (b"PAR1 but no parquet", "not whole parquet data"),
        (b"PK\x03\x04...", "is a zip archive; give JSON lines"),
        (b"\x28\xb5\x2f\xfd...", "is zstandard-compressed; give"),
        (b'[{"a": 1}, 2]', "item 1 must be a JSON object, got '2'"),
        (b'[{"a": 1},\n {]', "is not JSON: .* at line 2, column"),
        (b'{"a": 1}\n{"a":', "line 2 is not JSON: .* at column"),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 1 cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_source(path)
    assert str(error.value).startswith(str(path))


def test_folders_and_values_that_hold_no_rows_are_refused(tmp_path):
    from datasets import Dataset, DatasetDict

    splits = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS))
    splits.save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(InputError, match=r"choose .*splits/train or .*splits/test"):
        read_source(tmp_path / "splits")
    with pytest.raises(InputError, match="the splits train, test: give one of them"):
        read_source(splits)
    with pytest.raises(InputError, match="not a folder that datasets' save_to_disk wrote"):
        read_source(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_source(tmp_path / "none")
    with pytest.raises(InputError, match="row 1 must be a dict, got str"):
        read_source([{"a": 1}, "b"])
    with pytest.raises(InputError, match="give a list of rows"):
        read_source({"prompt": "a"})
    with pytest.raises(InputError, match="a file or rows, got int"):
        read_source(3)


def test_a_table_is_refused_with_the_call_that_makes_rows():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match=r'table.to_dict\("records"\)'):
        read_source(pandas.DataFrame(ROWS))


def test_nulls_that_only_fill_other_rows_fields_leave_messages(tmp_path):
    from datasets import Dataset

    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    rows = [
        {"messages": [{"role": "user", "content": "a"},
                      {"role": "assistant", "tool_calls": [call]}]},
        {"messages": [{"role": "assistant", "tool_calls": [
            {"function": {"name": "g", "arguments": {"y": "z"}}}]}]},
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(str(tmp_path / "data"))
    for source in (tmp_path / "data", Dataset.from_list(rows)):
        assert [row for _, row in read_source(source).rows] == rows


def test_lines_keep_their_numbers(tmp_path):
    path = Path(tmp_path / "data.jsonl")
    path.write_text('\n{"a": 1}\n\n{"a": 2}')
    assert read_jsonl(path) == [(2, {"a": 1}), (4, {"a": 2})]


def test_the_reader_of_preferences_takes_what_was_read_before(tiny_tokenizer):
    read = read_source(ROWS[:1])
    assert preference_rows(read, tiny_tokenizer)[0] == preference_rows(ROWS[:1], tiny_tokenizer)[0]
