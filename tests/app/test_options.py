"""An option that was typed and changes nothing is refused, and so is one that cannot be obeyed.

Every option of every verb stands here: in ALWAYS if it does something wherever it is accepted by
the other rules, or in IDLE with a command line in which it does nothing. A new option belongs to
one of them before the tests pass.
"""

import pytest
import typer

from tokenry.app import verb as verb_module
from tokenry.app.cli import app
from tokenry.app.renamed import SETTINGS
from tokenry.core.errors import InputError

# --seed is of every verb, so that scripts need not know which ones draw; --json and --debug act on
# whatever is printed
EVERYWHERE = {"--seed", "--json", "--debug", "--help"}
ALWAYS = {
    "inspect": {"--file", "--model", "--against", "--pairs", "--signal", "--html"},
    "generate": {
        *("--model", "--chat", "--max-new-tokens", "--temperature", "--stop", "--bytes"),
        *("--ensemble", "--draft"),
    },
    "train": {
        *("--data", "--output", "--objective", "--model", "--config", "--lora", "--eval-data"),
        *("--reference", "--frozen", "--reward", "--resume", "--adapter"),  # refused by the library
    },
    "tokenize": {"--file", "--model", "--stochastok"},
    "compress": {"--percent", "--scorer", "--keep"},
    "audit": {"--part"},
    "objectives": set(),
    "papers": set(),
    "reproduce": {"--output", "--all", "--resume", "--scale"},
    "models": set(),
    "data": set(),
    "plan": {
        *("--rate", "--trace", "--model-size", "--model", "--machines", "--slo", "--reference"),
        *("--budget-cost", "--budget-power", "--budget-count", "--price"),
    },
    "demo": {"--output", "--model"},
}
BYTES = ("generate", "x", "--bytes")
OF_TEXT = [
    *(("--json-schema", "{}"), ("--regex", "a"), ("--grammar", "g"), ("--contains", "a")),
    *(("--constrain", "length:minimum=3"), ("--python",), ("--without-letter", "e")),
    *(("--steer", "ending"), ("--critic", "c.py:f"), ("--cache", "h2o:9")),
    *(("--sampler", "beam"), ("--particles", "2"), ("--draft", "goose")),
]
IDLE = {
    **{(*BYTES, *option): (option[0], "byte by byte") for option in OF_TEXT},
    ("generate", "x", "--proposal", "y"): ("--proposal", "--sampler guard"),
    ("generate", "x", "--proposal-model", "y"): ("--proposal-model", "--sampler guard"),
    ("generate", "x", "--draft-model", "y"): ("--draft-model", "--draft"),
    ("generate", "x", "-t", "0", "-p", "4"): ("-p", "at -t 0 every text is the likeliest"),
    ("generate", "x", "-t", "0", "--sampler", "beam"): ("--sampler", "likeliest"),
    ("generate", "x", "-t", "0", "--critic", "c.py:f"): ("--critic", "likeliest"),
    **{
        ("generate", "x", "--sampler", name): ("--sampler", "there is none")
        for name in ("awrs", "smc", "mask", "rejection", "asap:rows=2", "guard")
    },
    ("inspect", "x", "--json", "--rows", "10"): ("--rows", "--json prints every token"),
    ("inspect", "--against", "run", "-m", "smollm2"): ("-m", "about the run"),
    ("inspect", "--against", "run", "-s", "rank"): ("-s", "about the run"),
    ("inspect", "--against", "run", "--rows", "3", "--json"): ("--rows", "every token"),
    ("compress", "f", "--scorer", "random", "--model", "smollm2"): ("--model", "loads no model"),
    ("audit", "--part", "length", "-n", "2048"): ("-n", "hidden strings"),
    ("audit", "--part", "reach", "--threshold", "0.5"): ("--threshold", "hidden strings"),
    ("audit", "--part", "length", "--template"): ("--template", "hidden strings"),
    ("papers", "dpo", "--role", "objective"): ("--role", "one paper"),
    ("papers", "dpo", "--family", "x"): ("--family", "one paper"),
    ("plan", "--trace", "t.csv", "--model-size", "7B", "--requests", "60"): ("--requests", "own"),
    ("plan", "--budget-cost", "9", "--model-size", "7B", "--minimise", "power"): (
        "--minimise",
        "the cost",
    ),
}


@pytest.mark.parametrize("arguments", IDLE, ids=" ".join)
def test_an_option_without_effect_is_refused(refused, arguments):
    option, why = IDLE[arguments]
    line = refused(*arguments)
    assert line.startswith(f"error: {option} has no effect here: ")
    assert why in line


