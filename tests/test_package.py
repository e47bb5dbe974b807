"""The package's front door."""

import subprocess
import sys
from pathlib import Path

import pytest

import tokenry


def test_every_public_name_can_be_had():
    assert all(getattr(tokenry, name) is not None for name in tokenry.__all__)
    with pytest.raises(AttributeError, match="no attribute 'scroe'"):
        _ = tokenry.scroe


def test_importing_tokenry_loads_neither_torch_nor_transformers():
    code = "import sys, tokenry; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_the_command_line_runs_as_a_module():
    command = [sys.executable, "-m", "tokenry", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == f"tokenry {tokenry.__version__}\n"


def test_the_package_says_that_it_is_typed():
    assert (Path(tokenry.__file__).parent / "py.typed").is_file()
