"""jedi as a completion engine: what it knows, what it leaves open, and what happens if it hangs."""

import sys

import pytest

from tokenry.core.errors import ConstraintError, InputError

pytest.importorskip("jedi")

from tokenry.decode.constraints.jedi_engine import JediEngine, Worker
from tokenry.decode.constraints.jedi_worker import completions, inside_string, statement

CODE = "import math\n\n\nclass Point:\n    size = 1\n\n\np = Point()\n"


@pytest.fixture(scope="module")
def engine():
    with JediEngine() as engine:
        yield engine


def at_end(engine, text):
    return engine.complete(CODE + text + "\nrest = 1\n", len(CODE + text))


def test_names_and_attributes_that_exist(engine):
    assert ("sq", "sqrt") in at_end(engine, "x = math.sq")
    assert at_end(engine, "x = p.si") == [("si", "size")]
    assert at_end(engine, "x = mat") == [("mat", "math")]
    assert at_end(engine, "x = (Poi") == [("Poi", "Point")]


def test_what_does_not_exist_has_no_completion(engine):
    for text in ("x = math.zz", "x = p.zz", "x = zzz", "print(zzz", "if zzz"):
        assert at_end(engine, text) == [], text


def test_what_jedi_cannot_know_is_left_open(engine):
    for text in (
        "zzz", "a, zzz", "for zzz", "for a, zzz", "def zzz", "def f(zzz", "import math as zzz",
        "f = lambda zzz", "x = 'zzz", "x = '''a\nzzz", "# zzz", "x = 12", "x = 1.e",
        "x = unknown().zzz", "def f(a):\n    return a.zzz",
    ):  # fmt: skip
        assert at_end(engine, text) is None, text


def test_names_inside_brackets_are_left_open_on_demand():
    assert completions("print(zzz", 9, strict=True) == []
    assert completions("print(zzz", 9, strict=False) is None


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("'abc", True),
        ("'abc'", False),
        ("'it\\'s", True),
        ('"""a\n"b', True),
        ('"""a"""', False),
        ('"a\nb', False),
        ("# it's", True),
        ("# it's\nx", False),
        ("''", False),
        ("'''", True),
    ],
)
def test_strings_and_comments(text, inside):
    assert inside_string(text) == inside


def test_the_unfinished_statement():
    assert statement("x = 1\ny = f(a,\n  ") == ("y = f(a,\n  ", True)
    assert statement("x = (1,\n 2)\n  y") == ("  y", False)
    assert statement("x = '('\ny") == ("y", False)
    assert statement("a; b") == (" b", False)


def hanging(engine):
    engine.command = (sys.executable, "-c", "import time; time.sleep(1000)")
    return engine


def test_a_hang_is_an_error_and_its_process_is_gone():
    engine = hanging(JediEngine(timeout=0.2))
    with pytest.raises(ConstraintError, match=r"within 0.2 s after 'x = ma'"):
        engine.complete("x = ma", 6)
    assert engine._worker is None
    worker = Worker((sys.executable, "-c", "import time; time.sleep(1000)"))
    with pytest.raises(TimeoutError):
        worker.ask("x" * 1_000_000, 0.1)  # more than a pipe holds: writing hangs, too
    worker.end()
    assert worker.process.poll() is not None


def test_a_hang_is_replaced_and_left_open_only_if_asked():
    engine = JediEngine(timeout=0.2, on_timeout="unknown")
    good = engine.command
    assert hanging(engine).complete("x = ma", 6) is None
    assert engine.timeouts == 1
    engine.command, engine.timeout = good, 60.0
    with engine:
        assert engine.complete("x = ma", 6) is not None


def test_a_process_that_dies_is_started_again_once():
    engine = JediEngine()
    engine.command = (sys.executable, "-c", "")
    with pytest.raises(ConstraintError, match="ended twice"):
        engine.complete("x = ma", 6)


def test_a_breakdown_of_jedi_is_counted():
    engine = JediEngine()
    engine.command = (sys.executable, "-c", 'input(); print(\'{"failed": "RecursionError"}\')')
    assert engine.complete("x = ma", 6) is None
    assert engine.failures == 1
    engine.close()


def test_a_missing_jedi_names_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConstraintError, match=r"tokenry\[code\]"):
        JediEngine()


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="maybe"):
        JediEngine(on_timeout="maybe")
    with pytest.raises(InputError, match="timeout"):
        JediEngine(timeout=0)
