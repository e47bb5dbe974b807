"""What a figure depends on: installed versions."""

import platform
from importlib.metadata import version


def installed(*packages: str) -> dict[str, str]:
    """The versions of Python and of the packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
