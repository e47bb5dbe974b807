"""tokenry generate: continue a prompt, under constraints, with a draft, or on a small cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenry.app.terminal import (
    AsJson,
    Model,
    Seed,
    load,
    notes,
    print_json,
    progress,
    read_text,
    working,
)
from tokenry.core.errors import ConstraintError, InputError

if TYPE_CHECKING:
    from tokenry.app.continuation import Continuation
    from tokenry.decode.constraints.base import Constraint
    from tokenry.decode.steering.word_filters import WordFilter

TEXTS = "Constraints on the text"
WORDS = "Constraints on its words"
HOW = "How it is decoded"


def generate(
    prompt: Annotated[
        str, typer.Argument(help="The text to continue; [cyan]-[/] reads standard input.")
    ],
    model: Model = "smollm2",
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--no-chat", help="Ask it as a question, through the model's chat template."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="The longest text, in tokens.")
    ] = 64,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="0 takes the likeliest token. Default: 1."),
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema", metavar="FILE", help="JSON of this schema.", rich_help_panel=TEXTS
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option("--regex", metavar="R", help="Matches as a whole.", rich_help_panel=TEXTS),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(
            "--grammar", metavar="FILE", help="Derived by a Lark grammar.", rich_help_panel=TEXTS
        ),
    ] = None,
    without_letter: Annotated[
        list[str] | None,
        typer.Option(
            "--without-letter", metavar="L", help="Banned (repeat it).", rich_help_panel=WORDS
        ),
    ] = None,
    with_letter: Annotated[
        list[str] | None,
        typer.Option(
            "--with-letter", metavar="L", help="In every word (repeat it).", rich_help_panel=WORDS
        ),
    ] = None,
    only_letters: Annotated[
        str | None,
        typer.Option(
            "--only-letters", metavar="L", help="No letters but these.", rich_help_panel=WORDS
        ),
    ] = None,
    starts_with: Annotated[
        str | None,
        typer.Option("--starts-with", metavar="S", help="Every word.", rich_help_panel=WORDS),
    ] = None,
    ends_with: Annotated[
        str | None,
        typer.Option("--ends-with", metavar="S", help="Every word.", rich_help_panel=WORDS),
    ] = None,
    shortest: Annotated[
        int | None,
        typer.Option(
            "--shortest-word", metavar="N", help="Letters, at least.", rich_help_panel=WORDS
        ),
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(
            "--longest-word", metavar="N", help="Letters, at most.", rich_help_panel=WORDS
        ),
    ] = None,
    syllables: Annotated[
        int | None,
        typer.Option(
            "--syllables", metavar="N", help="So many in every word.", rich_help_panel=WORDS
        ),
    ] = None,
    rhymes_with: Annotated[
        str | None,
        typer.Option("--rhymes-with", metavar="W", help="Every word does.", rich_help_panel=WORDS),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="awrs: weighted, true to the model. mask: forbids tokens and ignores what that "
            "distorts. Default: awrs.",
            rich_help_panel=HOW,
        ),
    ] = None,
    particles: Annotated[
        int,
        typer.Option(
            "--particles",
            "-p",
            help="Texts that compete (sequential Monte Carlo).",
            rich_help_panel=HOW,
        ),
    ] = 1,
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            help="recycling: several tokens per pass, the same text.",
            rich_help_panel=HOW,
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="NAME:SIZE",
            help="A bounded cache. h2o:0.2 keeps a fifth of the prompt, half heavy hitters and "
            "half recent tokens; h2o:128 keeps 128 tokens.",
            rich_help_panel=HOW,
        ),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Continue a prompt.

    Constraints add up: the text satisfies all that are given, and every word, however tokens cut
    it, satisfies those on words. Only the text goes to standard output: without a constraint on it
    as it comes, with several particles the one of the largest weight. [cyan]--json[/] prints all
    texts with their log weights, and what they took.

    Examples:

    [cyan]tokenry generate "The capital of France is"[/]

    [cyan]tokenry generate "A city as JSON: " --json-schema city.json --particles 8 --json[/]

    [cyan]tokenry generate "Write about the sea." --chat --without-letter e[/]

    [cyan]tokenry generate "def fibonacci(n):" -t 0 --draft recycling[/]
    """
    from tokenry.app.continuation import Limits

    asked = {
        "sampler": sampler,
        "particles": particles,
        "draft": draft,
        "cache": cache,
    }
    text = read_text("-") if prompt == "-" else prompt
    if not text:
        raise InputError("the prompt is empty: give at least one token to continue")
    drafter, policy = methods(**asked)
    limits = Limits(max_new_tokens, 1.0 if temperature is None else temperature, seed)
    sources = TextSources.read(json_schema, regex, grammar)
    words = word_filter(
        without_letter, with_letter, only_letters, starts_with, ends_with, shortest, longest,
        syllables, rhymes_with,
    )  # fmt: skip
    loaded = load(model)
    question = [{"role": "user", "content": text}] if chat else text
    if chat and loaded.tokenizer.chat_template is None:
        raise InputError(f"{model} has no chat template: leave --chat out")
    with working("preparing the constraint"):
        on_text = sources.constraint(loaded)
        constraint = with_words(on_text, words, loaded)
    must_end = on_text is not None  # words may be cut off by the limit, a JSON object may not
    plain = not as_json and not must_end and particles == 1

    def run(on_token: Callable[[list[int]], None]) -> Continuation:
        from tokenry.app import continuation

        if drafter is not None:
            return continuation.drafted(
                loaded, question, constraint, limits, drafter(), must_end, on_token
            )
        if policy is not None:
            return continuation.cached(
                loaded, question, constraint, limits, policy, must_end, on_token
            )
        how = sampler or ("awrs" if constraint is not None else "mask")
        return continuation.sampled(
            loaded, question, constraint, limits, how, particles, must_end, on_token
        )

    if plain:
        stream = Stream(loaded.tokenizer)
        found = run(stream)
        stream.finish(found.text)
    else:
        with progress() as bar:
            task = bar.add_task(f"{particles} texts, tokens", total=max_new_tokens)
            found = run(lambda ids: bar.update(task, completed=len(ids)))
        if as_json:
            print_json(found.to_dict())
        else:
            print(found.text)
    if not as_json:
        remark(found)


