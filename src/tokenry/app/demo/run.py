"""The demo: four sections measured one after the other, then one page."""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from tokenry.app.demo.page import Report, Section, render, require_plots
from tokenry.app.terminal import load, notes, progress, write_text


def run(output: Path, model: str = "smollm2", seed: int = 0) -> Report:
    """Measure everything with one model and write the page to `output`."""
    require_plots()
    started = time.perf_counter()
    loaded = load(model)
    from tokenry.app.commands.train import progress_callback
    from tokenry.app.demo import aligned, constrained, drafted, inspected
    from tokenry.papers.catalogue import versions

    console = notes()
    sections: list[Section] = []
    with progress() as bar:
        task = bar.add_task("demo", total=4)

        def measure(name: str, make: Callable[[Callable[[str], None]], Section]) -> None:
            def tick(what: str) -> None:
                bar.update(task, description=f"{name}: {what}")

            tick("starting")
            begun = time.perf_counter()
            section = make(tick)
            sections.append(replace(section, seconds=time.perf_counter() - begun))
            bar.advance(task)
            numbers = "; ".join(f"{label} {value}" for label, value in section.numbers)
            console.print(f"[bold]{name}[/] {sections[-1].seconds:.0f} s  [dim]{numbers}[/]")

        measure("Inspected", lambda tick: inspected.section(loaded))
        measure("Constrained", lambda tick: constrained.section(loaded, seed=seed, tick=tick))
        measure("Accelerated", lambda tick: drafted.section(loaded, tick=tick))
        with redirect_stdout(io.StringIO()):  # the Trainer prints its logs there
            measure(
                "Aligned",
                lambda tick: aligned.section(
                    loaded, seed=seed, tick=tick, callbacks=[progress_callback(bar)]
                ),
            )
    report = Report(
        model=title(model),
        sections=sections,
        seconds=time.perf_counter() - started,
        seed=seed,
        versions=versions(),
        machine=machine(),
    )
    write_text(output, render(report))
    return report


def title(model: str) -> str:
    from tokenry.model.hub import NAMED_MODELS

    return NAMED_MODELS[model].title if model in NAMED_MODELS else Path(model).name


def machine() -> str:
    """Where the seconds were measured."""
    import torch

    where = f"{platform.system()} {platform.machine()}"
    return f"{where}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
