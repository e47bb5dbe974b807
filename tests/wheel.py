"""Tries a built wheel in fresh environments, far from the clone: `make test-wheel`.

    python tests/wheel.py dist/tokenry-0.1.0-py3-none-any.whl 3.11 3.12 3.13

A version of Python that is not on this machine is skipped by name. Nothing here is imported from
the clone: the commands run in a folder of their own, as those of someone who installed the wheel.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
PAIRS = [
    {"prompt": "Say hello.", "chosen": "Hello there!", "rejected": "No."},
    {"prompt": "Name a city.", "chosen": "Oslo.", "rejected": "I will not name one."},
]


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, of pyenv, of uv; None if there is none."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
        candidates.append(found.stdout.strip())
    for path in filter(None, candidates):  # a shim on the path may stand for nothing
        asked = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            found = subprocess.run(asked, capture_output=True, text=True)
        except OSError:
            continue
        if found.returncode == 0 and found.stdout.strip() == version:
            return path
    return None


def try_wheel(wheel: Path, python: str, folder: Path) -> None:
    """Install the wheel and use it; AssertionError or CalledProcessError where that fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TOKENRY_D"))}

    def run(*command: str) -> str:
        print("  $", " ".join(command)[:100], flush=True)
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    run(python, "-m", "venv", "env")
    bin = folder / "env" / "bin"
    pip = (str(bin / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", str(CONSTRAINTS), f"{wheel}[train]")
    tokenry = str(bin / "tokenry")
    home = run(str(bin / "python"), "-c", "import tokenry; print(tokenry.__file__)")
    assert Path(home.strip()).is_relative_to(folder), home
    assert (Path(home.strip()).parent / "py.typed").is_file()
    assert run(str(bin / "python"), "-m", "tokenry", "--version").startswith("tokenry ")

    papers = json.loads(run(tokenry, "papers", "--json"))
    assert sum(row["held"] is not None for row in papers) > 50, "the wheel has no results"
    assert "tdpo" in run(tokenry, "objectives")
    text = "The capital of France is Berlin."
    inspected = json.loads(run(tokenry, "inspect", text, "--json"))
    assert "".join(row["token"] for row in inspected["tokens"]) == text
    how = ("--json-schema", json.dumps(CITY), "-t", "0", "--cache", "h2o:64")
    written = json.loads(run(tokenry, "generate", "A city of France as JSON: ", *how))
    assert written["city"] in CITY["properties"]["city"]["enum"]

    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    (folder / "two.yaml").write_text("max_steps: 2\nper_device_train_batch_size: 2\n")
    what = ("--objective", "dpo", "-d", "pairs.jsonl", "-c", "two.yaml", "--lora")
    record = json.loads(run(tokenry, "train", *what, "-o", "trained", "--json"))
    assert (record["state"], record["steps"]) == ("finished", 2), record
    assert (folder / "trained" / "adapter_config.json").is_file()


def main(wheel: Path, versions: list[str]) -> int:
    tried = 0
    for version in versions:
        python = interpreter(version)
        if python is None:
            print(f"Python {version}: skipped, it is not on this machine")
            continue
        print(f"Python {version}: {python}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"tokenry-{version}-") as folder:
            try_wheel(wheel, python, Path(folder))
        tried += 1
        print(f"Python {version}: the wheel works", flush=True)
    return 0 if tried else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
