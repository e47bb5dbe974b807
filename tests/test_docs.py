"""Every command and every block of code in the README and the documentation runs as it stands.

The named models are a tiny one here (TOKENRY_HOME), and the folder holds the sample files that
`tokenry data copy` gives. What only a real model can do is run with it (marked `model`).
"""

import importlib.util
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tokenry.app.cli import main
from tokenry.core.extras import EXTRAS
from tokenry.papers import catalogue
from tokenry.tasks.samples import copy_samples

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{n}.md" for n in ("index", "house")), *GUIDES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return [code for name, code in BLOCK.findall(text) if name == language]


def commands(page):
    """The lines of the shell blocks, and the commands in the first column of a table."""
    lines = []
    for block in blocks(page, "bash"):
        lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"^\| `(tokenry [^`]*)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [line for line in lines if shlex.split(line, comments=True)]


# a tiny random model does not come to an end of these: they run with SmolLM2
TOO_HARD = ("users.json", "person.json", "melody:", "--python", "--without-letter")
DEEP = ("compress.md", "depth.md", "prefill.md")  # pages that speak of SmolLM2's 30 layers


def hard(line):
    return any(part in line for part in TOO_HARD)


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def tiny_model_of(tiny_tokenizer):
    """A tiny Llama of so many layers, whose vocabulary is the tiny tokenizer's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(layers):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tiny_tokenizer), num_hidden_layers=layers, hidden_size=32,
            intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
            initializer_range=0.3, max_position_embeddings=1024,
            bos_token_id=0, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def desk(request, tmp_path, monkeypatch, tiny_tokenizer, tiny_model_of):
    """A folder with the sample files, in which the named models are tiny."""
    page = request.node.callspec.params["page"]
    tiny = tiny_model_of(30 if page.name in DEEP else 3)
    home = tmp_path / "home"
    for model in ("smollm2", "gemma3-270m"):
        tiny.save_pretrained(home / "models" / model)
        tiny_tokenizer.save_pretrained(home / "models" / model)
    folder = tmp_path / "desk"
    copy_samples(folder)
    for code in blocks(page, "python") + blocks(page, "yaml"):
        saved = re.match(r"# (\w+\.(py|yaml))\n", code)  # the page says: save this as a file
        if saved and not (folder / saved[1]).exists():
            (folder / saved[1]).write_text(code, encoding="utf-8")
    shutil.copytree(home / "models" / "smollm2", folder / "path" / "to" / "finetuned")
    monkeypatch.setenv("TOKENRY_HOME", str(home))
    monkeypatch.chdir(folder)
    stored = {key: catalogue.read_result(key) for key in catalogue.papers()}
    monkeypatch.setattr(
        catalogue, "reproduce", lambda key, seed, scale: {"scale": scale} | stored[key]
    )
    monkeypatch.setattr("tokenry.app.demo.run.run", lambda output, model, seed: None)
    return folder


def run_line(line, monkeypatch):
    """Run a line of a shell, or check that it could be run where it takes minutes or a network."""
    line = re.sub(r"<\(.*?\)", "prefs.jsonl", line)  # a pipe of the shell
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[0] == "python" and Path(words[1]).is_file():
        runpy.run_path(words[1], run_name="__main__")
    elif words[0] == "python":
        program = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(word in program for word in words[2:] if word.startswith("--")), line
    elif words[0] == "pip":
        for extras in re.findall(r"tokenry[^\[]*\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= set(EXTRAS), line
    else:
        if words[:1] == ["cat"]:
            monkeypatch.setattr("sys.stdin", open(words[1], encoding="utf-8"))  # noqa: SIM115
            words = words[3:]
        words = words[: words.index(">")] if ">" in words else words
        if words[:3] == ["tokenry", "data", "copy"]:
            words += ["--output", "elsewhere"]  # they are here already
        assert words[0] == "tokenry", line
        return main(words[1:])
    return 0


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_every_command_runs(page, desk, capsys, monkeypatch):
    monkeypatch.setenv("TOKENRY_DEBUG", "1")
    for line in commands(page):
        if hard(line):
            continue
        assert run_line(line, monkeypatch) == 0, line
        captured = capsys.readouterr()
        if "tokenry" in line.split("#")[0].split() and "demo" not in line:
            assert captured.out.strip(), line


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_every_block_of_python_runs(page, desk):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), names)


@pytest.mark.model
@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page) if hard(line)])
def test_commands_that_need_a_real_model_run(line, smollm2, tmp_path, capsys, monkeypatch):
    copy_samples(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENRY_DEBUG", "1")
    assert run_line(line, monkeypatch) == 0
    assert capsys.readouterr().out.strip()


NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.mark.model
def test_the_readmes_example_prints_what_the_readme_says(capsys, smollm2):
    (program,), (shown,) = blocks(ROOT / "README.md", "python"), blocks(ROOT / "README.md", "text")
    exec(compile(program, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    values = [[float(value) for value in NUMBER.findall(text)] for text in (printed, shown)]
    assert values[0] == pytest.approx(values[1], rel=0.1, abs=2)


# --- how the documentation hangs together ---------------------------------------------------------


def navigated(entries):
    for entry in entries:
        for target in entry.values():
            yield from navigated(target) if isinstance(target, list) else [target]


def test_every_page_is_in_the_navigation_and_in_the_table_of_problems(build):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = set(navigated(yaml.safe_load(text)["nav"]))
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    written = {page for page in written if not page.startswith(("gallery/", "reference/"))}
    built = {"gallery/index.md", *(f"reference/{layer}.md" for layer in build.LAYERS)}
    assert pages == written | built
    which = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
    assert all(f"](guide/{guide.name})" in which for guide in GUIDES)


def test_the_methods_that_the_table_of_problems_names_exist():
    from tokenry.learn.objective import objective

    which = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
    third = which.split("## The model should")[1].split("## What does")[0]
    names = re.findall(r"`([a-z-]+[a-z])`", third)
    assert len(names) > 10
    assert set(names) <= set(objective.names()) | {"--objective"}
    import typer

    from tokenry.app.cli import app

    verbs = typer.main.get_command(app).commands
    options = {option for verb in verbs.values() for p in verb.params for option in p.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", which)) <= options


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "docs" / "which.md"]:
        for target in re.findall(r"\]\(([^):#]+\.md)\)", page.read_text(encoding="utf-8")):
            file = page.parent / target
            assert file.exists() or file.parent.name == "gallery", (page, target)


@pytest.fixture
def build(monkeypatch, tmp_path):
    """docs/build.py, which writes its pictures elsewhere."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "GALLERY", tmp_path)
    return module


