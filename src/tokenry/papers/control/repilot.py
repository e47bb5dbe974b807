"""Repilot: a completion engine beside a language model, on lines cut out of the standard library.

From functions of Python's own modules, the rest of a line is removed after the dot of `self.` or of
a module's name; SmolLM2 writes it anew, alone and with jedi at its side. A line is valid if the
file compiles with it and all of its names and attributes exist: looked up in the syntax tree and in
the imported module itself, not asked of the engine.
"""

import ast
import builtins
import importlib
import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenry.decode.constraints.completion_memo import Memo
from tokenry.decode.constraints.jedi_engine import JediEngine
from tokenry.decode.generate import ends
from tokenry.decode.repilot import complete_code, line_ends
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

MODULES = """
    bdb calendar cmd code codeop colorsys configparser contextlib copy csv filecmp fnmatch
    fractions glob graphlib heapq linecache netrc pprint queue reprlib sched shelve shlex
    string textwrap timeit trace wave
"""
SITES, SAMPLES, TOKENS, CONTEXT = 14, 4, 24, 128
METHODS: dict[str, dict[str, Any]] = {
    "model alone": {"mode": "off"},
    "with the engine": {"mode": "constrain"},
}


@dataclass(frozen=True)
class Site:
    """A hole in a module: the file before and after it, and its line number."""

    module: str
    before: str
    after: str
    line: int


@dataclass
class Found:
    """What one method wrote: the valid share at each site, and its counts in all."""

    valid: list[float] = field(default_factory=list)
    calls: int = 0
    saved: int = 0
    pruned: int = 0
    forced: int = 0
    tokens: int = 0

    @property
    def share(self) -> float:
        return sum(self.valid) / len(self.valid)


def reproduce(seed: int) -> Outcome:
    """Held if lines are valid more often with the engine, and the memory saves calls."""
    loaded = load("smollm2")
    chosen = random.Random(seed).sample(list(sites()), SITES)
    eos = sorted({*line_ends(loaded.tokenizer), *ends(*loaded)})
    found = {name: Found() for name in METHODS}
    with JediEngine(timeout=60.0, on_timeout="unknown") as engine:
        for place, site in enumerate(chosen):
            for name, options in METHODS.items():
                result = complete_code(
                    loaded,
                    site.before,
                    site.after,
                    None if options["mode"] == "off" else engine,
                    samples=SAMPLES,
                    max_new_tokens=TOKENS,
                    context_tokens=CONTEXT,
                    eos=eos,
                    memo=Memo(),
                    seed=1000 * seed + place,
                    **options,
                )
                method = found[name]
                valid = [resolves(site, text) for text in result.texts]
                method.valid.append(sum(valid) / SAMPLES)
                method.calls += result.calls
                method.saved += result.remembered + result.spared
                method.pruned += result.pruned
                method.forced += result.forced
                method.tokens += result.tokens
    plain, guided = found["model alone"], found["with the engine"]
    gain, error = paired(guided.valid, plain.valid)
    better, fewer = gain > 2 * error, guided.saved > 0
    failed = [] if better else [f"the gain of {gain:.2f} is not above twice its error, {error:.2f}"]
    measured = [
        Measurement(f"valid lines, {name}", method.share, "share", seed)
        for name, method in found.items()
    ]
    measured += [
        Measurement("gain in valid lines", gain, "share", seed),
        Measurement("standard error of the gain", error, "share", seed),
        Measurement("engine calls", guided.calls, "calls", seed),
        Measurement("engine calls without memory", guided.calls + guided.saved, "calls", seed),
        Measurement("tokens refused", guided.pruned, "tokens", seed),
        Measurement("tokens settled by active completion", guided.forced, "tokens", seed),
        Measurement("tokens written", guided.tokens, "tokens", seed),
    ]
    return Outcome(
        held=better and fewer,
        needs="the share of valid lines with the engine exceeds the model's alone by more than two "
        "standard errors over the sites, and the memory saves calls of the engine",
        measurements=measured,
        reason="; ".join(failed)
        or f"{SITES} holes, {SAMPLES} lines each; bugs fixed and test suites are not measured",
        figure=lambda figure: draw(figure, found),
    )


def sites() -> Iterator[Site]:
    """One-line assignments and returns, cut after the dot of `self.` or of a module's name."""
    for name in MODULES.split():
        module = importlib.import_module(name)
        source = inspect.getsource(module)
        lines = source.split("\n")
        for function in ast.walk(ast.parse(source)):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if not isinstance(node, ast.Assign | ast.Return) or node.value is None:
                    continue
                row = node.lineno - 1
                dots = [
                    part.end_col_offset - len(part.attr.encode())
                    for part in ast.walk(node.value)
                    if isinstance(part, ast.Attribute)
                    and part.end_col_offset is not None
                    and isinstance(part.value, ast.Name)
                    and (
                        part.value.id == "self"
                        or inspect.ismodule(getattr(module, part.value.id, None))
                    )
                ]
                if not dots or node.lineno != node.end_lineno or "#" in lines[row]:
                    continue
                head = lines[row].encode()[: min(dots)].decode()
                before = "\n".join([*lines[:row], head])
                yield Site(name, before, "\n" + "\n".join(lines[row + 1 :]), node.lineno)


