"""Mutants: one small fault at a time in the files that changed; the ones that no test notices.

    make mutants SINCE=COMMIT            or    python tests/mutants.py FILE...

The faults are cosmic-ray's (an operator exchanged, a comparison turned, a loop left out), and every
number, also a default or a module's constant, is moved to one near by: a test that tells .4 from .5
but not from .45 lets one live. A mutant exists in the memory of one forked process only, in which
the module's mirrored test file, and the files of tests that import it, run until the first failure.
A mutant that changes nothing one can observe survives too: survivors are to be looked at.
"""

import argparse
import ast
import importlib.abc
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import parso
import pytest
import torch  # imported once, before the forks  # noqa: F401
import transformers.modeling_utils  # noqa: F401
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.number_replacer import NumberReplacer
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).parents[1]
EXCHANGED = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul",
      "FloorDiv_Div", "Mod_Mul", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt",
      "Lt_Gt", "Gt_Lt", "LtE_GtE", "GtE_LtE", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("Not", "Invert", "USub")),
    "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr",
    "ReplaceOrWithAnd", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
    "ZeroIterationForLoop",
]  # fmt: skip


class NearbyNumber(NumberReplacer):
    """A whole number one up or down, any other an eighth."""

    def mutate(self, node, index):
        value, up = float(node.value.replace("_", "")), index == 0
        if node.value.isdecimal():
            changed = str(int(node.value) + (1 if up else -1))
        else:
            changed = repr(value * (1.125 if up else 0.875))
        return parso.python.tree.Number(f" {changed}", node.start_pos)


@dataclass
class Mutant:
    """file: of the package. line: its first changed one. code: of the whole file."""

    file: Path
    line: int
    before: str
    after: str
    code: str


def mutants(file: Path) -> Iterator[Mutant]:
    code = file.read_text()
    operators = [NearbyNumber(), *(OperatorProvider()[name]() for name in EXCHANGED)]
    seen = {meaning(code)}
    for operator in operators:
        number = 0
        while (changed := mutate_code(code, operator, number)) is not None:
            number += 1
            if (said := meaning(changed)) not in seen:
                seen.add(said)
                pairs = zip(code.splitlines(), changed.splitlines(), strict=False)
                line, (before, after) = next((n, p) for n, p in enumerate(pairs, 1) if p[0] != p[1])
                yield Mutant(file, line, before.strip(), after.strip(), changed)


def meaning(code: str) -> str:
    """What a module does: its syntax tree without annotations."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        for name in {"annotation", "returns"} & set(node._fields):
            setattr(node, name, None)
    return ast.dump(tree)


def tests_of(file: Path) -> list[str]:
    """The mirrored test file and those that import the module, else those of its folder."""
    inside = file.relative_to(ROOT / "src" / "tokenry")
    module = ".".join(("tokenry", *inside.with_suffix("").parts)).removesuffix(".__init__")
    mirrored = ROOT / "tests" / inside.parent / f"test_{inside.name}"
    importing = [
        test
        for test in sorted((ROOT / "tests").rglob("test_*.py"))
        if test != mirrored and f"{module} import" in test.read_text()
    ]
    tests = [test for test in (mirrored, *importing) if test.exists()]
    return [str(test) for test in tests or sorted(mirrored.parent.glob("test_*.py"))]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one file's module from other code."""

    def __init__(self, mutant: Mutant):
        self.mutant = mutant

    def find_spec(self, name, path=None, target=None):
        place = Path(*name.split("."))
        source = ROOT / "src"
        if self.mutant.file not in (source / f"{place}.py", source / place / "__init__.py"):
            return None
        return importlib.util.spec_from_file_location(name, self.mutant.file, loader=self)

    def get_filename(self, name):
        return str(self.mutant.file)

    def get_data(self, path):
        return self.mutant.code.encode()


def start(mutant: Mutant, tests: list[str]) -> int:
    """A process of its own in which the tests run on the mutant; its exit status is pytest's."""
    child = os.fork()
    if child:
        return child
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.path.insert(0, str(ROOT / "src"))
    sys.meta_path.insert(0, Finder(mutant))
    sys.dont_write_bytecode = True
    status: int = 1
    try:
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-n0", *tests]))
    finally:
        os._exit(status)


def survivors(
    mutants: Sequence[Mutant], tests: list[str], jobs: int, limit: float
) -> Iterator[Mutant]:
    """Those on which all tests pass. limit: seconds until a run counts as failed."""
    waiting, running = list(reversed(mutants)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[start(mutant, tests)] = mutant, time.monotonic()
        for child, (mutant, since) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del running[child]
                if status == 0:
                    yield mutant
            elif time.monotonic() - since > limit:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutants of changed files that no test notices.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--since", metavar="COMMIT", help="the package's files changed since")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    files = [file.resolve() for file in options.files]
    if options.since:
        command = ["git", "diff", "--name-only", "--diff-filter=d", options.since, "--", "src"]
        changed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        files += [ROOT / name for name in changed.stdout.split() if name.endswith(".py")]
    alive = total = 0
    for file in files:
        tests, name = tests_of(file), file.relative_to(ROOT)
        begin = time.monotonic()
        if not tests or not any(
            survivors([Mutant(file, 0, "", "", file.read_text())], tests, 1, 900)
        ):
            print(f"{name}: {'its tests fail as it is' if tests else 'no tests'}", flush=True)
            continue
        limit, every = 30 + 5 * (time.monotonic() - begin), list(mutants(file))
        print(f"{name}: {len(every)} mutants, {len(tests)} test files", flush=True)
        for mutant in survivors(every, tests, options.jobs, limit):
            print(f"  {mutant.line}: {mutant.before}\n     -> {mutant.after}", flush=True)
            alive += 1
        total += len(every)
    print(f"{alive} of {total} mutants survive")
    return 0


if __name__ == "__main__":
    sys.exit(main())
