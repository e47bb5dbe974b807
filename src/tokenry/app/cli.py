"""The command line: `tokenry VERB`.

Each verb is a file in `commands`, a thin layer over the function of the library that does the work.
Results go to standard output, progress and errors to standard error. Whatever goes wrong ends with
one line that says what and what to do, and with exit code 2 (1 for a fault of Tokenry itself);
--debug or TOKENRY_DEBUG=1 shows the traceback instead.
"""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import Annotated

import typer

import tokenry
from tokenry.app import constraints, steering
from tokenry.app.commands import (
    audit,
    compress,
    data,
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
from tokenry.app.failures import report
from tokenry.app.verb import Debug, Verb, debugging, forget, with_debug
from tokenry.core.errors import InputError

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


def add(verb: Callable[..., None], below: str | None = None) -> None:
    """A verb, and what its help says below its options."""
    app.command(cls=Verb, help=paragraphs(verb), epilog=below)(with_debug(verb))


add(inspect.inspect)
add(generate.generate, f"{constraints.LISTED}\n\n{steering.LISTED}")
for verb in (train.train, tokenize.tokenize, compress.compress):
    add(verb)
for verb in (audit.audit, objectives.objectives, papers.papers, reproduce.reproduce):
    add(verb)
app.add_typer(models.app, name="models", help=paragraphs(models.models))
app.add_typer(data.app, name="data", help=paragraphs(data.data))
add(plan.plan)
add(demo.demo)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenry {tokenry.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Everything in a language model that is decided token by token.

    Example: [cyan]tokenry inspect "Rome is the capital of Norway."[/]
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: the entry point of `tokenry`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # a dependency's notes to its own developers are no news to who types a command
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    forget()
    try:
        prepare_streams()
        code = invoke(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:
        if output_is_lost() and isinstance(error, BrokenPipeError):
            return 0  # the reader of our output has seen enough
        if isinstance(error, SystemExit | GeneratorExit) or debugging():
            raise
        message, code = report(error)
        if message.strip():  # `tokenry` without a verb has shown its help
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code


def invoke(arguments: list[str]) -> int:
    """Run a verb. Not by typer's own main, which ends the process on some errors by itself."""
    if "_TOKENRY_COMPLETE" in os.environ:
        app(prog_name="tokenry")
    command = typer.main.get_command(app)
    try:
        with command.make_context("tokenry", arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def prepare_streams() -> None:
    """Standard streams that can be written to; InputError where results would go nowhere."""
    if sys.stderr is None:  # 2>&-: remarks go nowhere, and not into the results
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        raise InputError("standard output is closed: let it go to a file, or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the locale's encoding lacks


def output_is_lost() -> bool:
    """Whether standard output can no longer be written; then nothing is tried at exit either."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
