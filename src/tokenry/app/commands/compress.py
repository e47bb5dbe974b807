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
        found = compressor(network, tokenizer, text)
    tokens = [None if tokenizer is None else count(tokenizer, t) for t in (text, found.text)]
    if as_json:
        kept = set(found.kept)
        print_json(
            {
                "text": found.text,
                "percent": percent,
                "scorer": scorer,
                "model": None if tokenizer is None else model,
                "words": len(found.spans),
                "words_kept": len(found.kept),
                "tokens": tokens[0],
                "tokens_kept": tokens[1],
                "dropped": [
                    {
                        "word": text[slice(*found.spans[place])],
                        "start": found.spans[place][0],
                        "kind": kind,
                    }
                    for place, kind in found.dropped.items()
                ],
                "scores": [
                    {"word": text[a:b], "start": a, "score": score, "kept": place in kept}
                    for place, ((a, b), score) in enumerate(
                        zip(found.spans, found.scores, strict=True)
                    )
                ],
            }
        )
        return
    typer.echo(found.text, nl=not found.text.endswith("\n"))
    saved = "" if tokens[0] is None else f", {tokens[1]} of {tokens[0]} tokens"
    notes().print(f"kept {len(found.kept)} of {len(found.spans)} words{saved}")
    if found.dropped:
        words = Counter(text[slice(*found.spans[place])] for place in found.dropped)
        named = [f"{word} ({times})" if times > 1 else word for word, times in words.most_common()]
        more = f" and {len(named) - NAMED} others" if len(named) > NAMED else ""
        notes().print(
            f"left out, and could change the sense: {', '.join(named[:NAMED])}{more}", markup=False
        )


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
