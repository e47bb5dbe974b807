"""An option that was typed and changes nothing is refused, and so is one that cannot be obeyed.

Every option of every verb stands here: in ALWAYS if it does something wherever it is accepted by
the other rules, or in IDLE with a command line in which it does nothing. A new option belongs to
one of them before the tests pass.
"""

import pytest
import typer

from tokenry.app import verb as verb_module
from tokenry.app.cli import app
from tokenry.core.errors import InputError

# --seed is of every verb, so that scripts need not know which ones draw; --json and --debug act on
# whatever is printed
EVERYWHERE = {"--seed", "--json", "--debug", "--help"}
ALWAYS = {
    "inspect": {"--file", "--model", "--against", "--pairs", "--signal", "--html"},
    "generate": {
        *("--model", "--chat", "--max-new-tokens", "--temperature", "--stop", "--bytes"),
        *("--ensemble", "--draft", "--end-when-complete", "--min-tokens"),
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
    "reproduce": {"--output"},
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
    *(("--accept", "a.py:f"), ("--dictionary", "d"), ("--melody", "3"), ("--python",)),
    *(("--without-letter", "e"), ("--with-letter", "e"), ("--only-letters", "e")),
    *(("--starts-with", "e"), ("--ends-with", "e"), ("--shortest-word", "2")),
    *(("--longest-word", "2"), ("--syllables", "2"), ("--rhymes-with", "cat")),
    *(("--expected-length", "9"), ("--style", "s"), ("--contrast", "c"), ("--cache", "h2o:9")),
    *(("--min-tokens", "3"), ("--sampler", "beam"), ("--particles", "2"), ("--draft", "goose")),
    *(("--critic", "c.py:f"), ("--end-when-complete",)),
]
IDLE = {
    **{(*BYTES, *option): (option[0], "byte by byte") for option in OF_TEXT},
    ("generate", "x", "--style-strength", "0.1"): ("--style-strength", "strength of --style"),
    ("generate", "x", "--whitespace", "any"): ("--whitespace", "--json-schema"),
    ("generate", "x", "--lenient"): ("--lenient", "--json-schema"),
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
    assert run("generate", "the", "-m", model, "-n", 2)[0] == 0  # --style-strength has its default
    assert run("generate", "the", "-m", model, "-n", 2, "--style-strength", "0.1")[0] == 2


def test_outside_of_a_command_line_nothing_was_typed():
    verb_module.forget()
    verb_module.require_use("--rows", False, "nobody typed it")
    verb_module.require_only((), "nobody typed it")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--min-tokens", 50, "-n", 10), "--min-tokens is 50 and -n 10"),
        (("--min-tokens", 65), "--max-new-tokens 64"),
        (("--min-tokens", -1), "--min-tokens"),
        (("--draft", "dyspec"), "smaller model with the same vocabulary"),
        (("--draft", "goose+dyspec"), "--draft dyspec needs"),
        (("--draft", "fspad"), "--draft-model FILE"),
        (("--style", "s", "--style-strength", "nan"), "--style-strength is nan"),
        (("--style", "s", "--style-strength", -1), "--style-strength is -1"),
        (("--expected-length", "inf"), "--expected-length is inf"),
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

    found = run("generate", "the", "-m", model, "--min-tokens", 6, "-n", 6, "--json")[1]
    assert len(json.loads(found)["samples"][0]["tokens"]) == 6


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
