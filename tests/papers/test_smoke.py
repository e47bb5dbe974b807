"""Every reproduction at smoke scale: its outcome has the right form. Verdicts are not looked at."""

import json
import math

import pytest

from tokenry.papers import catalogue


@pytest.mark.parametrize("key", catalogue.papers())
def test_a_reproduction_has_checks_measurements_and_pictures(key, tmp_path):
    record = catalogue.reproduce(key, seed=1, scale="smoke")
    again = json.loads(catalogue.write_result(record, tmp_path).read_text())
    assert again["scale"] == "smoke"
    assert again["verdict"] in ("held", "not held", "undecided")
    assert again["held"] == (again["verdict"] == "held")
    assert again["checks"]
    for check in again["checks"]:
        true, count = check["seeds"]
        assert check["text"].strip()
        assert 0 <= true <= count
        assert 0 <= check["sure"] <= 1
    labels = [(row["label"], row["seed"]) for row in again["measurements"]]
    assert labels
    assert len(labels) == len(set(labels)), "a label was measured twice with one seed"
    assert all(isinstance(row["value"], float) and not math.isnan(row["value"])
               for row in again["measurements"])  # fmt: skip
    assert again["plots"]
    for plot in again["plots"]:
        assert plot["series"]
        assert all(points for points in plot["series"].values())


def test_the_pictures_of_a_record_are_drawn(tmp_path):
    from tokenry.lab.plots import Plot, draw

    figure = pytest.importorskip("matplotlib.figure").Figure()
    record = catalogue.reproduce("tdpo", seed=1, scale="smoke")
    draw([Plot.of(plot) for plot in json.loads(json.dumps(record["plots"]))], figure)
    assert len(figure.axes) == len(record["plots"])
