"""The figure and the tables of "What makes decoding faster on my machine".

    python benchmarks/speculation.py --json > results/benchmark-speculation.json
    python docs/examples/decoding.py [--rows FILE] [--figure docs/images/decoding.png]

Left, the milliseconds of a pass by its tokens, with the plain kernels and with those for few rows.
Right, the speed of every drafter against greedy decoding, by the kind of prompt. The tables are
printed as Markdown.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path("results/benchmark-speculation.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/decoding.png"))
    chosen = parser.parse_args()
    rows = json.loads(chosen.rows.read_text(encoding="utf-8"))
    passes = {
        int(row["name"].split()[3]): (row["peer"], row["ours"])
        for row in rows
        if row["name"].startswith("a pass over")
    }
    speeds: dict[str, dict[str, float]] = {}
    lookup: dict[str, float] = {}
    tokens: dict[str, dict[str, float]] = {}
    for row in rows:
        draft, _, rest = row["name"].partition(": ")
        kind, _, peer = rest.partition(" vs ")
        if row["unit"] == "x speed" and peer == "greedy":
            speeds.setdefault(draft, {})[kind] = row["ratio"]
        elif row["unit"] == "x speed" and kind == "all prompts":
            lookup[draft] = row["ratio"]
        elif row["unit"] == "tokens/pass":
            tokens.setdefault(draft, {})[kind] = row["ours"]
    print_table(passes, speeds, lookup, tokens)
    draw(passes, speeds, chosen.figure)


def print_table(
    passes: dict[int, tuple[float, float]],
    speeds: dict[str, dict[str, float]],
    lookup: dict[str, float],
    tokens: dict[str, dict[str, float]],
) -> None:
    print("| tokens in a pass | " + " | ".join(map(str, passes)) + " |")
    print("|---" * (len(passes) + 1) + "|")
    for name, at in (("plain kernels, ms", 0), ("packed kernels, ms", 1)):
        print(f"| {name} | " + " | ".join(f"{pair[at]:.0f}" for pair in passes.values()) + " |")
    kinds = list(next(iter(speeds.values())))
    print("\n| drafter | " + " | ".join(kinds) + " | against prompt lookup |")
    print("|---" * (len(kinds) + 2) + "|")
    for draft, found in speeds.items():
        cells = []
        for kind in kinds:
            per_pass = tokens[draft].get(kind)
            cells.append(f"{found[kind]:.2f}×" + (f" ({per_pass:.2f})" if per_pass else ""))
        print(f"| `{draft}` | " + " | ".join(cells) + f" | {lookup[draft]:.2f}× |")


def draw(
    passes: dict[int, tuple[float, float]], speeds: dict[str, dict[str, float]], path: Path
) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1, 2))
    for name, at in (("plain kernels", 0), ("packed kernels", 1)):
        left.plot(list(passes), [pair[at] for pair in passes.values()], marker="o", label=name)
    left.set(xlabel="tokens in a pass", ylabel="ms", ylim=0)
    left.set_xscale("log", base=2)
    left.set_xticks(list(passes), [str(size) for size in passes])
    left.legend()
    width = 0.8 / len(speeds)
    for number, (draft, found) in enumerate(speeds.items()):
        places = [kind + (number + 0.5) * width - 0.4 for kind in range(len(found))]
        right.bar(places, list(found.values()), width, label=draft)
    kinds = [kind.replace(" ", "\n") for kind in next(iter(speeds.values()))]
    right.set_xticks(range(len(kinds)), kinds)
    right.axhline(1, color="grey", linewidth=0.8)
    right.set(ylabel="speed, greedy decoding = 1")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(speeds), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
