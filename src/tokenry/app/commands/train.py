"""tokenry train: an objective, a file of preferences, a model."""

import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tokenry.app.terminal import AsJson, Model, Seed, plain_table, print_json, progress, results
from tokenry.core.errors import InputError
from tokenry.core.extras import require_extra


def train(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            help="JSON lines or an array (also gzip, parquet, a datasets folder, a pipe): prompt, "
            "chosen, rejected.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder that does not exist.")],
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="A name that [cyan]tokenry objectives[/] lists, or file.py:name of one's own.",
        ),
    ] = "tdpo",
    model: Model = "smollm2",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="YAML: the objective's parameters (beta), fields of transformers' "
            "TrainingArguments (learning_rate), max_length, truncate, as_chat, bad_rows, lora, "
            "and for rollouts samples, max_new_tokens, temperature.",
        ),
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train an adapter instead of all weights.")
    ] = False,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            help="What becomes of the adapter that the model comes with: continue (train it "
            "further, the default), merge (into the weights), or stack (a new one above it; saved "
            "as one).",
        ),
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option("--eval-data", help="Held-out pairs, measured at the end.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            help="What the policy is held to: auto, copy, adapter, precomputed, or a model; repeat "
            "it for the average of several models' weights.",
        ),
    ] = None,
    frozen: Annotated[
        list[str] | None,
        typer.Option(
            "--frozen",
            metavar="NAME=MODEL",
            help="A further frozen model that the objective needs, such as guide=FOLDER.",
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="FILE.py:NAME",
            help="For on-policy objectives: a function (prompt, completion) -> number or (prompts, "
            "completions, **columns) -> list, or a name of the catalogue with its arguments, such "
            "as numeric_answer or 'soft_overlong(longest=64, buffer=16)'.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that --output holds.")
    ] = False,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Train a model on preference pairs and save it.

    The folder gets the model (or the adapter), its tokenizer, and [cyan]run.json[/]: what was run
    on what, with which settings, versions and results.

    Examples:

    [cyan]tokenry train --objective tdpo --data prefs.jsonl --output trained --lora[/]

    [cyan]tokenry train -d prefs.jsonl -o trained -c settings.yaml --eval-data heldout.jsonl[/]

    [cyan]tokenry train --objective tgdpo -d prefs.jsonl -o better --frozen guide=trained[/]

    [cyan]tokenry train --objective rto -d prompts.jsonl -o rl --frozen dpo=trained
    --reward rules.py:polite[/]
    """
    from tokenry.learn.objective import objective as objectives

    require_extra("training", "accelerate", "peft", "datasets")
    check_output(output, resume)
    if config is not None and not config.is_file():
        raise InputError(f"no such file: {config}")
    if ".py:" not in objective:
        objectives[objective]
    others = named_models(frozen or [])
    rows, heldout = read(data), None if eval_data is None else read(eval_data)

    from tokenry.learn.run import train as run
    from tokenry.model import hub

    for name in {model, *(reference or ()), *others.values()} & hub.NAMED_MODELS.keys():
        hub.folder(name)  # fetches with a progress bar of its own
    with progress() as bar, redirect_stdout(io.StringIO()):  # the Trainer prints its logs there
        finished = run(
            objective,
            rows,
            model,
            output,
            config=config,
            lora=lora,
            adapter=cast(Any, adapter),
            eval_data=heldout,
            reference=one_or_all(reference or ["auto"]),
            frozen=others,
            rewards=reward or [],
            resume=resume,
            seed=seed,
            callbacks=[progress_callback(bar)],
            disable_tqdm=True,
        )
    if as_json:
        print_json(finished.record)
    else:
        show(finished)


def check_output(output: Path, resume: bool) -> None:
    """A folder that exists is only gone on with when that is asked for."""
    if output.exists() and not resume and os.environ.get("RANK", "0") == "0":
        raise InputError(
            f"the output folder {output} exists: choose another one, or --resume the run in it"
        )
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"cannot write to {output}: {parent} is not a folder that can be written")


def named_models(given: list[str]) -> dict[str, str]:
    """ "guide=folder" -> {"guide": "folder"}."""
    models = {}
    for item in given:
        name, equals, model = item.partition("=")
        if not (name and equals and model):
            raise InputError(f"--frozen must have the form NAME=MODEL, got {item!r}")
        models[name] = model
    return models


def one_or_all(given: list[str]) -> str | list[str]:
    return given[0] if len(given) == 1 else given


def read(data: Path) -> Any:
    """The rows of a file, a pipe or a folder, read once: what does not parse is an error before the
    model is loaded, not after."""
    from tokenry.learn.data import read_source

    source = read_source(data)
    if not source.rows:
        raise InputError(f"no preference pairs in {data}")
    return source


def progress_callback(bar: Any) -> Any:
    """A Trainer callback that shows the step and the loss on a rich progress bar."""
    from transformers import TrainerCallback

    class Shown(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.task = bar.add_task("training", total=state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bar.update(self.task, completed=state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                bar.update(self.task, description=f"training, loss {float(logs['loss']):.4f}")

    return Shown()


def show(finished: Any) -> None:
    from tokenry.learn.data.rows import summary_of

    record = finished.record
    console = results()
    console.print(
        f"{record['steps']} steps in {record['seconds']:.0f} s, saved to {finished.output}"
    )
    console.print(summary_of(record["data"], record["data"]["pairs"]), style="dim")
    logged = [entry for entry in record["history"] if "loss" in entry]
    if not logged:
        return
    numbers = ("first step", "last step", "held out")
    table = plain_table("", *numbers, numbers=numbers)
    names = [n for n in logged[-1] if n not in ("epoch", "step", "learning_rate", "grad_norm")]
    for name in names:
        cells = [entry.get(name) for entry in (logged[0], logged[-1])]
        cells.append(record["evaluation"].get(f"eval_{name}"))
        table.add_row(name, *("" if cell is None else f"{float(cell):.4g}" for cell in cells))
    console.print(table)
