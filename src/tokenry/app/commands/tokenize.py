"""tokenry tokenize: how a text becomes tokens."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.app.terminal import (
    AsJson,
    Model,
    Seed,
    plain_table,
    print_json,
    results,
    text_or_file,
    working,
)
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError


def tokenize(
    text: Annotated[
        str | None, typer.Argument(help="The text; [cyan]-[/] reads it from standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text here.")] = None,
    model: Model = "smollm2",
    stochastok: Annotated[
        float | None,
        typer.Option(
            "--stochastok",
            metavar="P",
            help="Split tokens at random, P attempts per token (the paper's default is 0.1).",
        ),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Show the tokens of a text with their ids and bytes.

    With [cyan]--stochastok P[/], some tokens are split into two that spell the same, as StochasTok
    (arXiv 2506.01687) does with training texts: the table shows what each token became.

    Examples:

    [cyan]tokenry tokenize "How many r are in strawberry?"[/]

    [cyan]tokenry tokenize "strawberry" --stochastok 1 --seed 3[/]
    """
    content = text_or_file(text, file)
    if not content:
        raise InputError("there is nothing to tokenize in an empty text")
    if stochastok is not None:
        in_range("--stochastok (attempts per token)", stochastok, "[0, 100]")
    from tokenry.model.hub import load_tokenizer

    with working(f"loading {model}"):
        tokenizer = load_tokenizer(model)
    listing = tokens(tokenizer, content, stochastok, seed)
    if as_json:
        print_json(listing)
    else:
        show(listing)


def tokens(tokenizer: Any, text: str, p: float | None, seed: int) -> dict[str, Any]:
    """{text, tokens: [{position, id, token, bytes}], expanded: [{..., from}] or None}."""
    from tokenry.text.vocabulary import token_bytes

    pieces = token_bytes(tokenizer)

    def rows(ids: list[int]) -> list[dict[str, Any]]:
        spelled = [
            pieces[token] or str(tokenizer.convert_ids_to_tokens(token)).encode() for token in ids
        ]
        return [
            {
                "position": position,
                "id": token,
                "token": piece.decode(errors="backslashreplace"),
                "bytes": piece.hex(" "),
            }
            for position, (token, piece) in enumerate(zip(ids, spelled, strict=True))
        ]

    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    expanded = None
    if p is not None:
        import torch

        from tokenry.text.tokenizers.stochastok import StochasTok, split_tokens

        table = StochasTok(p).wrap(tokenizer).table
        split, sources = split_tokens(ids, table, p, torch.Generator().manual_seed(seed))
        expanded = [
            row | {"from": source} for row, source in zip(rows(split), sources, strict=True)
        ]
    return {"text": text, "tokens": rows(ids), "expanded": expanded}


def show(listing: dict[str, Any]) -> None:
    from rich.text import Text

    table = plain_table()
    table.add_column("", justify="right", style="dim")
    table.add_column("id", justify="right")
    table.add_column("token")
    table.add_column("bytes", style="dim")
    expanded = listing["expanded"]
    if expanded is not None:
        table.add_column("becomes")
    for row in listing["tokens"]:
        cells = [str(row["position"]), str(row["id"]), Text(repr(row["token"])), row["bytes"]]
        if expanded is not None:
            parts = [part["token"] for part in expanded if part["from"] == row["position"]]
            cells.append(Text(" ".join(map(repr, parts)) if len(parts) > 1 else ""))
        table.add_row(*cells)
    console = results()
    console.print(table)
    count = len(listing["tokens"])
    total = f"{count} tokens, {len(listing['text'].encode()) / count:.2f} bytes each"
    console.print(total + ("" if expanded is None else f"; {len(expanded)} after the splits"))
