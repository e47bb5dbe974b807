"""tokenry compress: a prompt's most important words in their order."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.app.terminal import AsJson, Model, Seed, load, notes, print_json, read_text, working
from tokenry.app.verb import require_use
from tokenry.core.errors import InputError, UnknownNameError


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
        str | None,
        typer.Option(
            "--keep", "-k", help="A regular expression; words that touch a match always stay."
        ),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Shorten a prompt to the words that count most.

    Every word is scored by a small model on this machine; the best of them are printed in their
    order, with the line breaks between them, for any larger model to read. The scores are made
    sentence by sentence. What remains reads like a telegram: good for the gist of long texts, bad
    for arithmetic, code and exact quotes, where every word counts. [cyan]--keep[/] protects what
    must not go, such as numbers or names. Only [cyan]--scorer random[/] draws from the seed, and it
    loads no model: what it costs is what dropping words costs by itself.

    Examples:

    [cyan]tokenry compress notes.txt --percent 80 > shorter.txt[/]

    [cyan]cat report.md | tokenry compress - -p 60 --keep '[0-9]+|not|never'[/]

    [cyan]tokenry compress notes.txt --scorer globenc --json[/]
    """
    if not 0 <= percent <= 100:
        raise InputError(f"--percent is {percent:g}: it must be between 0 and 100")
    check_scorer(scorer)
    require_use("--model", scorer != "random", "--scorer random loads no model")
    check_pattern(keep)
    text = read_text(file)
    if not text.strip():
        raise InputError("there is nothing to compress in an empty text")

    from tokenry.core.registry import attribution
    from tokenry.model.attribution.frugalprompt import FrugalPrompt

    if scorer == "random":
        network = tokenizer = None
        compressor = FrugalPrompt(None, percent, mode="random", protect=keep, seed=seed)
    else:
        network, tokenizer = load(model)
        compressor = FrugalPrompt(attribution[scorer](), percent, protect=keep)
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


def check_scorer(name: str) -> None:
    """An unknown scorer is an error before the model is loaded, not after."""
    from tokenry.core.registry import attribution

    known = [*attribution.names(), "random"]
    if name not in known:
        raise UnknownNameError("scorer", name, known)


def check_pattern(pattern: str | None) -> None:
    import re

    try:
        re.compile(pattern or "")
    except re.error as error:
        raise InputError(f"--keep {pattern!r} is no regular expression: {error}") from None


def count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
