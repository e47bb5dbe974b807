"""The catalogue: registering, looking up, finding methods and roles by reading packages."""

import sys

import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.registry import Role, roles

ROLE = """
from typing import Protocol
from tokenry.core.registry import Role

class Shape(Protocol):
    '''The role: something with sides.'''

shape = Role("shape", Shape, ("{package}.methods",))
"""
METHOD = """
from {package}.base import shape

@shape("{key}", paper=7, examples=lambda: [3])
class Method: ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a role, beside its methods `square` and `triangle`."""
    name = "shapes_of_a_test"
    folder = tmp_path / name
    (folder / "methods").mkdir(parents=True)
    for place in (folder, folder / "methods"):
        (place / "__init__.py").write_text("")
    (folder / "base.py").write_text(ROLE.format(package=name))
    (folder / "__main__.py").write_text("raise RuntimeError('run')")
    for key in ("triangle", "square"):
        (folder / "methods" / f"{key}.py").write_text(METHOD.format(package=name, key=key))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_methods_are_found_by_being_a_file_in_the_folder(package):
    (role,) = roles(package)
    assert role.name == "shape"
    assert role.names() == ["square", "triangle"]
    assert role.names("s*") == ["square"]
    assert role["square"].__module__ == f"{package}.methods.square"
    entry = role.entry("triangle")
    assert (entry.key, entry.paper, entry.needs) == ("triangle", 7, ())
    assert entry.examples() == [3]


def test_an_unknown_name_is_answered_with_the_nearest(package):
    (role,) = roles(package)
    with pytest.raises(UnknownNameError, match="unknown shape 'squar'; did you mean square"):
        role["squar"]


def test_half_a_catalogue_does_not_pass_for_a_whole_one(package, tmp_path):
    broken = tmp_path / package / "methods" / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        roles(package)
    role = sys.modules[f"{package}.base"].shape
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            role.names()
    broken.unlink()
    assert role.names() == ["square", "triangle"]


def test_one_key_is_one_method():
    role = Role("shape", object, ())
    first = type("First", (), {"__module__": "one"})
    role("round")(first)
    role("round")(type("First", (), {"__module__": "one"}))  # the module was loaded again
    with pytest.raises(ValueError, match="shape 'round' is registered twice"):
        role("round")(type("Second", (), {"__module__": "two"}))


def test_what_cannot_be_a_method_is_refused_and_not_filed():
    def check(entry):
        if "sides" not in entry.needs:
            raise InputError(f"{entry.key} has no sides")

    role = Role("shape", object, (), check=check)
    role("square", needs=("sides",))(object())
    with pytest.raises(InputError, match="round has no sides"):
        role("round")(object())
    assert [entry.key for entry in role] == ["square"]
