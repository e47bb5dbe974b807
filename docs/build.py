"""Builds docs/gallery/ and docs/guide/objectives.md from results/*.json. `make docs` runs it."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenry.app.commands.objectives import listing
from tokenry.learn.objective import objective
from tokenry.papers import catalogue

FOLDER = Path(__file__).parent
GALLERY = FOLDER / "gallery"


def figure(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def cell(text: str) -> str:
    """A text in a table of Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")


def verdict(result: dict[str, Any] | None) -> str:
    return "not run" if result is None else "held" if result["held"] else "not held"


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
    lines += [f"**{verdict(result).capitalize()}** at this scale: {result['needs']}.", ""]
    if result["reason"]:
        lines += [result["reason"], ""]
    if draw and drawn(result, GALLERY / f"{key}.svg"):
        lines += [f"![What was measured, by unit; one dot a seed]({key}.svg)", ""]
    lines += ["| measured | value | seed |", "|---|---|---|"]
    for row in result["measurements"]:
        seed = "" if row["seed"] is None else row["seed"]
        lines.append(f"| {cell(row['label'])} | {figure(row['value'], row['unit'])} | {seed} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    command = f"tokenry reproduce {key} --seed {result['seed']}"
    lines += ["", f"`{command}`, {result['seconds']} s with {versions}.", ""]
    return lines


def drawn(result: dict[str, Any], file: Path) -> bool:
    """One panel for each unit that has two labels or more, a row for each label, a dot for each
    seed; whether there was anything to draw."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    units: dict[str, dict[str, list[float]]] = {}
    for row in result["measurements"]:
        units.setdefault(row["unit"], {}).setdefault(row["label"], []).append(row["value"])
    panels = {unit: labels for unit, labels in units.items() if len(labels) > 1}
    if not panels:
        return False
    heights = [len(labels) + 1.5 for labels in panels.values()]
    with rc_context({"svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(7.2, 0.22 * sum(heights) + 0.4), layout="constrained")
        axes = picture.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axis, (unit, labels) in zip(axes, panels.items(), strict=True):
            for place, values in enumerate(labels.values()):
                axis.plot(values, [place] * len(values), "o", ms=4, alpha=0.7, color="#4053d3")
            names = [name if len(name) < 60 else name[:59] + "…" for name in labels]
            axis.set_yticks(range(len(labels)), names)
            axis.set_ylim(len(labels) - 0.5, -0.5)
            axis.set_xlabel(unit or "no unit")
            axis.grid(axis="x", lw=0.4, alpha=0.5)
            axis.spines[["top", "right"]].set_visible(False)
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


def main(draw: bool = True) -> None:
    FOLDER.joinpath("guide", "objectives.md").write_text("\n".join(objectives_page()))
    shutil.rmtree(GALLERY, ignore_errors=True)
    GALLERY.mkdir()
    GALLERY.joinpath("index.md").write_text("\n".join(index()))
    for key in catalogue.papers():
        GALLERY.joinpath(f"{key}.md").write_text("\n".join(page(key, draw)))


if __name__ == "__main__":
    main()
