"""The optional parts of Tokenry: which packages each takes, and the error that names the part."""

from __future__ import annotations

from importlib.util import find_spec

from tokenry.core.errors import InputError

# extra: the modules that it brings, as pyproject.toml has them
EXTRAS = {
    "train": ("accelerate", "peft", "datasets", "tensorboard"),
    "app": ("jinja2",),
    "plots": ("matplotlib", "pandas"),
    "code": ("jedi",),
    "audit": ("sklearn",),
    "fast": ("numba",),
    "ray": ("ray",),
    "rewards": ("math_verify",),
    "gym": ("reasoning_gym",),
}


def require_extra(purpose: str, *modules: str) -> None:
    """Raise InputError if one of the modules is not installed, with the command that installs it.

    purpose: what needs them, "training a model".
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(f"{purpose} needs {', '.join(missing)}: {how_to_install(missing)}")


def how_to_install(modules: list[str]) -> str:
    """The command that installs modules: through their extras, where they have one."""
    extras = [extra for extra, brings in EXTRAS.items() if set(brings) & set(modules)]
    return f"pip install 'tokenry[{','.join(extras)}]'" if extras else f"pip install {modules[0]}"


def extra_of(module: str) -> str | None:
    """The extra that brings a module."""
    root = module.partition(".")[0]
    return next((extra for extra, brings in EXTRAS.items() if root in brings), None)
