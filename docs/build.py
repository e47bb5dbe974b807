"""Builds docs/gallery.md from the results of the reproductions. `make docs` runs it."""

from pathlib import Path

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


def main() -> None:
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
