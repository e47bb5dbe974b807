"""What a reader sees of a text while it grows: nothing that is taken back."""

import contextlib
import io
import itertools
import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tokenry.app import continuation
from tokenry.app.steering import Control
from tokenry.app.streaming import Stream
from tokenry.decode.constraints.stop import Stop
from tokenry.text import whole
from tokenry.text.vocabulary import token_bytes

LETTERS = "ab \né東🙂"
TEXTS = st.text(alphabet=LETTERS, min_size=1, max_size=14)


def pieces_of(text, cuts):
    """The bytes of a text in pieces."""
    data = text.encode()
    borders = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(borders)]


class Pieces:
    """A tokenizer whose tokens are these byte strings, in order."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids, skip_special_tokens=False):
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")


def streamed(monkeypatch, pieces, stop):
    """What stood on standard output after every token, and at the end, until `stop` is written."""
    tokenizer = Pieces(pieces)
    monkeypatch.setattr(whole, "token_bytes", lambda tokenizer: tokenizer.pieces)
    monkeypatch.setattr(whole, "is_byte_level", lambda tokenizer: True)
    control = Control([], stop.before, stop.certain)
    stream, seen = Stream(tokenizer, control.certain), []
    with contextlib.redirect_stdout(io.StringIO()) as output:
        ids = []
        for token in range(len(pieces)):
            ids.append(token)
            stream(ids)
            seen.append(output.getvalue())
            if stop.search.read(b"".join(pieces[: token + 1]))[1]:
                break
        final = control.cut(whole.whole_text(tokenizer, ids))
        stream.finish(final)
    return seen, output.getvalue(), final, b"".join(pieces[: len(ids)])


@given(TEXTS, st.lists(TEXTS.map(lambda s: s[:4]), min_size=1, max_size=4), st.data())
@example("A: D E F G H I J", ["H I J"], None)
def test_nothing_is_shown_that_a_stop_string_takes_back(text, strings, data):
    if data is None:
        cuts = range(40)
    else:  # stop strings that occur in the text, and some that nearly do
        for _ in range(data.draw(st.integers(0, 2))):
            start = data.draw(st.integers(0, len(text) - 1))
            strings = [*strings, text[start : start + data.draw(st.integers(1, 5))]]
        cuts = data.draw(st.lists(st.integers(0, 60), max_size=12))
    stop = Stop(strings, [bytes([byte]) for byte in range(256)], overshoot=True, eos=[0])
    with pytest.MonkeyPatch.context() as patch:
        seen, output, final, written = streamed(patch, pieces_of(text, cuts), stop)
    assert output == final + "\n"
    assert final == stop.before(written.decode(errors="ignore"))
    assert all(final.startswith(shown) for shown in seen)
    # and nothing waits that cannot be taken back
    written = written.decode(errors="ignore")
    begun = [n for one in strings for n in range(len(one)) if written.endswith(one[:n])]
    assert seen[-1] == (final if final != written else written[: len(written) - max(begun)])


def test_the_command_line_shows_what_its_json_has(run, model):
    """Both ways of decoding, a stop string that tokens cut anywhere."""
    base = ["generate", "the cat", "-m", model, "-n", 24, "-t", 0]
    plain = json.loads(run(*base, "--json")[1])["text"]
    for start, end in ((3, 5), (4, 9), (6, 7)):
        stop = plain[start:end]
        for how in ([], ["--draft", "recycling"]):
            text = json.loads(run(*base, *how, "--stop", stop, "--json")[1])["text"]
            assert text == plain[: plain.index(stop)]
            assert run(*base, *how, "--stop", stop)[1] == text + "\n"


def test_a_text_that_ends_inside_a_character_ends_before_it(run, model, monkeypatch):
    real = continuation.generate_with_drafter

    def cut_short(model, ids, drafter, limit, **options):
        begun = [token for token, piece in enumerate(pieces) if piece in (b"\xf0", b"\x9f")]
        scores = torch.full((1, len(pieces)), float("-inf")).index_fill(1, torch.tensor(begun), 0.0)
        options["processors"] = [lambda ids, given: scores.expand(1, -1)]
        return real(model, ids, drafter, limit, **options)

    pieces = token_bytes(AutoTokenizer.from_pretrained(model))
    monkeypatch.setattr(continuation, "generate_with_drafter", cut_short)
    base = ["generate", "the", "-m", model, "-n", 1, "-t", 0, "--draft", "prompt-lookup"]
    assert run(*base)[1] == "\n"
    assert '"text": ""' in run(*base, "--json")[1]
