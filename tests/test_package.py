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


WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder

class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in {"accelerate", "peft", "datasets", "tensorboard", "jinja2",
                "matplotlib", "pandas", "jedi", "sklearn", "numba", "ray", "fastapi"}:
            return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Absent if finder is PathFinder else finder for finder in sys.meta_path]
from tokenry.core.registry import roles
found = {role.name: role for role in roles()}
assert len(found) >= 12, found
for role in found.values():
    assert role.names(), role.name

import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()
ids = torch.randint(2, 64, (1, 20))
for name in ("h2o", "tokenselect"):
    cache = found["cache policy"][name].of_size(8).cache(model)
    print(model.generate(ids, past_key_values=cache, max_new_tokens=3, do_sample=False).shape[1])
"""


def test_every_method_can_be_had_and_caches_work_without_the_extras():
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.split() == ["23", "23"]
