"""Whatever goes wrong is one line and an exit code; texts are Unicode, streams may be closed."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest
import yaml

from tokenry.papers import catalogue

VERBS_THAT_READ = ("inspect", "tokenize", "generate", "compress")


def pretend(monkeypatch, error):
    """`tokenry papers` runs into an exception."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(catalogue, "listing", fail)


def from_a_library(_):
    import torch

    torch.nn.functional.linear(torch.zeros(2, 3), torch.zeros(2, 2))


def from_rust(_):
    from tokenizers import Tokenizer

    Tokenizer.from_str("{")


def from_a_stack(n):
    return from_a_stack(n)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied", "/etc/x"), "Permission denied: /etc/x"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"), "PYTHONUTF8=1"),
        (yaml.YAMLError("a tab"), "yaml: YAMLError: a tab"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
    ],
)
def test_exceptions_of_libraries_are_one_line_with_the_place(refused, monkeypatch, error, says):
    pretend(monkeypatch, error)
    assert says in refused("papers")


@pytest.mark.parametrize("fault", [from_a_library, from_rust, from_a_stack])
def test_exceptions_from_inside_a_library_too(refused, monkeypatch, fault):
    monkeypatch.setattr(catalogue, "listing", lambda **_: fault(0))
    line = refused("papers")
    assert "tokenry/app/commands/papers.py:" in line or "test_failures.py:" in line
    assert "--debug" in line


def test_a_fault_of_tokenry_itself_is_one_line_and_exit_code_1(run, monkeypatch):
    monkeypatch.delenv("TOKENRY_DEBUG", raising=False)
    pretend(monkeypatch, KeyError("lost"))
    monkeypatch.setattr("tokenry.app.failures.library", lambda error: None)
    code, out, err = run("papers")
    assert (code, out) == (1, "")
    assert err.startswith("error: internal error: KeyError: 'lost' (at ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("where", ["before", "behind"])
def test_debug_shows_the_traceback(run, monkeypatch, where):
    monkeypatch.delenv("TOKENRY_DEBUG", raising=False)
    pretend(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        run(*(["--debug", "papers"] if where == "before" else ["papers", "--debug"]))
    assert run("papers")[0] == 2  # and only that once


def test_an_interrupt_says_so(run, monkeypatch):
    pretend(monkeypatch, KeyboardInterrupt())
    assert run("papers") == (130, "", "interrupted\n")


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["inspect", "tokenize", "generate"])
def test_a_text_that_is_not_unicode_is_refused(refused, verb):
    assert "not Unicode text: the \\udcff" in refused(verb, "the \udcff")
    assert "not Unicode text" in refused(verb, "the \ud800")  # no byte stands for this one


def test_an_option_that_is_not_unicode_is_named(refused):
    assert "--steer is not Unicode" in refused("generate", "x", "--steer", "\udcff")
    assert "--stop is not Unicode" in refused("generate", "x", "--stop", "a", "--stop", "\udcff")


def test_arguments_that_the_locale_did_not_decode_are_read_as_utf8(run, model):
    undecoded = "naïve".encode().decode("ascii", "surrogateescape")
    found = json.loads(run("tokenize", undecoded, "-m", model, "--json")[1])
    assert found["text"] == "naïve"


@pytest.mark.parametrize("verb", VERBS_THAT_READ)
def test_standard_input_that_is_binary_is_refused(refused, monkeypatch, verb):
    for data, says in [
        (b"ab\xff", "standard input is not UTF-8 text: invalid start byte at byte 2"),
        (b"ab\xff\x00", "standard input is not text: byte 3 is 0"),
    ]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
        assert says in refused(verb, "-")


@pytest.mark.parametrize("verb", VERBS_THAT_READ)
def test_standard_input_that_is_closed_is_refused(refused, monkeypatch, verb):
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input is closed" in refused(verb, "-")


@pytest.mark.parametrize("data", ["the cät".encode("utf-8-sig"), "the cät".encode("utf-16")])
def test_a_byte_order_mark_is_no_part_of_the_text(run, model, tmp_path, data):
    file = tmp_path / "text.txt"
    file.write_bytes(data)
    assert json.loads(run("tokenize", "-f", file, "-m", model, "--json")[1])["text"] == "the cät"


def test_a_row_with_half_a_character_is_numbered(refused, model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    good = json.dumps({"prompt": "a", "chosen": "b 🙂", "rejected": "c"})
    rows.write_text(good + "\n" + good.replace("\\ude42", "") + "\n")
    assert "line 2" in refused("train", "-d", rows, "-o", tmp_path / "out", "-m", model)
    assert not (tmp_path / "out").exists()


def test_json_is_ascii_where_the_output_cannot_hold_more(monkeypatch):
    from tokenry.app.terminal import print_json

    output = io.TextIOWrapper(io.BytesIO(), "ascii", "backslashreplace")
    monkeypatch.setattr("sys.stdout", output)
    print_json({"text": "é 🙂"})
    output.flush()
    assert json.loads(output.buffer.getvalue()) == {"text": "é 🙂"}


# --- streams --------------------------------------------------------------------------------------


def shell(command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENRY_DEBUG": "0"}
    tokenry = f"{sys.executable} -m tokenry.app.cli"
    return subprocess.run(
        ["bash", "-c", command.replace("tokenry", tokenry, 1)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_a_closed_output_is_refused_and_a_full_one_too():
    closed = shell("tokenry models >&-")
    assert closed.returncode == 2
    assert closed.stderr.startswith("error: standard output is closed: ")
    assert closed.stderr.count("\n") == 1
    full = shell("tokenry models > /dev/full")
    assert full.returncode == 2
    assert full.stderr.startswith("error: No space left on device")
    assert full.stderr.count("\n") == 1


def test_remarks_never_go_into_the_results():
    closed = shell("tokenry papers --role nothing 2>&-")
    assert (closed.returncode, closed.stdout) == (2, "")


def test_a_reader_that_has_seen_enough_is_no_error():
    found = shell("set -o pipefail; tokenry models --json | head -n 1")
    assert (found.returncode, found.stdout, found.stderr) == (0, "[\n", "")


def test_a_pipe_that_breaks_elsewhere_is_an_error(refused, monkeypatch):
    pretend(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert "Broken pipe" in refused("papers")


def test_nothing_is_written_to_standard_error_where_nobody_watches(run):
    code, _, err = run("papers")
    assert (code, err) == (0, "")
