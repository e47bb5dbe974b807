"""tokenry compress: a prompt's most important words in their order."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.app.terminal import AsJson, Model, Seed, load, notes, print_json, read_text, working
from tokenry.app.verb import require_use
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, UnknownNameError

NAMED = 12  # dropped words that are named


def compress(
    file: Annotated[
        Path, typer.Argument(help="The text's file; [cyan]-[/] reads it from standard input.")
    ],
    percent: Annotated[
        float, typer.Option("--percent", "-p", help="Of the words that are kept, 0 to 100.")
    ] = 80,
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer",
            "-s",
            help="What tells how important a word is: surprisal (what the model did not expect), "
            "globenc or decompx (what reaches the end of the sentence through its layers), random.",
        ),
    ] = "surprisal",
    model: Model = "smollm2",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            "-k",
            metavar="KINDS|REGEX",
            help="What always stays. Kinds, with commas: negations, numbers, units, names, "
            "conditions, degrees, modals, or nothing; default: the first four. And a regular "
            "expression: words that touch a match stay as well. Repeat it for both.",
        ),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Shorten a prompt to the words that count most.

    Every word is scored by a small model on this machine; the best of them are printed in their
    order, with the line breaks between them, for any larger model to read. The scores are made
    sentence by sentence. What remains reads like a telegram: good for the gist of long texts, bad
    for arithmetic, code and exact quotes, where every word counts. Negations, numbers, units and
    names always stay, unless [cyan]--keep[/] says otherwise; words that were left out and could
    change the sense (if, may, all) are named on standard error. Only [cyan]--scorer random[/]
    draws from the seed, and it loads no model: what it costs is what dropping words costs by
    itself.

    Examples:

    [cyan]tokenry compress notes.txt --percent 80 > shorter.txt[/]

    [cyan]cat report.md | tokenry compress - -p 60 --keep 'Table [0-9]+|safety'[/]

    [cyan]tokenry compress notes.txt --scorer globenc --json[/]
    """
    in_range("--percent", percent, "[0, 100]")
    check_scorer(scorer)
    require_use("--model", scorer != "random", "--scorer random loads no model")
    sense, pattern = read_keep(keep or [])
    text = read_text(file)
    if not text.strip():
        raise InputError("there is nothing to compress in an empty text")

    from tokenry.model.attribution.base import attribution
    from tokenry.model.attribution.frugalprompt import FrugalPrompt

    if scorer == "random":
        network = tokenizer = None
        compressor = FrugalPrompt(
            None, percent, mode="random", protect=pattern, sense=sense, seed=seed
        )
    else:
        network, tokenizer = load(model)
        compressor = FrugalPrompt(attribution[scorer](), percent, protect=pattern, sense=sense)
    with working("scoring the words"):
        compressed = compressor(network, tokenizer, text)
    tokens = [None if tokenizer is None else count(tokenizer, t) for t in (text, compressed.text)]
    if as_json:
        about = {"percent": percent, "scorer": scorer}
        about |= {"model": None if tokenizer is None else model}
        print_json(as_record(text, compressed, tokens) | about)
        return
    typer.echo(compressed.text, nl=not compressed.text.endswith("\n"))
    saved = "" if tokens[0] is None else f", {tokens[1]} of {tokens[0]} tokens"
    notes().print(f"kept {len(compressed.kept)} of {len(compressed.spans)} words{saved}")
    if compressed.dropped:
        words = Counter(text[slice(*compressed.spans[index])] for index in compressed.dropped)
        named = [f"{word} ({times})" if times > 1 else word for word, times in words.most_common()]
        more = f" and {len(named) - NAMED} others" if len(named) > NAMED else ""
        notes().print(
            f"left out, and could change the sense: {', '.join(named[:NAMED])}{more}", markup=False
        )


def as_record(text: str, compressed: Any, tokens: list[int | None]) -> dict[str, Any]:
    """What was kept of a text, which words that matter were not, and every word's score."""
    kept = set(compressed.kept)
    words = [{"word": text[a:b], "start": a} for a, b in compressed.spans]
    scored = zip(words, compressed.scores, strict=True)
    return {
        "text": compressed.text,
        "words": len(words),
        "words_kept": len(kept),
        "tokens": tokens[0],
        "tokens_kept": tokens[1],
        "dropped": [words[index] | {"kind": kind} for index, kind in compressed.dropped.items()],
        "scores": [
            word | {"score": score, "kept": index in kept}
            for index, (word, score) in enumerate(scored)
        ],
    }


def check_scorer(name: str) -> None:
    """An unknown scorer is an error before the model is loaded, not after."""
    from tokenry.model.attribution.base import attribution

    known = [*attribution.names(), "random"]
    if name not in known:
        raise UnknownNameError("scorer", name, known)


def read_keep(values: list[str]) -> tuple[tuple[Any, ...], str | None]:
    """Kinds of words that stay, and the pattern of further ones. Kinds replace the default."""
    import re

    from tokenry.text.sense import KEPT, KINDS

    kinds, patterns = None, []
    for value in values:
        named = [name.strip() for name in value.split(",")]
        if all(name in (*KINDS, "nothing") for name in named):
            kinds = (*(kinds or ()), *(name for name in named if name != "nothing"))
            continue
        try:
            re.compile(value)
        except re.error as error:
            raise InputError(f"--keep {value!r} is no regular expression: {error}") from None
        patterns.append(f"(?:{value})")
    return KEPT if kinds is None else kinds, "|".join(patterns) or None


def count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
