"""Expansion: the best nodes, no more than pay, calibrated by what came true."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.decode.speculation.tree import TokenTree, best_size, path_probabilities, seconds
from tokenry.decode.speculation.tree_expansion import (
    MOST_NODES,
    Calibration,
    Guess,
    expand_tree,
    preorder,
)
from tokenry.decode.speculation.verify import Accepted


class Table:
    """Fixed guesses per cursor; the cursor after a guess is its path."""

    def __init__(self, guesses):
        self.table = guesses

    def root(self):
        return ()

    def guesses(self, cursor):
        return [
            Guess(token, prob, "kind", cursor) for token, prob in self.table.get(cursor, {}).items()
        ]

    def after(self, guess):
        return (*guess.cursor, guess.token)


def drafted(table, budget=9, **options):
    return expand_tree(7, Table(table), Calibration(), budget, **options)


def worth(tree):
    rates = [1.0, *(guess.prob for guess in tree.notes[1:])]
    return path_probabilities(tree.parents, rates)[1:]


PROBS = st.lists(st.sampled_from([0.05, 0.2, 0.3, 0.45, 0.6, 0.9]), min_size=6, max_size=6)


@given(PROBS, st.integers(0, 6))
def test_no_other_tree_of_that_many_nodes_expects_more(probs, nodes):
    table = {
        (): {1: probs[0], 2: probs[1]},
        (1,): {1: probs[2], 3: probs[3]},
        (2,): {4: probs[4]},
        (1, 1): {5: probs[5]},
    }
    paths = {(*cursor, token): p for cursor, row in table.items() for token, p in row.items()}

    def value(path):
        return paths[path] * (value(path[:-1]) if len(path) > 1 else 1.0)

    best = 0.0
    for chosen in itertools.combinations(paths, nodes):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            best = max(best, sum(map(value, chosen)))
    tree = drafted(table, nodes=nodes)
    assert len(tree) == 1 + nodes
    assert sum(worth(tree)) == pytest.approx(best)


def test_the_size_is_the_one_that_pays():
    table = {(): {1: 0.8, 2: 0.1}, (1,): {1: 0.8}, (1, 1): {1: 0.8}}
    latency = {1: 1.0, 2: 1.01, 4: 1.6, 8: 3.0}
    size = best_size([0.8, 0.64, 0.512, 0.1], latency)
    assert len(drafted(table, latency=latency)) == size + 1
    assert len(drafted(table, latency={1: 1.0, 2: 2.0})) == 1
    assert len(drafted(table, latency={})) == 5  # passes cost the same: all of them


def test_the_budget_and_the_limit_are_kept():
    table = {(1,) * depth: {1: 0.99} for depth in range(99)}
    assert max(drafted(table, budget=3, nodes=50).depths) == 3
    assert len(drafted(table, budget=0, nodes=50)) == 1
    assert len(drafted(table, budget=99, latency={1: 1.0, 2: 1.0})) == MOST_NODES + 1
    with pytest.raises(InputError, match="nodes is -1"):
        drafted(table, nodes=-1)


def test_the_likeliest_path_lies_at_the_front():
    table = {(): {1: 0.6, 2: 0.5}, (1,): {3: 0.5, 4: 0.4}, (2,): {5: 0.9}, (1, 3): {6: 0.9}}
    tree = drafted(table, nodes=6)
    assert tree.tokens == (7, 1, 3, 6, 4, 2, 5)
    assert [note.token for note in tree.notes[1:]] == list(tree.tokens[1:])
    assert preorder(TokenTree((0, 1, 2, 3), (-1, 0, 0, 1))) == [0, 1, 3, 2]


def test_rates_follow_what_came_true():
    calibration, sure = Calibration(strength=4.0, fade=1.0), Guess(3, 0.5, "a", None)
    assert calibration.rate(sure) == 0.5
    for hit in (True, True, True, False):
        calibration.count(sure, hit)
    assert calibration.rate(sure) == pytest.approx(0.5 * (3 + 4) / (2 + 4))
    assert calibration.rate(sure._replace(kind="b")) == 0.5
    assert calibration.rate(sure._replace(prob=0.9)) == 0.99  # never certain


def test_only_guesses_below_accepted_nodes_are_counted():
    guesses = [None, *(Guess(token, 0.5, token, None) for token in (1, 2, 3, 4))]
    tree = TokenTree((7, 1, 2, 3, 4), (-1, 0, 0, 1, 2), tuple(guesses))
    calibration = Calibration(fade=1.0)
    calibration.learn(tree, Accepted([0, 1], [1, 9]))
    assert calibration.hits == {1: 1, 2: 0, 3: 0}  # 4 hangs below a rejected node
    assert calibration.expected == {1: 0.5, 2: 0.5, 3: 0.5}


def test_selecting_and_limiting_keep_a_trees_notes():
    tree = TokenTree((7, 1, 2, 3), (-1, 0, 0, 1), ("r", "a", "b", "c"))
    assert tree.limited(1) == TokenTree((7, 1, 2), (-1, 0, 0), ("r", "a", "b"))
    assert tree.select([0, 2]) == TokenTree((7, 2), (-1, 0), ("r", "b"))


@given(PROBS, st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 2.0]), min_size=4, max_size=4))
def test_expansion_stops_without_changing_the_tree(probs, steps):
    """It stops as soon as no more nodes can pay, and that is only there to save time."""
    sizes = (1, 2, 3, 4, 8)
    latency = dict(zip(sizes, itertools.accumulate(steps, initial=1.0), strict=True))
    table = {(): {1: probs[0], 2: probs[1]}, (1,): {1: probs[2], 3: probs[3]}, (2,): {4: probs[4]}}
    everything = drafted(table, nodes=5)
    values = sorted(worth(everything), reverse=True)
    expected = itertools.accumulate(values, initial=1.0)
    speeds = [tokens / seconds(latency, size) for size, tokens in enumerate(expected, start=1)]
    best = speeds.index(max(speeds))  # of equally fast ones the smallest
    assert best_size(values, latency) == best
    tree = drafted(table, latency=latency)
    assert sorted(worth(tree), reverse=True) == pytest.approx(values[:best])


def test_places_are_looked_up_no_further_than_pays():
    table = Table({(1,) * depth: {1: 0.9 if depth < 3 else 0.01, 2: 0.01} for depth in range(99)})
    asked = []
    after = table.after
    table.after = lambda guess: asked.append(guess) or after(guess)
    expand_tree(7, table, Calibration(), 99, latency={1: 1.0, 4: 1.1, 8: 2.0})
    assert len(asked) <= 4
