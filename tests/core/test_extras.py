"""Optional parts are named in the errors that want them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tokenry.core import extras
from tokenry.core.errors import InputError

DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "math_verify": "math-verify",
    "reasoning_gym": "reasoning-gym",
}


def test_the_extras_are_those_of_the_package():
    file = Path(__file__).parents[2] / "pyproject.toml"
    declared = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    for extra, modules in extras.EXTRAS.items():
        names = {re.split(r"[\[>=<]", line)[0] for line in declared[extra]}
        assert {DISTRIBUTIONS.get(module, module) for module in modules} == names
    assert set(declared) - set(extras.EXTRAS) == {"docs", "dev"}  # of developers


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    gone = {"peft", "jinja2"}
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in gone else object())
    extras.require_extra("a walk", "accelerate", "datasets")
    with pytest.raises(InputError, match=r"training needs peft: pip install 'tokenry\[train\]'"):
        extras.require_extra("training", "accelerate", "peft")
    with pytest.raises(InputError, match=r"peft, jinja2: pip install 'tokenry\[train,app\]'"):
        extras.require_extra("a report", "peft", "jinja2")
    assert extras.extra_of("sklearn.cluster") == "audit"
    assert extras.extra_of("torch") is None


def test_methods_are_found_without_the_extras(tmp_path, monkeypatch):
    from tokenry.core.registry import import_modules

    package = tmp_path / "methods_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plain.py").write_text("KEY = 'plain'")
    (package / "kernels.py").write_text("from compiler_of_mine.extending import overload")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(extras.EXTRAS, "fast", ("compiler_of_mine",))
    assert [module.__name__ for module in import_modules("methods_of_mine")] == [
        "methods_of_mine.plain"
    ]
    (package / "wrong.py").write_text("import a_module_that_is_nowhere")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        import_modules("methods_of_mine")


@pytest.mark.parametrize("policy", ["h2o:16", "tokenselect:16"])
def test_caches_work_without_numba(tiny_llama_text, tiny_tokenizer, tmp_path, policy):
    tiny_llama_text.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    script = (
        "import sys; sys.modules['numba'] = None; from tokenry.app.cli import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["generate", "the cat sat", "-m", str(tmp_path), "-n", "4", "--cache", policy]
    found = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
