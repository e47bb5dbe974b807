"""Verification: the walk, and the distribution of what it gives."""

import math
from collections import Counter

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import draw, verify_greedy, verify_sampling

#   0 -> 1 (token 1) -> 3 (2), 4 (1)
#   0 -> 2 (token 2) -> 5 (3)
TREE = TokenTree((0, 1, 2, 2, 1, 3), (-1, 0, 0, 1, 1, 2))


def one_hot(tokens, size=5):
    return torch.eye(size)[torch.tensor(tokens)]


@pytest.mark.parametrize(
    ("says", "path", "tokens"),
    [
        ([4, 0, 0, 0, 0, 0], [0], [4]),
        ([1, 2, 0, 4, 0, 0], [0, 1, 3], [1, 2, 4]),
        ([1, 1, 0, 4, 3, 0], [0, 1, 4], [1, 1, 3]),
        ([2, 2, 3, 0, 0, 2], [0, 2, 5], [2, 3, 2]),
        ([2, 2, 4, 0, 0, 2], [0, 2], [2, 4]),
    ],
)
def test_greedy_takes_the_models_own_path_and_a_bonus_token(says, path, tokens):
    assert verify_greedy(TREE, one_hot(says)) == (path, tokens)


def test_of_two_equal_guesses_the_first_counts():
    tree = TokenTree((0, 3, 3, 4), (-1, 0, 0, 1))
    assert verify_greedy(tree, one_hot([3, 4, 1, 2])).path == [0, 1, 3]


def rejection_distribution(tree, probs):
    """Law of (path, bonus) under the rule with rejections: accept a child c with probability
    p(c), else set p(c) to 0, renormalise, and go on with the next child."""
    distribution = Counter()

    def at(node, path, weight):
        p = probs[node].clone()
        left = weight
        for child in range(1, len(tree)):
            if tree.parents[child] == node:
                accept = float(p[tree.tokens[child]])
                at(child, (*path, child), left * accept)
                left *= 1 - accept
                p[tree.tokens[child]] = 0
                p /= p.sum()
        for token, chance in enumerate(p.tolist()):
            distribution[path, token] += left * chance

    at(0, (0,), 1.0)
    return distribution


def walk_distribution(tree, probs):
    """The same by the rule of this library: draw x, follow the child that is x."""
    distribution = Counter()

    def at(node, path, weight):
        for token, chance in enumerate(probs[node].tolist()):
            child = tree.children.get((node, token))
            if child is None:
                distribution[path, token] += weight * chance
            else:
                at(child, (*path, child), weight * chance)

    at(0, (0,), 1.0)
    return distribution


def test_one_draw_has_the_distribution_of_the_rejection_rule():
    probs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    ours, theirs = walk_distribution(TREE, probs), rejection_distribution(TREE, probs)
    assert sum(ours.values()) == pytest.approx(1)
    for outcome in ours | theirs:
        assert ours[outcome] == pytest.approx(theirs[outcome], abs=1e-12)


DRAWS = 6_000
# Hoeffding: one frequency is off by more with probability 2 exp(-2 DRAWS TOLERANCE²) = 5e-9;
# fewer than 100 are checked, a false alarm has probability below 1e-6
TOLERANCE = math.sqrt(math.log(2 / 5e-9) / (2 * DRAWS))


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_sampled_paths_follow_the_enumerated_distribution(temperature):
    logits = 1.5 * torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    exact = walk_distribution(TREE, (logits / temperature).softmax(-1))
    generator = torch.Generator().manual_seed(2)
    found = Counter()
    for _ in range(DRAWS):
        path, tokens = verify_sampling(TREE, logits, temperature, generator=generator)
        found[tuple(path), tokens[-1]] += 1
        assert tuple(tokens[:-1]) == tuple(TREE.tokens[node] for node in path[1:])
    for outcome in exact | found:
        assert abs(found[outcome] / DRAWS - exact[outcome]) < TOLERANCE


def test_temperature_zero_is_greedy():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    assert verify_sampling(TREE, logits, 0.0) == verify_greedy(TREE, logits)


def test_top_p_draws_from_the_smallest_sufficient_set():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    generator = torch.Generator().manual_seed(4)

    def drawn(top_p):
        return {draw(logits, 1.0, top_p, generator) for _ in range(300)}

    assert drawn(0.4) == drawn(0.499) == {1}
    assert drawn(0.6) == {1, 3}
    assert drawn(0.8) == {1, 2, 3}
    assert drawn(1.0) == {0, 1, 2, 3}  # the rarest is missed with probability 0.9^300 < 2e-14


def test_impossible_settings_are_named():
    with pytest.raises(InputError, match="temperature is -1"):
        draw(torch.zeros(3), -1)
    with pytest.raises(InputError, match="top_p"):
        draw(torch.zeros(3), 1.0, 0.0)