def methods(
    sampler: str | None, particles: int, draft: str | None, cache: str | None
) -> tuple[Any, Any]:
    """The drafter's class and the cache policy asked for; combinations that cannot work say so."""
    from tokenry.core import registry

    if particles < 1:
        raise InputError(f"--particles is {particles}: it must be at least 1")
    if sampler is not None:
        registry.sampler[sampler]
    for option, value in (("--draft", draft), ("--cache", cache)):
        if value is None:
            continue
        if particles > 1:
            raise InputError(
                f"{option} decodes one text: it cannot go with --particles {particles}"
            )
        if sampler not in (None, "mask"):
            raise InputError(f"{option} masks tokens: it cannot go with --sampler {sampler}")
    if draft is not None and cache is not None:
        raise InputError("--draft needs the whole key-value cache: it cannot go with --cache")
    return (
        None if draft is None else registry.drafter[draft],
        None if cache is None else cache_policy(cache),
    )


def cache_policy(option: str) -> Any:
    """The policy of NAME or NAME:SIZE, half of SIZE for heavy hitters and half for recent ones."""
    from tokenry.core import registry

    name, _, size = option.partition(":")
    policy = registry.cache_policy[name]
    if not size:
        return policy()
    try:
        if size.isdigit():
            total = int(size)
            return policy(heavy=total // 2, recent=total - total // 2)
        return policy(heavy=float(size) / 2, recent=float(size) / 2)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--cache {option}: the size must be a share of the prompt (0.2) or a count of "
            f"tokens (128), not {size!r}"
        ) from None


@dataclass(frozen=True)
class TextSources:
    """The constraints on the whole text, as they were given, before a tokenizer is there."""

    schema: Any = None
    pattern: str | None = None
    grammar: str | None = None

    @classmethod
    def read(cls, schema: str | None, regex: str | None, grammar: Path | None) -> TextSources:
        return cls(
            None if schema is None else read_schema(schema),
            regex,
            None if grammar is None else read_text(grammar),
        )

    def constraint(self, loaded: Any) -> Constraint | None:
        """Their conjunction over the model's vocabulary; None if there are none."""
        from tokenry.decode.constraints.grammar import Grammar
        from tokenry.decode.generate import ends

        tokenizer, eos = loaded.tokenizer, ends(*loaded)
        parts: list[Constraint] = []
        if self.schema is not None:
            parts.append(Grammar.json_schema(self.schema, tokenizer, eos=eos))
        if self.pattern is not None:
            parts.append(Grammar.regex(self.pattern, tokenizer, eos=eos))
        if self.grammar is not None:
            parts.append(Grammar.lark(self.grammar, tokenizer, eos=eos))
        return reduce(and_, parts) if parts else None


