"""What every benchmark shares: ways measured in processes of their own, and one form of result."""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One comparison. ratio is ours / peer; None when there was no peer to measure."""

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str


def compare(name: str, ours: float, peer: float | None, unit: str) -> Row:
    return Row(name, ours, peer, ours / peer if peer else None, unit)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def report(rows: list[Row], as_json: bool, title: str) -> None:
    """Print the rows as JSON, or as a table for people."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("name", "ours", "peer", "ratio", "unit"):
        table.add_column(column, justify="left" if column in ("name", "unit") else "right")
    for row in rows:
        figures = (row.ours, row.peer, row.ratio)
        table.add_row(row.name, *("-" if f is None else f"{f:.3g}" for f in figures), row.unit)
    Console().print(table)


def run_apart(script: str, *words: str, python: str = sys.executable) -> dict:
    """Run `script words...` in a process of its own and read the JSON on its last line."""
    done = subprocess.run([python, script, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def has_peer(python: str | None, module: str) -> bool:
    """Whether an interpreter can import the peer; if not, says why and that ours stands alone."""
    if not python:
        why = "no peer: pass --peer-python or set TOKENRY_PEER_PYTHON to an interpreter"
    else:
        try:
            probe = [python, "-c", f"import {module}"]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return True
            why = f"no peer: {python} cannot import {module}"
        except OSError as error:
            why = f"no peer: {python} does not run ({error.strerror})"
    print(f"{why}. Ours is measured alone; see --help.", file=sys.stderr)
    return False


def best_seconds(action: Callable[[], object], repeats: int) -> float:
    """The fastest of `repeats` runs: the one that other processes disturbed least."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def resident() -> int:
    """Bytes of this process in memory now; elsewhere than on Linux at most so far."""
    if not os.path.exists("/proc/self/statm"):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_extra_memory(action: Callable[[], object]) -> int:
    """Bytes by which the process's resident memory rose at most while `action` ran.

    Sampled every millisecond from /proc where there is one; elsewhere the process's overall peak,
    which is right when `action` is the first thing that allocates much.
    """
    if not os.path.exists("/proc/self/statm"):
        before = resident()
        action()
        return resident() - before
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    action()
    peak[0] = max(peak[0], resident())
    done.set()
    watcher.join()
    return peak[0] - before
