"""Roles: each stands beside its Protocol, with methods and a contract test that takes them all."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from role_cases import cases
from tokenry.core.registry import Role, roles

ROLES = roles()
EACH = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
FEWEST = 3  # tests of a contract


def home(role: Role) -> tuple[str, str]:
    """The module that the role stands in, and its name there."""
    module = role.protocol.__module__
    values = vars(importlib.import_module(module))
    return module, next(name for name, value in values.items() if value is role)


def test_roles_are_found_by_reading_the_library():
    names = [role.name for role in ROLES]
    assert names == sorted(set(names))
    assert {"objective", "constraint", "codec", "signal", "task"} <= set(names)


@EACH
def test_it_stands_beside_its_protocol_which_says_what_it_is(role):
    module, name = home(role)
    assert name == role.name.replace(" ", "_") or name in ("sampler", "controller", "attribution")
    assert module.startswith("tokenry.")
    assert len(inspect.getdoc(role.protocol).split()) > 8
    layer = module.split(".")[1]
    assert all(package.split(".")[1] == layer for package in role.packages)


@EACH
def test_it_has_a_method_and_every_method_an_example(role):
    assert role.names()
    for entry in role:
        if entry.examples is not None:
            assert list(entry.examples()), entry.key
    assert len(cases(role, lambda kind: kind)) >= len(role.names())


@EACH
def test_it_has_a_contract_that_every_method_is_put_through(role):
    file = Path(__file__).with_name(f"test_{role.name.replace(' ', '_')}.py")
    assert file.is_file(), f"write {file.name}: what every {role.name} must keep"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module, name = home(role)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
        if alias.name == name
    }
    taken = {
        node.args[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "cases"
        and isinstance(node.args[0], ast.Name)
    }
    assert taken & imported, f"{file.name} does not take cases({name})"
    tests = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    assert len(tests) >= FEWEST
