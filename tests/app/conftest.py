"""A tiny model in a folder, as a user's would be, and the command line run on it."""

import pytest

from tokenry.app.cli import main


@pytest.fixture(scope="module")
def model(tiny_llama_text, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama_text.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(capsys):
    """Exit code, standard output and standard error of a command line."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run, monkeypatch):
    """The one line of an error; nothing may be on standard output."""
    monkeypatch.delenv("TOKENRY_DEBUG", raising=False)

    def refused(*arguments):
        code, out, err = run(*arguments)
        assert code == 2
        assert out == ""
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    return refused
