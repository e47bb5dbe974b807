"""The guide's table of token reductions: every method is where it says, on axes that it knows."""

import importlib
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "reduction.md"
FAMILIES = {"select", "merge", "pool", "recompute", "dynamic"}


def test_every_method_is_where_the_table_says():
    lines = [line for line in GUIDE.read_text().splitlines() if "in the library" in line]
    assert len(lines) == 1
    titles = [cell.strip() for cell in lines[0].strip("| ").split("|")]
    table = GUIDE.read_text().split(lines[0])[1].split("\n\n")[0].splitlines()[2:]
    rows = [
        dict(zip(titles, (cell.strip() for cell in line.strip("| ").split("|")), strict=True))
        for line in table
    ]
    assert len(rows) >= 11
    for row in rows:
        module, _, name = row["in the library"].strip("`").rpartition(".")
        assert hasattr(importlib.import_module(f"tokenry.{module}"), name), row["method"]
        assert row["family"] in FAMILIES
        assert row["reversible"] in ("yes", "no")
        assert all(row.values())
    assert {row["family"] for row in rows} == FAMILIES
