"""The catalogue: every method registers under its role, a key, and the paper it comes from.

    objective = Role("objective", Objective, ("tokenry.learn.preference", ...))

    @objective("tdpo", paper=0)
    @dataclass(frozen=True)
    class TDPO: ...

    objective["tdpo"]          # the class
    objective.names("*dpo*")   # ['dpo', 'tdpo']

A role stands beside its Protocol, in the module that says what its methods are. It knows the
packages its methods live in and imports their modules when it is first asked, so a new method is
found by being a file in the right folder; `roles` finds the roles themselves in the same way.
"""

import ast
import fnmatch
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.extras import extra_of

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One registered method: its key, the number of its paper in the catalogue, and the object.

    examples: what the role's contract test takes of it, where that is not one made of defaults; the
    role's module says what an example is. needs: what it takes beside what every method of the role
    takes, in the role's own words.
    """

    key: str
    paper: int | None
    value: Any
    examples: Callable[[], Iterable[Any]] | None = None
    needs: tuple[str, ...] = ()


@dataclass
class Role:
    """A catalogue of interchangeable methods. Calling it registers, indexing it looks up.

    protocol: what a method of this role is. packages: where its methods live. check: refuses, by an
    error, what cannot be a method of this role.
    """

    name: str
    protocol: Any
    packages: tuple[str, ...]
    check: Callable[[Entry], None] | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    discovered: bool = False

    def __call__(
        self,
        key: str,
        paper: int | None = None,
        examples: Callable[[], Iterable[Any]] | None = None,
        needs: tuple[str, ...] = (),
    ) -> Callable[[T], T]:
        """Decorator that files a class or function under `key`."""

        def file(value: T) -> T:
            known = self.entries.get(key)
            if known is not None and known.value.__module__ != getattr(value, "__module__", None):
                raise ValueError(f"{self.name} {key!r} is registered twice")
            entry = Entry(key, paper, value, examples, needs)
            if self.check is not None:
                self.check(entry)
            self.entries[key] = entry
            return value

        return file

    def __getitem__(self, key: str) -> Any:
        return self.entry(key).value

    def entry(self, key: str) -> Entry:
        """What is registered under `key`. UnknownNameError if nothing is."""
        self.discover()
        if key not in self.entries:
            raise UnknownNameError(self.name, key, self.entries)
        return self.entries[key]

    def made(self, call: str) -> Any:
        """What a call of a method makes, from its text: "length_between(5, 60)", or its key alone.

        Arguments are literals; nothing else is evaluated. Raises InputError for any other text,
        UnknownNameError for a key that is not registered.
        """
        key, *given = re.split(r"(?=\()", call.strip(), maxsplit=1)
        try:
            parsed = ast.parse(f"made{given[0] if given else '()'}", mode="eval").body
            if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name):
                raise ValueError("not a call")
            arguments = [ast.literal_eval(argument) for argument in parsed.args]
            named = {str(word.arg): ast.literal_eval(word.value) for word in parsed.keywords}
        except (SyntaxError, ValueError) as error:
            raise InputError(
                f"{call!r} is no {self.name} with literal arguments, such as "
                f"{self.names()[0]}(5, name='text'): {error}"
            ) from None
        make = self[key]
        try:
            return make(*arguments, **named)
        except (TypeError, re.error) as error:
            raise InputError(f"{call!r}: {error}") from None

    def __iter__(self) -> Iterator[Entry]:
        self.discover()
        return iter(sorted(self.entries.values(), key=lambda entry: entry.key))

    def names(self, pattern: str = "*") -> list[str]:
        """Keys that match a shell pattern, sorted."""
        return [entry.key for entry in self if fnmatch.fnmatch(entry.key, pattern)]

    def discover(self) -> None:
        """Import every module of this role's packages, once."""
        if not self.discovered:
            self.discovered = True  # a module that looks a method up while it loads gets no loop
            try:
                for package in self.packages:
                    import_modules(package)
            except BaseException:
                self.discovered = False  # half a catalogue must not pass for a whole one
                raise


def roles(package: str = "tokenry") -> list[Role]:
    """All roles that modules below a package define, by name; every module is imported."""
    values = (value for module in import_modules(package) for value in vars(module).values())
    defined = {id(value): value for value in values if isinstance(value, Role)}
    return sorted(defined.values(), key=lambda role: role.name)


def import_modules(package: str) -> list[Any]:
    """Import all modules below `package` and return them in the order of their names.

    Those that stand on an extra which is not installed, such as kernels, are left out.
    """
    root = importlib.import_module(package)
    if not hasattr(root, "__path__"):
        return [root]
    infos = pkgutil.walk_packages(root.__path__, prefix=f"{package}.")
    modules = []
    for name in sorted(info.name for info in infos if not info.name.endswith("__main__")):
        try:
            modules.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if extra_of(error.name or "") is None:
                raise
    return modules
