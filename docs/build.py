"""Builds docs/gallery.md and docs/guide/objectives.md from results/*.json. `make docs` runs it."""

import json
from pathlib import Path

from tokenry.app.commands.objectives import listing
from tokenry.core.registry import objective
from tokenry.papers import catalogue


def figure(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def section(key: str) -> list[str]:
    paper, result = catalogue.paper(key), catalogue.read_result(key)
    lines = [
        f"## {paper.title}",
        "",
        f"`{key}` · {paper.role} · [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})",
        "",
        f"**Claim.** {paper.claim}",
        "",
    ]
    if result is None:
        return [*lines, "Not reproduced yet.", ""]
    verdict = "Held" if result["held"] else "Not held"
    lines += [f"**{verdict}** at this scale: {result['needs']}.", ""]
    if result["reason"]:
        lines += [result["reason"], ""]
    lines += ["| measured | value | seed |", "|---|---|---|"]
    for row in result["measurements"]:
        seed = "" if row["seed"] is None else row["seed"]
        label = row["label"].replace("|", "\\|")
        lines.append(f"| {label} | {figure(row['value'], row['unit'])} | {seed} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    command = f"tokenry reproduce {key} --seed {result['seed']}"
    lines += ["", f"`{command}`, {result['seconds']} s with {versions}.", ""]
    return lines


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
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    folder = Path(__file__).parents[1] / "results"
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


def main() -> None:
    Path(__file__).parent.joinpath("guide", "objectives.md").write_text(
        "\n".join(objectives_page())
    )
    lines = [
        "# Gallery of papers",
        "",
        "Each method, its claim, and what its reproduction measured on two processor cores. This",
        "page is built from `results/*.json`, which `tokenry reproduce KEY` writes.",
        "",
    ]
    for key in catalogue.papers():
        lines += section(key)
    Path(__file__).with_name("gallery.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
