from itertools import pairwise

import pytest
import torch
from torch import nn

from tokenry.core.errors import InputError
from tokenry.lab import toys
from tokenry.lab.plots import MOST, bars, curves, draw
from tokenry.lab.toys import fitted, trained
from tokenry.tasks.worlds.preference import PreferenceWorld
from tokenry.tasks.worlds.sparse_grammar import SparseGrammar


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    return tmp_path


def test_a_toy_is_trained_once_and_anew_for_another_recipe(elsewhere):
    calls = []

    def train(model):
        calls.append(1)
        with torch.no_grad():
            model.weight.fill_(len(calls))

    def build():
        return nn.Linear(2, 2)

    first, again = trained(build, train, "a", 0), trained(build, train, "a", 0)
    assert len(calls) == 1
    assert torch.equal(first.weight, again.weight)
    assert not again.weight.requires_grad
    assert trained(build, train, "a", 1).weight[0, 0] == 2
    assert not list(elsewhere.rglob("*.part"))


def test_a_recipe_says_what_it_is_made_from_or_is_refused(elsewhere, monkeypatch):
    world = SparseGrammar(seed=3)
    name = toys._digest(world)
    assert toys._digest(SparseGrammar(seed=3)) == name != toys._digest(SparseGrammar(seed=4))
    source = toys._source
    for changed in SparseGrammar, PreferenceWorld:  # the source of the world, or of what it extends
        monkeypatch.setattr(
            toys, "_source", lambda kind, c=changed: source(kind) + "x" * (kind is c)
        )
        assert toys._digest(world) != name
    with pytest.raises(InputError, match="give it a repr"):
        trained(lambda: nn.Linear(1, 1), lambda model: None, object())


def test_an_interrupted_training_leaves_nothing(elsewhere):
    def fail(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(lambda: nn.Linear(1, 1), fail)
    assert not [file for file in elsewhere.rglob("*") if file.is_file()]


def test_pictures_have_a_line_a_run_and_a_legend_entry_a_method():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    lines = {"dpo [0]": [(0, 1), (1, 2)], "dpo [1]": [(0, 2), (1, 3)], "tdpo": [(0, 0), (1, 4)]}
    heights = bars({"a": {"x": 1, "y": 2}, "b": {"y": 3}}, "height")
    draw([curves(lines, "steps", "reward", log="y"), heights], figure)
    left, right = figure.axes
    assert left.get_yscale() == "log"
    assert len(left.lines) == 3
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["dpo", "tdpo"]
    assert left.lines[0].get_color() == left.lines[1].get_color() != left.lines[2].get_color()
    assert [patch.get_height() for patch in right.patches] == [1, 2, 3]


def test_a_long_line_keeps_its_ends_and_its_shape():
    plot = curves({"a": [(step, step / 3) for step in range(1000)]}, "x", "y")
    points = plot.series["a"]
    assert len(points) == MOST
    assert (points[0], points[-1]) == ((0.0, 0.0), (999.0, 333.0))
    assert all(y == pytest.approx(x / 3, rel=1e-5) for x, y in points)
    assert max(b[0] - a[0] for a, b in pairwise(points)) <= 9  # 999 / 119, rounded


def test_a_fitted_toy_minimises_its_loss_and_is_kept(elsewhere):
    calls = []

    def loss(model, generator):
        calls.append(float(torch.rand((), generator=generator)))
        return (model.weight - 2).square().sum()

    def build():
        return nn.Linear(2, 2, bias=False)

    options = {"seed": 3, "steps": 60, "learning_rate": 0.2}
    first, again = fitted(build, loss, "a", **options), fitted(build, loss, "a", **options)
    torch.testing.assert_close(first.weight, torch.full((2, 2), 2.0), atol=0.1, rtol=0)
    assert again.weight.equal(first.weight)
    assert len(calls) == 60
    generator = torch.Generator().manual_seed(3)
    assert calls[:2] == [float(torch.rand((), generator=generator)) for _ in range(2)]
    fitted(build, loss, "a", **(options | {"steps": 1}))
    fitted(build, loss, "b", **options)
    assert len(calls) == 60 + 1 + 60
