"""Builds what no one keeps by hand; `make docs` runs it.

docs/gallery/, docs/guide/objectives.md and the tables of docs/guide/policies.md from
results/*.json, docs/reference/ from the packages, and the README's table of methods from the roles.
"""

import importlib.util
import inspect
import json
import pkgutil
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from tokenry.app.commands.objectives import listing
from tokenry.core.registry import Role, roles
from tokenry.lab.plots import Plot
from tokenry.lab.plots import draw as draw_plots
from tokenry.lab.table import paired
from tokenry.learn.objective import objective
from tokenry.papers import catalogue
from tokenry.papers.base import Paper

FOLDER = Path(__file__).parent
GALLERY = FOLDER / "gallery"
REFERENCE = FOLDER / "reference"
README = FOLDER.parent / "README.md"
CONTRIBUTING = FOLDER.parent / "CONTRIBUTING.md"
POLICIES = FOLDER / "guide" / "policies.md"
POLICY_VARIANTS = FOLDER.parent / "results" / "policy-variants.json"
LAYERS = (
    "core",
    "text",
    "tasks",
    "codecs",
    "model",
    "decode",
    "measure",
    "learn",
    "lab",
    "serving",
)
METHODS = ("<!-- methods: written by docs/build.py -->\n", "<!-- end of methods -->\n")
ROLES = ("<!-- roles: written by docs/build.py -->\n", "<!-- end of roles -->\n")