def read_schema(source: str) -> Any:
    """A JSON schema from a file, or from the option's own text if that is an object."""
    inline = source.lstrip().startswith("{")
    name = "the schema" if inline else source
    try:
        schema = json.loads(source if inline else read_text(source))
    except json.JSONDecodeError as error:
        raise ConstraintError(
            f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(schema, dict | bool):
        raise ConstraintError(f"{name} is not a JSON schema: it holds {json.dumps(schema)[:40]}")
    return schema


def word_filter(
    without: list[str] | None,
    required: list[str] | None,
    only: str | None,
    beginning: str | None,
    ending: str | None,
    shortest: int | None,
    longest: int | None,
    syllables: int | None,
    rhyme: str | None,
) -> WordFilter | None:
    """The conjunction of the word filters that were given; None if there are none."""
    from tokenry.decode.steering import phonetics
    from tokenry.decode.steering import word_filters as on_words

    parts: list[WordFilter] = []
    if without:
        parts.append(on_words.WithoutLetters(letters(without, "--without-letter")))
    if required:
        parts.append(on_words.WithLetters(letters(required, "--with-letter")))
    if only is not None:
        parts.append(on_words.OnlyLetters(letters([only], "--only-letters")))
    if beginning is not None:
        parts.append(on_words.StartsWith(letters([beginning], "--starts-with")))
    if ending is not None:
        parts.append(on_words.EndsWith(letters([ending], "--ends-with")))
    if shortest is not None or longest is not None:
        parts.append(on_words.Length(1 if shortest is None else shortest, longest))
    if syllables is not None:
        if syllables < 1:
            raise ConstraintError(f"no word has {syllables} syllables: --syllables is 1 or more")
        parts.append(phonetics.Syllables(syllables))
    if rhyme is not None:
        parts.append(phonetics.RhymesWith(letters([rhyme], "--rhymes-with")))
    return reduce(and_, parts) if parts else None


def letters(values: list[str], option: str) -> str:
    """Lower-case letters, as the filters want them."""
    joined = "".join(values).lower()
    if not joined or not all(symbol.isalpha() for symbol in joined):
        raise InputError(f"{option} takes letters, not {' '.join(values)!r}")
    return joined


def with_words(
    constraint: Constraint | None, words: WordFilter | None, loaded: Any
) -> Constraint | None:
    """The constraint on the text, and the filter on its words."""
    if words is None:
        return constraint
    from tokenry.decode.constraints.words import WordConstraint
    from tokenry.decode.generate import ends

    on_words = WordConstraint(words, loaded.tokenizer, eos=ends(*loaded))
    return on_words if constraint is None else constraint & on_words


class Stream:
    """Prints a text as it grows; a character that is not whole yet waits."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.shown = ""

    def __call__(self, ids: list[int]) -> None:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(text)

    def finish(self, text: str) -> None:
        self._show(text)
        print(flush=True)

    def _show(self, text: str) -> None:
        sys.stdout.write(text[len(self.shown) :])
        sys.stdout.flush()
        self.shown = text


def remark(found: Continuation) -> None:
    """On standard error: what it took, and the rivals of the text that was printed."""
    from rich.table import Table
    from rich.text import Text

    console = notes()
    parts = [f"{found.tokens} tokens in {found.seconds:.1f} s", f"{found.forward_passes} passes"]
    if found.checks_per_token:
        parts.append(f"{found.checks_per_token:.1f} checks per token")
    if found.log_evidence is not None and len(found.texts) > 1:
        parts.append(f"log evidence {found.log_evidence:.2f}")
    console.print(f"[dim]{', '.join(parts)}[/]")
    if len(found.texts) > 1:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("log weight", justify="right")
        table.add_column("text")
        order = sorted(zip(found.log_weights, found.texts, strict=True), reverse=True)
        for weight, text in order:
            table.add_row(f"{weight:.2f}", Text(text))
        console.print(table)