def test_the_gallery_has_an_index_and_a_page_for_each_paper(build, monkeypatch, tmp_path):
    index = "\n".join(build.index())
    for key, paper in catalogue.papers().items():
        assert index.count(f"]({key}.md)") == 1
        lines = build.page(key, draw=False)
        assert lines[0] == f"# {paper.title}"
        assert any(paper.claim in line for line in lines)
    assert len(build.index()) < 200
    record = catalogue.reproduce("tdpo", seed=1, scale="smoke")
    monkeypatch.setattr(catalogue, "read_result", lambda key, scale="full": record)
    page = "\n".join(build.page("tdpo", draw=True))
    assert "![What was measured" in page
    assert all(check["text"] in page for check in record["checks"])
    assert "**At a larger scale: " in page
    assert "tdpo2:0.1" in (tmp_path / "tdpo.svg").read_text()


def test_the_tables_of_methods_and_roles_are_those_of_the_registries(build):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert build.with_methods(readme) == readme, "run `python docs/build.py`"
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert build.with_roles(contributing) == contributing, "run `python docs/build.py`"
    policies = build.POLICIES.read_text(encoding="utf-8")
    assert build.with_policies(policies) == policies, "run `python docs/build.py`"
    for paper in catalogue.papers().values():
        assert paper.number is None or f"/{paper.arxiv})" in readme, paper.key


def test_the_reference_has_every_module_that_says_what_it_is(build):
    page = "\n".join(build.reference("decode"))
    assert "## `samplers`" in page
    assert page.count("::: tokenry.decode.samplers.awrs\n") == 1
    assert "__init__" not in page
