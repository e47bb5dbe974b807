"""tokenry audit: what a model may hide, how long it can be made to talk, where prompts steer it."""

from typing import Annotated, Any

import typer

from tokenry.app.terminal import (
    AsJson,
    Seed,
    load_for,
    plain_table,
    print_json,
    progress,
    results,
)
from tokenry.app.verb import require_use
from tokenry.core.checks import in_range
from tokenry.core.errors import UnknownNameError

TITLES = {
    "hidden": "hidden strings",
    "length": "length inflation",
    "reach": "reachable tokens",
}


def audit(
    model: Annotated[
        str,
        typer.Argument(
            help="A name that [cyan]tokenry models[/] lists, a hub id (owner/name), or a folder."
        ),
    ] = "smollm2",
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens",
            "-n",
            metavar="N",
            help="Force so many tokens of the vocabulary, drawn by the seed; 0 forces all.",
        ),
    ] = 2048,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="Only this probe (repeat it): hidden, length, reach."),
    ] = None,
    template: Annotated[
        bool,
        typer.Option(
            "--template",
            help="Force tokens where a chat answer begins, not at the start of a text.",
        ),
    ] = False,
    threshold: Annotated[
        float,
        typer.Option("--threshold", help="Score above which a forced token is a candidate."),
    ] = 0.95,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Audit a model that you have, in a few minutes and without its training data.

    Hidden strings: every token of a sample is forced as the first one of a text. A string that was
    trained into the model, such as a fingerprint, is its only continuation of its first token.

    Length inflation: how much longer do short answers get with a polite suffix, with noise on the
    prompt's embeddings, and with the worst perturbation of the same size?

    Reachable tokens: how many different next tokens can zero to three tokens in front of an
    unfinished sentence bring about?

    None of the three proves that a model is clean: each says what was tried and what was found.

    Examples:

    [cyan]tokenry audit smollm2[/]

    [cyan]tokenry audit path/to/finetuned --part hidden --tokens 0[/]

    [cyan]tokenry audit smollm2 --template --json --seed 1[/]
    """
    wanted = part or list(TITLES)
    for name in wanted:
        if name not in TITLES:
            raise UnknownNameError("part of the audit", name, TITLES)
    in_range("--tokens", tokens, "[0, inf)", integer=True)
    in_range("--threshold", threshold, "(0, 1)")
    for option in ("--tokens", "--threshold", "--template"):
        require_use(option, "hidden" in wanted, "it is of the probe for hidden strings")
    loaded = load_for(model, template, "--template")
    from tokenry.measure.audit.report import audit as measure

    with progress() as bar:
        tasks = {name: bar.add_task(TITLES[name], total=None) for name in TITLES if name in wanted}
        result = measure(
            loaded.model,
            loaded.tokenizer,
            parts=wanted,
            tokens=tokens,
            template=template,
            threshold=threshold,
            seed=seed,
            progress=lambda name, done, total: bar.update(tasks[name], completed=done, total=total),
        )
    if as_json:
        print_json({"model": model, "seed": seed, **as_record(result, loaded.tokenizer)})
        return
    console = results()
    for name in tasks:
        console.print(f"[bold]{TITLES[name]}[/]  [dim]{result.seconds[name]:.0f} s[/]")
        if name in result.skipped:
            console.print(f"skipped: {result.skipped[name]}", markup=False)
        else:
            PRINT[name](console, getattr(result, name), loaded.tokenizer)
        console.print()


def print_hidden(console: Any, result: Any, tokenizer: Any) -> None:
    from rich.text import Text

    console.print(
        f"{result.forced:,} of {result.vocabulary:,} tokens forced; {result.above} scored above "
        f"{result.threshold}"
    )
    if result.candidates:
        numbers = ("score", "confidence", "repetition")
        table = plain_table("", *numbers, numbers=numbers)
        table.add_column("text", overflow="fold")
        rows = [("", text) for text in result.candidates]
        rows += [("control", text) for text in most_confident(result.control, 3)]
        for kind, text in rows:
            mark = "unusual" if not kind and result.unusual(text) else kind
            table.add_row(
                mark,
                *(f"{value:.2f}" for value in (text.score, text.confidence, text.repetition)),
                Text(shortened(tokenizer.decode(list(text.ids)))),
            )
        console.print(table)
    console.print(f"[dim]{result.meaning}[/]")


def print_length(console: Any, result: Any, tokenizer: Any) -> None:
    names = ("clean", "suffix", "noise", "worst")
    columns = (result.clean, result.suffixed, result.noise, result.stressed)
    table = plain_table("answer, tokens", *names, numbers=names)
    for row, prompt in enumerate(result.prompts):
        counts = [int(column[row]) for column in columns]
        table.add_row(prompt, *(f"{n}+" if n >= result.limit else str(n) for n in counts))
    factors = (result.factor(column) for column in columns)
    table.add_row("[dim]times the clean length[/]", *(f"{factor:.1f}" for factor in factors))
    console.print(table)
    if result.clean_cut:
        console.print(
            f"{result.clean_cut:.0%} of the clean answers were cut off at {result.limit} tokens: "
            "how much longer they can get is not seen"
        )
    console.print(f"[dim]{result.meaning}[/]")


def print_reachable(console: Any, result: Any, tokenizer: Any) -> None:
    lengths = len(result.reached[0])
    names = [f"k={length}" for length in range(lengths)]
    table = plain_table(f"outputs reached ({result.candidates} candidates)", *names, numbers=names)
    for state, counts, own in zip(result.states, result.reached, result.own, strict=True):
        table.add_row(state, *map(str, counts))
        table.add_row(
            f"[dim]  of its own {result.ranks} likeliest[/]", *(f"{share:.0%}" for share in own)
        )
    console.print(table)
    console.print(f"[dim]{result.meaning}[/]")


PRINT = {"hidden": print_hidden, "length": print_length, "reach": print_reachable}


def most_confident(texts: list[Any], count: int) -> list[Any]:
    return sorted(texts, key=lambda text: -text.confidence)[:count]


def shortened(text: str, width: int = 60) -> str:
    """A text on one line."""
    line = repr(text)[1:-1]
    return line if len(line) <= width else line[: width - 1] + "…"


def as_record(result: Any, tokenizer: Any) -> dict[str, Any]:
    """The audit as JSON: one object for each part that was run."""
    record: dict[str, Any] = {"skipped": result.skipped}
    if result.hidden is not None:

        def text_row(text: Any) -> dict[str, Any]:
            return {
                "token_id": text.token_id,
                "text": tokenizer.decode(list(text.ids)),
                "score": text.score,
                "confidence": text.confidence,
                "repetition": text.repetition,
            }

        hidden = result.hidden
        record["hidden"] = {
            "seconds": round(result.seconds["hidden"], 1),
            "forced": hidden.forced,
            "vocabulary": hidden.vocabulary,
            "threshold": hidden.threshold,
            "above": hidden.above,
            "candidates": [
                {**text_row(text), "unusual": hidden.unusual(text)} for text in hidden.candidates
            ],
            "control": [text_row(text) for text in hidden.control],
            "meaning": hidden.meaning,
        }
    if result.length is not None:
        length = result.length
        columns = {
            "clean": length.clean,
            "suffix": length.suffixed,
            "noise": length.noise,
            "worst": length.stressed,
        }
        record["length"] = {
            "seconds": round(result.seconds["length"], 1),
            "prompts": list(length.prompts),
            "limit": length.limit,
            "eps": length.eps,
            **{name: column.tolist() for name, column in columns.items()},
            "factor": {name: length.factor(column) for name, column in columns.items()},
            "clean_cut": length.clean_cut,
            "meaning": length.meaning,
        }
    if result.reach is not None:
        reach = result.reach
        record["reach"] = {
            "seconds": round(result.seconds["reach"], 1),
            "candidates": reach.candidates,
            "states": [
                {
                    "state": state,
                    "reached": counts,
                    "own_likeliest": own,
                    "outputs": {
                        tokenizer.decode([output]): tokenizer.decode(list(prompt))
                        for output, prompt in prompts.items()
                    },
                }
                for state, counts, own, prompts in zip(
                    reach.states, reach.reached, reach.own, reach.prompts, strict=True
                )
            ],
            "meaning": reach.meaning,
        }
    return record