def test_every_option_of_every_verb_has_an_effect_or_is_refused():
    root = typer.main.get_command(app)
    assert set(root.commands) == set(ALWAYS)
    for name, command in root.commands.items():
        options = {option for p in command.params for option in p.opts if option.startswith("-")}
        idle = {word for line in IDLE for word in line if line[0] == name and word in options}
        same = {o for p in command.params if idle & set(p.opts) for o in p.opts}
        short = {o for o in options if not o.startswith("--")}
        assert options - short - same - ALWAYS[name] - EVERYWHERE == set(), name
        assert ALWAYS[name] <= options, name


def test_the_default_value_is_no_excuse_and_the_default_itself_no_fault(run, model):
    assert run("inspect", "the cat", "-m", model, "--json")[0] == 0  # --rows has its default
    assert run("inspect", "the cat", "-m", model, "--json", "--rows", "10")[0] == 2


def test_outside_of_a_command_line_nothing_was_typed():
    verb_module.forget()
    verb_module.require_use("--rows", False, "nobody typed it")
    verb_module.require_only((), "nobody typed it")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--constrain", "length:minimum=50", "-n", 10), "length:minimum is 50 and -n 10"),
        (("--constrain", "length:minimum=65"), "--max-new-tokens 64"),
        (("--draft", "dyspec"), "smaller model with the same vocabulary"),
        (("--draft", "goose+dyspec"), "--draft dyspec needs"),
        (("--draft", "fspad"), "--draft-model FILE"),
        (("--steer", "stopping:expected_length=inf"), "expected_length is inf"),
        (("--steer", "stopping:expected_length=2,floor=0.1"), "one of them"),
        (("--steer", "stopping"), "changes nothing"),
        (("--steer", "asap"), "--sampler asap"),
        (("--steer", "ctgs:without=e"), "--constrain words"),
        (("--constrain", "length"), "needs minimum or maximum"),
        (("--constrain", "words:wordless=true"), "needs one of without"),
        (("--constrain", "json:schema={},lenient=yes"), "lenient of json is 'yes'"),
        (("--constrain", "regex:pattern=a,pattern=b"), "gives pattern twice"),
        (("--constrain", "regex:a"), "name=value"),
        (("--constrain", "rege:pattern=a"), "did you mean regex"),
        (("--constrain", "length:minimum=1,tokenizer=x"), "known: maximum, minimum"),
        (("--steer", "ngram:ngrams=s"), "did you mean ngram-style"),
        (("-t", "inf"), "-t is inf"),
        (("-t", "nan"), "-t is nan"),
        (("--seed", -1), "--seed"),
        (("--seed", 2**32), "--seed"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(refused, options, says):
    assert says in refused("generate", "x", *options)


def test_a_text_of_exactly_so_many_tokens(run, model):
    import json

    base = ("generate", "the", "-m", model, "-n", 6, "--json")
    found = run(*base, "--constrain", "length:minimum=6")[1]
    assert len(json.loads(found)["samples"][0]["tokens"]) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--constrain", "length:minimum=-1"), "minimum is -1"),
        (("--steer", "ngram-style:ngrams=style.txt,strength=nan"), "strength is nan"),
        (("--steer", "ngram-style:ngrams=style.txt,strength=-1"), "strength is -1"),
        (("--steer", "uscd:negative=y,space=log"), "space is 'log'"),
        (("--steer", "uscd:negative=y,keep_ratio=inf"), "keep_ratio is inf"),
    ],
)
def test_a_setting_outside_its_range_is_refused(
    refused, model, tmp_path, monkeypatch, options, says
):
    (tmp_path / "style.txt").write_text("the cat")
    monkeypatch.chdir(tmp_path)
    assert says in refused("generate", "x", "-m", model, *options)


@pytest.mark.parametrize("old", SETTINGS)
def test_an_option_that_became_a_setting_says_which(refused, old):
    line = refused("generate", "x", old, "1")
    assert f"{old} is a setting now: write {SETTINGS[old]}" in line
    assert old not in ALWAYS["generate"]


def test_spellings_are_those_that_were_typed():
    typed = verb_module.Typed(
        {"max_new_tokens": ["--max-new-tokens", "-n"], "rate": ["--rate"], "text": ["text"]},
        ["x", "-n5"],
        frozenset({"max_new_tokens"}),
    )
    assert typed.translate("max_new_tokens is 0") == "-n is 0"
    assert typed.translate("raise --max-new-tokens, or stop") == "raise -n, or stop"
    assert typed.translate("rate is 0; the rate is low") == "--rate is 0; the rate is low"
    assert typed.translate("Limits.max_new_tokens, text is 3") == "Limits.max_new_tokens, text is 3"


def test_a_refusal_is_an_error_of_the_library():
    token = verb_module._typed.set(
        verb_module.Typed({"rows": ["--rows"]}, ["--rows=3"], frozenset({"rows"}))
    )
    try:
        with pytest.raises(InputError, match="--rows has no effect here: because"):
            verb_module.require_use("--rows", False, "because")
    finally:
        verb_module._typed.reset(token)
