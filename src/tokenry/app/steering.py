"""From the options of `tokenry generate` to logits processors: which texts are likely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenry.app.choices import Choice, Reader, as_question, chosen, listed, plain_value
from tokenry.app.terminal import read_text
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError

if TYPE_CHECKING:
    from tokenry.decode.constraints.base import Constraint

STEER = "Steering: which texts are likely"
ORDER = (
    "uscd",
    "ngram-style",
    "stopping",
    "ending",
)  # what says when a text ends has the last word
PROVIDED = (
    *("model", "tokenizer", "constraint", "prompt_ids", "prompt_length", "stop"),
    "sampling_temperature",
)
ELSEWHERE = {
    "asap": "it learns from text to text: choose --sampler asap",
    "ctgs": "it filters words: choose --constrain words:without=e",
    "budget-forcing": "it takes the id of the token that ends thinking: use it from Python",
    "posterior": "it takes a number for each token of the vocabulary: use it from Python",
    "stop-temperature": "it takes the id of the token that ends thinking: use it from Python",
}

LISTED = """[bold]--steer[/] NAME:SETTING=VALUE,...
  ngram-style:ngrams=FILE  towards the n-grams of a text; strength=0.1
  uscd:negative=PROMPT     away, where the model is unsure, from how it goes
                           on from this prompt; weight=-0.7
  stopping:expected_length=20   so likely to end that so many tokens are
                           expected at most; or floor, bias, temperature
  ending                   ends as soon as the constraints are satisfied
  ending:strings=a,b       ends before one of these, as with --stop"""

Steer = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        metavar="NAME:SETTING=...",
        help="What makes some texts likelier, of those listed below (repeat it).",
        rich_help_panel=STEER,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="S",
        help="The text ends before this, however tokens cut it (repeat it).",
        rich_help_panel=STEER,
    ),
]


@dataclass(frozen=True)
class Control:
    """The processors, what is printed of a text, and what is of one that still goes on."""

    processors: list[Any] = field(default_factory=list)
    cut: Callable[[str], str] = str
    certain: Callable[[str], str] = str


@dataclass(frozen=True)
class Steering:
    """Controllers that were named, before a model is there. stop: strings that end the text."""

    choices: tuple[Choice, ...] = ()
    stop: tuple[str, ...] = ()

    @classmethod
    def read(cls, steer: list[str] | None = None, stop: list[str] | None = None) -> Steering:
        """From `--steer` and `--stop`, with the files that they name."""
        choices, strings = [], list(stop or ())
        for option in steer or ():
            choice = read_controller(option)
            if choice.name == "ending" and choice.settings:
                strings += choice.settings["strings"]
            else:
                choices.append(choice)
        return cls(tuple(sorted(choices, key=order)), tuple(strings))

    def control(
        self, loaded: Any, prompt: Any, temperature: float, constraint: Constraint | None
    ) -> Control:
        """The processors for a prompt, in the order in which they are applied."""
        from tokenry.decode.constraints.stop import Stop as StopStrings
        from tokenry.decode.generate import ends, prompt_ids
        from tokenry.decode.steering.ending import Ending

        model, tokenizer = loaded
        ids = prompt_ids(tokenizer, prompt)
        context = {
            "model": model,
            "tokenizer": tokenizer,
            "constraint": constraint,
            "prompt_ids": ids,
            "prompt_length": len(ids),
            "stop": ends(*loaded),
            "sampling_temperature": temperature or 1.0,
        }
        processors: list[Any] = []
        for choice in self.choices:
            if choice.name == "ending" and constraint is None:
                raise InputError("--steer ending needs a constraint that can be complete")
            processors.append(prepared(choice, loaded, prompt).made(**context))
        if not self.stop:
            return Control(processors)
        stop = StopStrings(self.stop, tokenizer, overshoot=True, eos=ends(*loaded))
        return Control([*processors, Ending(stop, ids)], stop.before, stop.certain)


def order(choice: Choice) -> int:
    return ORDER.index(choice.name) if choice.name in ORDER else 0


def read_controller(option: str) -> Choice:
    """A controller of `--steer`, with the file that it names."""
    from tokenry.decode.steering.base import controller

    name = option.partition(":")[0]
    if name in ELSEWHERE:
        raise InputError(f"--steer {name}: {ELSEWHERE[name]}")
    readers: dict[str, Mapping[str, Reader]] = {
        "uscd": {"negative": str},
        "ngram-style": {"ngrams": read_style},
        "stopping": {"expected_length": plain_value},
        "ending": {"strings": listed},
    }
    choice = chosen(controller, option, readers.get(name), PROVIDED)
    if name != "stopping":
        return choice
    settings = dict(choice.settings)
    if not settings:
        raise InputError("--steer stopping changes nothing by itself: write expected_length=20")
    if "expected_length" in settings:
        expected = settings.pop("expected_length")
        in_range("expected_length", expected, "(0, inf)")
        if "floor" in settings:
            raise InputError(f"{option!r}: give expected_length or the floor, one of them")
        settings["floor"] = 1.0 / (1.0 + expected)  # h at every token: (1 - h) / h before the end
    return replace(choice, settings=settings)


def read_style(path: str) -> str:
    """A text whose n-grams are preferred."""
    text = read_text(Path(path))
    if not text.strip():
        raise InputError(f"{path} is empty: a style needs a text")
    return text


def prepared(choice: Choice, loaded: Any, prompt: Any) -> Choice:
    """The choice with what a model makes of its texts: n-grams, or the tokens of a prompt."""
    from tokenry.decode.generate import prompt_ids
    from tokenry.text.ngrams import NGramModel

    model, tokenizer = loaded
    settings = dict(choice.settings)
    if choice.name == "uscd":  # posed in the same way as the prompt
        other = as_question(settings["negative"], chat=not isinstance(prompt, str))
        settings["negative"] = prompt_ids(tokenizer, other)
    if choice.name == "ngram-style":
        paragraphs = [part for part in settings["ngrams"].split("\n\n") if part.strip()]
        ids = [tokenizer(part)["input_ids"] for part in paragraphs]
        settings["ngrams"] = NGramModel.fit(ids, model.config.get_text_config().vocab_size)
    return replace(choice, settings=settings)