def resolves(site: Site, text: str) -> bool:
    """Whether the file compiles with the text in its hole, and the line's names exist."""
    try:
        tree = ast.parse(site.before + text + site.after)
    except (SyntaxError, ValueError):
        return False
    module = importlib.import_module(site.module)
    around = enclosing(tree, site.line)
    functions = [node for node in around if isinstance(node, ast.FunctionDef)]
    if not functions:
        return False
    local = {name for function in functions for name in bound(function)}
    own = next((node.name for node in reversed(around) if isinstance(node, ast.ClassDef)), None)
    for node in ast.walk(functions[0]):
        if getattr(node, "lineno", None) != site.line:
            continue
        if isinstance(node, ast.Name) and node.id not in local:
            if not (hasattr(module, node.id) or hasattr(builtins, node.id)):
                return False
        elif isinstance(node, ast.Attribute) and not has_attribute(node, module, tree, local, own):
            return False
    return True


def enclosing(tree: ast.AST, line: int) -> list[ast.FunctionDef | ast.ClassDef]:
    """The classes and functions around a line, outermost first."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.lineno < line <= (node.end_lineno or 0)
    ]
    return sorted(found, key=lambda node: node.lineno)


def bound(function: ast.AST) -> set[str]:
    """The names that are given a value somewhere in a function."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def has_attribute(
    node: ast.Attribute, module: Any, tree: ast.AST, local: set[str], own: str | None
) -> bool:
    """Whether an attribute exists, as far as its owner is known: a global, or `self`.

    own: the class that the line stands in, if one.
    """
    owner = node.value
    if isinstance(owner, ast.Name) and owner.id == "self" and own is not None:
        inherited = getattr(module, own, object)
        family = {base.__name__ for base in inherited.__mro__}
        assigned = {
            part.attr
            for kind in ast.walk(tree)
            if isinstance(kind, ast.ClassDef) and kind.name in family
            for part in ast.walk(kind)
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
        }
        # a base class of another module may set more in its __init__
        foreign = any(
            base.__module__ != module.__name__ and inspect.isfunction(vars(base).get("__init__"))
            for base in inherited.__mro__[1:]
        )
        return foreign or node.attr in assigned or hasattr(inherited, node.attr)
    known, value = value_of(owner, module, local)
    return not known or hasattr(value, node.attr)


def value_of(node: ast.AST, module: Any, local: set[str]) -> tuple[bool, Any]:
    """Whether the value of an expression is known without running anything, and the value."""
    if isinstance(node, ast.Constant):
        return True, node.value
    if isinstance(node, ast.Name) and node.id not in local:
        for scope in (module, builtins):
            if hasattr(scope, node.id):
                return True, getattr(scope, node.id)
    if isinstance(node, ast.Attribute):
        known, owner = value_of(node.value, module, local)
        if known and inspect.ismodule(owner) and hasattr(owner, node.attr):
            return True, getattr(owner, node.attr)
    return False, None


def paired(first: list[float], second: list[float]) -> tuple[float, float]:
    """Mean difference over the sites, and its standard error."""
    one, other = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    return mean_and_error(one - other)


def draw(figure: Any, found: dict[str, Found]) -> None:
    """Valid shares, and how the tokens with the engine came about."""
    left, right = figure.subplots(1, 2)
    left.bar(list(found), [method.share for method in found.values()])
    left.set(ylabel="valid lines", ylim=(0, 1))
    guided = found["with the engine"]
    counts = {
        "engine calls": guided.calls,
        "saved by memory": guided.saved,
        "tokens refused": guided.pruned,
        "tokens settled": guided.forced,
    }
    right.bar(list(counts), list(counts.values()))
    right.set_ylabel("count, with the engine")
    for axes in (left, right):
        axes.tick_params(axis="x", rotation=20)


PAPER = Paper(
    number=54,
    key="repilot",
    title="Copiloting the Copilots: Fusing Large Language Models with Completion Engines for "
    "Automated Program Repair",
    arxiv="2309.00608",
    role="constraint",
    family="control",
    claim="Asking a completion engine at each token which names can still be completed makes more "
    "of a model's patches compile, at the price of few calls.",
    reproduce=reproduce,
    threads=1,
)