def figure(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def cell(text: str) -> str:
    """A text in a table of Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")


def verdict(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not run"
    return result.get("verdict") or ("held" if result["held"] else "not held")


def index() -> list[str]:
    """A row for each paper, by what it is in the library."""
    lines = [
        "# Gallery of papers",
        "",
        "Each method has a page with its claim and what its reproduction measured on two processor",
        "cores. The pages are built from `results/*.json`, which `tokenry reproduce KEY` writes. A",
        "claim that does not hold at this scale is recorded as such, with the reason.",
        "",
    ]
    by_role: dict[str, list[str]] = {}
    for key, paper in catalogue.papers().items():
        row = [f"[{key}]({key}.md)", cell(paper.title), verdict(catalogue.read_result(key))]
        by_role.setdefault(paper.role, []).append("| " + " | ".join(row) + " |")
    for role, rows in by_role.items():
        lines += [f"## {role.capitalize()}", "", "| key | paper | claim |", "|---|---|---|", *rows]
        lines.append("")
    return lines


def page(key: str, draw: bool) -> list[str]:
    """Everything about one paper; with a figure of its measurements."""
    paper, result = catalogue.paper(key), catalogue.read_result(key)
    lines = [
        f"# {paper.title}",
        "",
        f"`{key}` · {paper.role} · [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})",
        "",
        f"**Claim.** {paper.claim}",
        "",
    ]
    if result is None:
        return [*lines, "Not reproduced yet.", ""]
    lines += [f"**{verdict(result).capitalize()}** at this scale.", ""]
    lines += checks(result)
    if result["reason"]:
        lines += [result["reason"], ""]
    large = catalogue.read_result(key, "large")
    if large is not None:
        lines += [f"**At a larger scale: {verdict(large)}.**", "", *checks(large)]
        lines += [large["reason"] or "", ""]
    if draw and drawn(result, GALLERY / f"{key}.svg"):
        lines += [f"![What was measured]({key}.svg)", ""]
    lines += ["| measured | value | seed |", "|---|---|---|"]
    for row in result["measurements"]:
        seed = "" if row["seed"] is None else row["seed"]
        lines.append(f"| {cell(row['label'])} | {figure(row['value'], row['unit'])} | {seed} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    command = f"tokenry reproduce {key} --seed {result['seed']}"
    lines += ["", f"`{command}`, {result['seconds']} s with {versions}.", ""]
    return lines


def checks(result: dict[str, Any]) -> list[str]:
    """A row for each inequality that the claim needs."""
    if not result.get("checks"):
        return [result["needs"] + ".", ""]
    lines = [
        "| the claim needs that | verdict | true in | margin | surely |",
        "|---|---|---|---|---|",
    ]
    for row in result["checks"]:
        true, count = row["seeds"]
        margin = f"{row['margin']:.3g}" + (f" ± {row['error']:.2g}" if count > 1 else "")
        cells = (row["text"], row["verdict"], f"{true} of {count}", margin, f"{row['sure']:.0%}")
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    return [*lines, ""]


def drawn(result: dict[str, Any], file: Path) -> bool:
    """The record's pictures side by side; whether there are any."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    plots = [Plot.of(plot) for plot in result.get("plots", ())]
    if not plots:
        return False
    with rc_context({"svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(4.2 * len(plots), 3.4), layout="constrained")
        draw_plots(plots, picture)
        picture.savefig(file, format="svg")
    return True


WORLDS = {
    "toy": ("reward", "kl", "entropy"),
    "smollm2": ("accuracy", "margin", "kl"),
}


def objectives_page() -> list[str]:
    """Every objective: what it is, what it needs, and the table of all with one budget."""
    lines = [
        "# Objectives",
        "",
        "What `tokenry train --objective NAME` can minimise. The columns say what is computed of",
        "the policy and the frozen models, and what you bring beside preference pairs. `tokenry",
        "objectives` shows the same with all hyper-parameters.",
        "",
        "| name | what it is | needs | bring | paper |",
        "|---|---|---|---|---|",
    ]
    numbers = {entry.key: entry.paper for entry in objective}
    arxiv = {paper.number: paper.arxiv for paper in catalogue.papers().values()}
    arxiv[None] = ""  # baselines
    for row in listing():
        link = arxiv.get(numbers[row["name"]], "")
        link = f"[{link}](https://arxiv.org/abs/{link})" if link else ""
        cells = [
            f"`{row['name']}`",
            row["summary"],
            ", ".join(row["needs"]),
            "<br>".join(f"`{option}`" for option in row["bring"]),
            link,
        ]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    folder = FOLDER.parent / "results"
    files = {world: folder / f"objectives-{world}.json" for world in WORLDS}
    measured = {world: json.loads(f.read_text()) for world, f in files.items() if f.is_file()}
    if not measured:
        return lines
    lines += [
        "",
        "## All of them with one budget",
        "",
        "`python benchmarks/objectives.py`: each objective with its defaults, the same steps,",
        "batches, learning rate and seed; nothing is tuned for any of them, so this shows what",
        "they do out of the box, not how good they can be. *Toy world*: true reward, KL from the",
        "reference and entropy (nats) of fresh samples. *SmolLM2*: implicit reward accuracy and",
        "margin on the 12 held-out pairs, KL in nats per token. Objectives that learn a value",
        "model, a control prompt or heads beside the policy (tvm, meet, mah-dpo) leave little of",
        "it in the policy itself.",
        "",
    ]
    worlds = [name for name in WORLDS if name in measured]
    for name in worlds:
        budget = ", ".join(f"{k} {v}" for k, v in measured[name]["budget"].items())
        lines.append(f"- {name}: {budget}, seed {measured[name]['seed']}")
    titles = [f"{world}: {field}" for world in worlds for field in WORLDS[world]]
    lines += ["", "| name | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for key in ["reference", *objective.names()]:
        cells = []
        for world in worlds:
            table = measured[world]
            row = table["reference"] if key == "reference" else table["rows"].get(key, {})
            cells += [f"{row[field]:.3g}" if field in row else "" for field in WORLDS[world]]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return [*lines, ""]


ENUMERATED = ("cosine", "length", "spread")
TRAINED = ("pass@1", "pass@8", "entropy", "length", "tokens to 60 %", "roughness")


def enumerated_policies(record: dict[str, Any]) -> list[str]:
    """A row for each policy objective: its expected update, exactly."""
    titles = [f"{measure}, {which}" for which in ("on", "off") for measure in ENUMERATED]
    lines = ["| objective | " + " | ".join(titles) + " |", "|---" * 7 + "|"]
    for key, row in record["rows"].items():
        values = row["enumerated"]
        cells = [f"{values[f'{w}-policy {m}']:.3g}" for w in ("on", "off") for m in ENUMERATED]
        lines.append(f"| `{key}` | " + " | ".join(cells) + " |")
    return lines


def trained_policies(record: dict[str, Any]) -> list[str]:
    """A row for each policy objective: what it came to, beside GRPO."""
    lines = ["| objective | " + " | ".join(TRAINED) + " | rate |"]
    lines.append("|---" * (2 + len(TRAINED)) + "|")
    before, rows = record["before"], record["rows"]
    start = [f"{fmean(before[name]):.3g}" if name in before else "" for name in TRAINED]
    lines.append("| before | " + " | ".join(start) + " | |")
    for key, row in rows.items():
        cells = []
        for measure in TRAINED:
            own, other = row["trained"][measure], rows["grpo"]["trained"][measure]
            cells.append(f"{fmean(own):.3g}" + ("" if key == "grpo" else beside(own, other)))
        rate = row["trained"]["learning rate"]
        lines.append(f"| `{key}` | " + " | ".join(cells) + f" | {rate:g} |")
    return lines


def beside(own: list[float], other: list[float]) -> str:
    """The paired difference with its 95 % interval, as text."""
    evidence = paired(own, other)
    return f" ({evidence.mean:+.2g} ± {evidence.within(0.95):.1g})"


def methods() -> list[str]:
    """A row for each role with its methods, then for what the other papers are."""
    papers = catalogue.papers()
    numbered = {paper.number: paper for paper in papers.values() if paper.number is not None}
    lines = ["| role | what it is | methods |", "|---|---|---|"]
    told = set()
    for role in roles():
        cells = []
        for entry in role:
            paper = numbered.get(entry.paper)
            told.add(entry.paper)
            cells.append(f"`{entry.key}`" if paper is None else linked(f"`{entry.key}`", paper))
        lines.append(f"| {role.name} | {cell(sentence(role))} | {', '.join(cells)} |")
    others: dict[str, list[str]] = {}
    for paper in papers.values():
        if paper.number is not None and paper.number not in told:
            others.setdefault(paper.role, []).append(linked(f"`{paper.key}`", paper))
    names = [f"| {role} | | {', '.join(links)} |" for role, links in sorted(others.items())]
    return [*lines, *names]


def role_places() -> list[str]:
    """A row for each role: where its Protocol and its methods are, and what it is."""
    lines = ["| role | its Protocol | its methods | what it is |", "|---|---|---|---|"]
    for role in roles():
        path = role.protocol.__module__.removeprefix("tokenry.").replace(".", "/")
        folders = (name.removeprefix("tokenry.").replace(".", "/") for name in role.packages)
        places = ", ".join(f"`{name}`" for name in folders)
        lines.append(f"| {role.name} | `{path}.py` | {places} | {cell(sentence(role))} |")
    return lines


def sentence(role: Role) -> str:
    """What a role is, as its Protocol says first."""
    summary = inspect.getdoc(role.protocol) or ""
    first = " ".join(summary.partition("\n\n")[0].split()).partition(". ")[0]
    return first.removeprefix("The role: ").rstrip(".,")


def linked(text: str, paper: Paper) -> str:
    return f"[{text}](https://arxiv.org/abs/{paper.arxiv})"


def with_table(text: str, marks: tuple[str, str], lines: list[str]) -> str:
    """A page with the lines between the marks as they are now."""
    before, start, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    return before + start + "\n".join(lines) + "\n" + end + after


def with_methods(text: str) -> str:
    """The README with its table of methods as the roles have it."""
    return with_table(text, METHODS, methods())


def with_roles(text: str) -> str:
    """CONTRIBUTING with its table of roles."""
    return with_table(text, ROLES, role_places())


def with_policies(text: str) -> str:
    """The page about policy objectives with both tables as they were measured."""
    record = json.loads(POLICY_VARIANTS.read_text(encoding="utf-8"))
    for name, lines in (("enumerated", enumerated_policies), ("trained", trained_policies)):
        marks = (f"<!-- {name}: written by docs/build.py -->\n", f"<!-- end of {name} -->\n")
        text = with_table(text, marks, lines(record))
    return text


def reference(layer: str) -> list[str]:
    """Every module of a layer that says what it is, below the folder that it is in."""
    root = importlib.import_module(f"tokenry.{layer}")
    lines, folder = [f"# `tokenry.{layer}`", ""], layer
    names = sorted(
        module.name for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
    )
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        file = Path(importlib.util.find_spec(name).origin)  # type: ignore[arg-type, union-attr]
        if file.stat().st_size == 0 or file.name == "__init__.py":
            continue
        inside = name.rpartition(".")[0].removeprefix("tokenry.")
        if inside != folder:
            folder = inside
            lines += [f"## `{folder.removeprefix(f'{layer}.')}`", ""]
        lines += [f"::: {name}", ""]
    return lines


def main(draw: bool = True) -> None:
    shutil.rmtree(REFERENCE, ignore_errors=True)
    REFERENCE.mkdir()
    for layer in LAYERS:
        REFERENCE.joinpath(f"{layer}.md").write_text("\n".join(reference(layer)))
    pages = ((README, with_methods), (CONTRIBUTING, with_roles), (POLICIES, with_policies))
    for file, written in pages:
        file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
    FOLDER.joinpath("guide", "objectives.md").write_text("\n".join(objectives_page()))
    shutil.rmtree(GALLERY, ignore_errors=True)
    GALLERY.mkdir()
    GALLERY.joinpath("index.md").write_text("\n".join(index()))
    for key in catalogue.papers():
        GALLERY.joinpath(f"{key}.md").write_text("\n".join(page(key, draw)))


if __name__ == "__main__":
    main()
