"""The command line: `tokenry VERB`.

Each verb is a file in `commands`, a thin layer over the function of the library that does the work.
Results go to standard output, progress and errors to standard error. Whatever the user got wrong
ends with exit code 2 and one line that says what and what to do; TOKENRY_DEBUG=1 shows the
traceback instead.
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import Annotated

import typer

import tokenry
from tokenry.app.commands import (
    audit,
    compress,
    demo,
    generate,
    inspect,
    models,
    objectives,
    papers,
    plan,
    reproduce,
    tokenize,
    train,
)
from tokenry.core.errors import TokenryError

BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="tokenry",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def paragraphs(verb: Callable[..., None]) -> str:
    """A docstring with one line per paragraph: the terminal's width wraps them, not ours."""
    parts = cleandoc(verb.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


for verb in (inspect.inspect, generate.generate, train.train, tokenize.tokenize):
    app.command(help=paragraphs(verb))(verb)
app.command(help=paragraphs(compress.compress))(compress.compress)
for verb in (audit.audit, objectives.objectives, papers.papers, reproduce.reproduce):
    app.command(help=paragraphs(verb))(verb)
app.add_typer(models.app, name="models", help=paragraphs(models.models))
app.command(help=paragraphs(plan.plan))(plan.plan)
app.command(help=paragraphs(demo.demo))(demo.demo)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenry {tokenry.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Everything in a language model that is decided token by token.

    Example: [cyan]tokenry inspect "Rome is the capital of Norway."[/]
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: the entry point of `tokenry`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # a dependency's notes to its own developers are no news to who types a command
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        code = app(args=arguments, prog_name="tokenry", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TokenryError, OSError) as error:
        return fail(described(error), error)
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own errors have it
            raise
        return fail(error.format_message(), error)  # type: ignore[attr-defined]


def fail(message: str, error: Exception) -> int:
    """Print the one line; with TOKENRY_DEBUG, raise instead."""
    if os.environ.get("TOKENRY_DEBUG", "0") not in ("", "0"):
        raise error
    if message.strip():  # `tokenry` without a verb has shown its help
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def described(error: Exception) -> str:
    """An error of the library says it all; the system's says what, and has the file apart."""
    if isinstance(error, OSError) and not isinstance(error, TokenryError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
