"""DySpec: the values that trees are expanded by, the distribution of the text, and the draft
model's cache."""

import copy
import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.speculation.best_first import (
    ChildGuesses,
    TreeExpansion,
    affordable,
    best_first,
    by_level,
)
from tokenry.decode.speculation.draft_source import ModelSource
from tokenry.decode.speculation.dyspec import DraftMemory, DySpec
from tokenry.decode.speculation.rejection import acceptance, distribution_with_proposals
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree, best_size
from tokenry.decode.speculation.verify import Accepted, draw, walk
from tokenry.tasks.worlds.toy_lm import ToyLM

PROMPT = [5, 17, 9, 33, 21, 9, 40, 12, 3, 28, 51]


def child_guesses(q, tokens):
    """What drawing these tokens from q, in this order, tells `best_first` and `by_level`."""
    left, below = 1.0, ChildGuesses([], [], [], [])
    rest = torch.as_tensor(q, dtype=torch.float64).clone()
    for token in tokens:
        if not float(rest[token]) > 0:
            break
        below.tokens.append(token)
        below.values.append(left)
        below.rates.append(float(q[token]))
        below.acceptances.append(left * float((rest / rest.sum()).square().sum()))
        left -= float(q[token])
        rest[token] = 0
    return below


def path_of(tree, node):
    path = []
    while node > 0:
        path.append(tree.tokens[node])
        node = tree.parents[node]
    return tuple(path[::-1])


def toy_source(toy, text=(), order=None):
    """Expands nodes from a toy language model; order(path, q) lists its draws."""

    def expand(tree, nodes):
        found = []
        for node in nodes:
            path = path_of(tree, node)
            q = toy.logits([*text, *path]).double().softmax(-1)
            found.append(child_guesses(q, order(path, q)))
        return found

    return expand


def random_order(seed):
    """The same draws at the same position, however the tree grows."""

    def order(path, q):
        generator = torch.Generator().manual_seed(hash((seed, path)) % (1 << 30))
        return torch.multinomial(q, len(q), generator=generator).tolist()

    return order


def paths(tree, nodes):
    return {path_of(tree, node) for node in nodes}


# ---- the greedy tree


@pytest.mark.parametrize("seed", range(5))
def test_values_fall_and_are_products_of_residuals(seed):
    toy = ToyLM(vocab_size=5, seed=seed)
    tree = best_first(0, toy_source(toy, order=random_order(seed)), nodes=20)
    assert len(tree) == 21
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(tree.values[1:]))
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        q = toy.logits(path_of(tree, parent)).double().softmax(-1)
        earlier = [n for n in range(1, node) if tree.parents[n] == parent]
        value = tree.path_probabilities[parent]
        for sibling in earlier:
            value *= 1 - float(q[tree.tokens[sibling]] / q.sum())
            q[tree.tokens[sibling]] = 0
            q /= q.sum()
        assert tree.values[node] == pytest.approx(value)
        assert tree.path_probabilities[node] == pytest.approx(value * float(q[tree.tokens[node]]))


def test_reaches_are_the_chances_if_guesses_are_accepted_as_often_as_drafted():
    """Acceptance by R_i(y_i), sibling by sibling, simulated exactly along the tree."""
    tree = best_first(0, toy_source(ToyLM(vocab_size=4), order=random_order(1)), nodes=12)
    total = 0.0

    def visit(node, chance):
        nonlocal total
        left = chance
        q = ToyLM(vocab_size=4).logits(path_of(tree, node)).double().softmax(-1)
        for child in range(1, len(tree)):
            if tree.parents[child] == node:
                accept = float(q[tree.tokens[child]])
                assert tree.values[child] == pytest.approx(left)
                visit(child, left * accept)
                total += left * accept
                left *= 1 - accept
                q[tree.tokens[child]] = 0
                q /= q.sum()

    visit(0, 1.0)
    assert sum(tree.path_probabilities[1:]) == pytest.approx(total)


def all_trees(count, breadth, depth):
    """Every set of `count` positions (i1, i2, ...), i counting siblings, that holds with a position
    its parent and its earlier siblings."""
    positions = [
        p for d in range(1, depth + 1) for p in itertools.product(range(breadth), repeat=d)
    ]
    for chosen in itertools.combinations(positions, count):
        held = set(chosen)
        if all(
            (p[:-1] in held or len(p) == 1) and (p[-1] == 0 or (*p[:-1], p[-1] - 1) in held)
            for p in chosen
        ):
            yield chosen


@pytest.mark.parametrize("seed", range(3))
def test_no_other_tree_has_more_value(seed):
    toy = ToyLM(vocab_size=2, seed=seed)
    order = random_order(seed)
    tree = best_first(0, toy_source(toy, order=order), nodes=4, depth=3)

    def value(position):
        path, path_probability, found = (), 1.0, 1.0
        for rank in position:
            q = toy.logits(path).double().softmax(-1)
            tokens = order(path, q)
            found = path_probability * (1 - float(q[tokens[:rank]].sum()))
            path_probability *= float(q[tokens[rank]])
            path += (tokens[rank],)
        return found

    best = max(sum(map(value, chosen)) for chosen in all_trees(4, 2, 3))
    assert sum(tree.values[1:]) == pytest.approx(best)


def test_a_certain_draft_gives_a_chain():
    q = torch.tensor([0.0, 1.0, 0.0])
    for build in (best_first, by_level):
        tree = build(0, lambda _, nodes: [child_guesses(q, [1, 0, 2]) for _ in nodes], nodes=6)
        assert tree.parents == [-1, 0, 1, 2, 3, 4, 5]
        assert tree.values == [1.0] * 7


def test_an_undecided_draft_goes_on_with_the_second_sample():
    q = torch.full((4,), 0.25, dtype=torch.float64)
    tree = best_first(0, lambda _, nodes: [child_guesses(q, [2, 0, 1, 3])], nodes=3)
    assert tree.tokens[1:3] == [2, 0]
    assert tree.parents[1:3] == [0, 0]
    assert tree.values[1:] == pytest.approx([1, 0.75, 0.5])


def test_a_likely_token_goes_on_with_its_child():
    q = torch.tensor([0.6, 0.4], dtype=torch.float64)
    tree = best_first(9, lambda _, nodes: [child_guesses(q, [0, 1])], nodes=3)
    assert tree.parents == [-1, 0, 1, 0]  # .6 before .4; then .4 before .36 = .6 · .6
    assert tree.values[1:] == pytest.approx([1, 0.6, 0.4])


def test_the_draft_is_asked_only_for_nodes_that_get_children():
    asked = []

    def expand(tree, nodes):
        asked.extend(path_of(tree, node) for node in nodes)
        return [child_guesses(torch.tensor([0.5, 0.3, 0.2]).double(), [0, 1, 2])]

    tree = best_first(0, expand, nodes=5)
    parents = {path_of(tree, tree.parents[node]) for node in range(1, 6)}
    assert set(asked) == parents
    assert len(asked) == len(parents)


def test_an_exhausted_vocabulary_ends_the_siblings():
    q = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)
    tree = best_first(0, lambda _, nodes: [child_guesses(q, [0, 1, 2])], nodes=50, depth=2)
    assert len(tree) == 1 + 2 + 4
    assert len(by_level(0, lambda _, n: [child_guesses(q, [0, 1, 2])] * len(n), 50, 2)) == 7


@given(st.integers(0, 1000), st.integers(1, 24), st.integers(1, 4))
def test_level_by_level_grows_the_greedy_tree(seed, nodes, depth):
    toy = ToyLM(vocab_size=4, order=1, seed=seed)
    calls = []

    def counted(tree, frontier):
        calls.append(len(frontier))
        return toy_source(toy, order=random_order(seed))(tree, frontier)

    greedy = best_first(0, toy_source(toy, order=random_order(seed)), nodes, depth)
    levels = by_level(0, counted, nodes, depth)
    assert paths(levels, levels.best()[:nodes]) == paths(greedy, range(1, len(greedy)))
    assert len(calls) <= depth


@given(st.integers(0, 1000), st.integers(2, 20))
def test_the_threshold_of_the_last_node_gives_the_same_tree(seed, nodes):
    toy = ToyLM(vocab_size=4, order=1, seed=seed)
    source = toy_source(toy, order=random_order(seed))
    greedy = best_first(0, source, nodes, depth=6)
    least = greedy.values[-1] * (1 - 1e-12)
    for build in (best_first, by_level):
        found = build(0, source, 1000, 6, threshold=least)
        assert paths(found, range(1, len(found))) == paths(greedy, range(1, len(greedy)))


def test_nothing_to_draft():
    def never(tree, nodes):
        raise AssertionError("the draft was asked")

    for build in (best_first, by_level):
        assert len(build(0, never, nodes=0)) == 1
        assert len(build(0, never, nodes=5, depth=0)) == 1


# ---- how many draws


def test_affordable_draws_are_decided_without_looking_ahead():
    latency = {1: 1.0, 2: 1.2, 3: 1.25, 4: 1.3, 5: 3.0}
    for acceptances in ([0.5, 0.4, 0.3, 0.2], [0.1, 0.9, 0.9], [0.21, 0.001, 0.5, 0.5]):
        size = affordable(acceptances, latency)
        for cut in range(size, len(acceptances)):
            other = [*acceptances[: cut + 1], *[0.99] * 3]
            if size <= cut and other[: size + 1] == acceptances[: size + 1]:
                # a later draw cannot change an earlier decision, only the budget for more
                assert affordable(other[: len(acceptances)], latency) == size
    assert affordable([0.5, 0.4], {}) == 2
    assert affordable([0.01, 0.01], {1: 1.0, 2: 2.0}) == 0


def test_equal_acceptances_are_taken_as_if_one_looked_ahead():
    latency = {1: 1.0, 2: 1.6, 3: 1.65, 4: 1.7, 5: 1.75, 9: 4.0}
    for chance in (0.05, 0.2, 0.4, 0.9):
        assert affordable([chance] * 8, latency) == best_size([chance] * 8, latency)


# ---- the distribution of the text


class Scripted:
    """Goes through all outcomes of a random procedure: `choose` returns one after the other."""

    def __init__(self):
        self.script, self.at, self.chance = [], 0, 1.0

    def choose(self, options):
        """options: [(outcome, probability)]."""
        if self.at == len(self.script):
            self.script.append(0)
        outcome, probability = options[self.script[self.at]]
        self.sizes = [*self.sizes[: self.at], len(options)]
        self.at += 1
        self.chance *= probability
        return outcome

    def runs(self, procedure):
        self.sizes = []
        while True:
            self.at, self.chance = 0, 1.0
            result = procedure()
            yield self.chance, result
            self.script = self.script[: self.at]
            while self.script and self.script[-1] == self.sizes[len(self.script) - 1] - 1:
                self.script.pop()
            if not self.script:
                return
            self.script[-1] += 1


def orders(q):
    """All orders of draws without replacement, and their probabilities."""
    found = []
    for tokens in itertools.permutations(range(len(q))):
        left, chance = 1.0, 1.0
        for token in tokens:
            chance *= float(q[token]) / left if left > 1e-12 else 1.0
            left -= float(q[token])
        found.append((tokens, chance))
    return found


def drawn_tree(found, kept, draft):
    kept = [0, *sorted(kept)]
    place = {-1: -1} | {node: at for at, node in enumerate(kept)}
    rows = []
    for node in kept:
        parent = max(found.parents[node], 0)
        q = draft.logits(path_of(found, parent)).double().softmax(-1)
        earlier = [n for n in range(1, node) if found.parents[n] == found.parents[node]]
        q[[found.tokens[n] for n in earlier]] = 0
        rows.append(q / q.sum())
    return TokenTree(
        tuple(found.tokens[node] for node in kept),
        tuple(place[found.parents[node]] for node in kept),
        proposals=torch.stack(rows),
    )


def distribution_of_two(tree, target):
    """The distribution of the next two tokens after verification; what the tree leaves open is
    drawn from the target."""
    distribution = torch.zeros(3, 3, dtype=torch.float64)

    def next_token(node, text):
        p = target.logits(text).double().softmax(-1)
        if node is None or not tree.proposed(node)[0]:
            return p
        return distribution_with_proposals(p, *tree.proposed(node))[1]

    first = next_token(0, ())
    for token in range(3):
        distribution[token] = first[token] * next_token(tree.children.get((0, token)), (token,))
    return distribution


EXPANSIONS = {
    "heap": lambda expand: (lambda t: (t, t.best()))(best_first(0, expand, 3, 2)),
    "levels": lambda expand: (lambda t: (t, t.best()[:3]))(by_level(0, expand, 3, 2)),
    "threshold": lambda expand: (lambda t: (t, t.best()))(by_level(0, expand, 9, 2, 0.45)),
    "fitted": lambda expand: (
        lambda t: (
            t,
            t.best()[: affordable([t.acceptances[n] for n in t.best()], {1: 1.0, 9: 3.0})],
        )
    )(by_level(0, expand, 3, 2)),
}
"""Ways to expand a tree, and the nodes of it that are kept."""


def enumerated_distribution(build, draft, target):
    scripted = Scripted()

    def once():
        expand = toy_source(draft, order=lambda path, q: scripted.choose(orders(q)))
        found, kept = build(expand)
        return distribution_of_two(drawn_tree(found, kept, draft), target)

    distribution, total, sizes = torch.zeros(3, 3, dtype=torch.float64), 0.0, 0
    for chance, one in scripted.runs(once):
        distribution += chance * one
        total += chance
        sizes += 1
    assert total == pytest.approx(1)
    assert sizes > 20
    return distribution


def distribution_of_target(target):
    p = [target.logits(text).double().softmax(-1) for text in ((), (0,), (1,), (2,))]
    return p[0][:, None] * torch.stack(p[1:])


@pytest.mark.parametrize("way", EXPANSIONS)
def test_over_all_drawn_trees_the_text_has_the_targets_distribution(way):
    target, draft = ToyLM(vocab_size=3, seed=3), ToyLM(vocab_size=3, seed=4)
    distribution = enumerated_distribution(EXPANSIONS[way], draft, target)
    torch.testing.assert_close(distribution, distribution_of_target(target), atol=1e-12, rtol=0)


def test_cutting_with_a_look_ahead_changes_the_distribution():
    """Why `affordable` exists: the best size in hindsight depends on what was drawn."""
    target, draft = ToyLM(vocab_size=3, seed=3), ToyLM(vocab_size=3, seed=4)

    def hindsight(expand):
        tree = by_level(0, expand, 3, 2)
        worth = [tree.path_probabilities[node] for node in tree.best()]
        return tree, tree.best()[: best_size(worth, {1: 1.0, 9: 3.0})]

    distribution = enumerated_distribution(hindsight, draft, target)
    assert float((distribution - distribution_of_target(target)).abs().max()) > 1e-3


class Toy:
    """What `DySpec.begin` asks of a target."""

    def __init__(self, size):
        self.config, self.vocab_size = self, size

    def get_text_config(self):
        return self


TEXTS = 250


@pytest.mark.parametrize("options", [{"nodes": 1}, {"nodes": 5}])
def test_sampled_texts_follow_the_targets_distribution(options):
    """Chi-square over all texts of three tokens; one drafter for all texts."""
    target = ToyLM(vocab_size=3, order=1, seed=3)
    draft = ToyLM(vocab_size=3, order=1, seed=4)

    def function(texts):
        return torch.stack([draft.logits(text) for text in texts.tolist()])

    drafter = DySpec(function, sampled=True, temperature=1.0, **options)
    generator = torch.Generator().manual_seed(0)  # as the drafter's own

    def next_token(tree, node, row):
        return draw(row, 1.0, 1.0, generator, tree.proposed(node))

    seen = torch.zeros(3, 3, 3, dtype=torch.float64)
    for _ in range(TEXTS):
        drafted, text = drafter.begin(Toy(3), [1]), [1, 2]
        while len(text) < 5:
            tree = drafted.draft(text[-1], 3)
            logits = torch.stack(
                [target.logits([*text, *path_of(tree, node)]) for node in range(len(tree))]
            )
            found = walk(tree, logits, partial(next_token, tree))
            drafted.update(tree, logits, found)
            text += found.tokens
        seen[tuple(text[2:5])] += 1
    exact = torch.zeros(3, 3, 3, dtype=torch.float64)
    for text in itertools.product(range(3), repeat=3):
        exact[text] = 1.0
        for before, token in itertools.pairwise((2, *text)):
            exact[text] *= float(target.logits([before]).double().softmax(-1)[token])
    assert float((TEXTS * exact).min()) > 0.1
    common = TEXTS * exact > 4  # rarer texts are counted together
    ours = torch.cat([seen[common], seen[~common].sum()[None]])
    expected = torch.cat([TEXTS * exact[common], TEXTS * exact[~common].sum()[None]])
    statistic = float(((ours - expected) ** 2 / expected).sum())
    assert statistic < chi2.isf(1e-7, len(ours) - 1)


def test_draws_come_without_replacement_in_order():
    q = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drafted = DySpec(lambda texts: None, sampled=True, breadth=2, nodes=1).begin(Toy(4), [1])
    seen = torch.zeros(4, 4, dtype=torch.float64)
    rows = 4_000
    for at, below in enumerate(drafted._drawn(q.expand(rows, 4))):
        seen[tuple(below.tokens)] += 1
        if at > 40:
            continue
        first, second = below.tokens
        assert below.values == pytest.approx([1, 1 - float(q[first])])
        assert below.rates == pytest.approx([float(q[first]), float(q[second])])
        rest = torch.cat([q[:first], q[first + 1 :]])
        expected = [float(q.square().sum()), float(rest.square().sum() / (1 - q[first]))]
        assert below.acceptances == pytest.approx(expected, rel=1e-5)
    assert not seen.diagonal().any()
    exact = q[:, None] * q / (1 - q[:, None])
    off = ~torch.eye(4, dtype=torch.bool)
    expected = rows * exact[off].double()
    statistic = float(((seen[off] - expected) ** 2 / expected).sum())
    assert statistic < chi2.isf(1e-7, 11)


def test_proposals_are_what_the_guesses_were_drawn_from():
    toy = ToyLM(vocab_size=5, seed=6)

    def function(texts):
        return torch.stack([toy.logits(text) for text in texts.tolist()])

    drafter = DySpec(function, sampled=True, temperature=0.7, nodes=14)
    tree = drafter.begin(Toy(5), [1, 2]).draft(3, 9)
    assert len(tree) == 15
    assert tree.proposals.shape == (15, 5)
    for node in range(1, 15):
        parent = tree.parents[node]
        q = (toy.logits([1, 2, 3, *path_of(tree, parent)]) / 0.7).softmax(-1)
        q[[tree.tokens[n] for n in range(1, node) if tree.parents[n] == parent]] = 0
        torch.testing.assert_close(tree.proposals[node], q / q.sum())
        assert tree.proposals[node, tree.tokens[node]] > 0


def test_a_perfect_draft_is_accepted_whole():
    """q = p: every first draw is accepted, so a chain of three gives four tokens a pass."""
    toy = ToyLM(vocab_size=4, seed=2)

    def function(texts):
        return torch.stack([toy.logits(text) for text in texts.tolist()])

    drafter = DySpec(function, sampled=True, temperature=1.0, nodes=12)
    tree = drafter.begin(Toy(4), [1, 2]).draft(3, 9)
    probs = torch.stack(
        [toy.logits([1, 2, 3, *path_of(tree, n)]).softmax(-1) for n in range(len(tree))]
    )
    found = acceptance(tree, probs)
    depth = max(tree.depths[n] for n in range(len(tree)) if found[n] > 0.999)
    assert depth >= 2
    for node in range(1, len(tree)):
        first = tree.parents.index(tree.parents[node]) == node
        assert found[node] == pytest.approx(found[tree.parents[node]] if first else 0, abs=1e-6)


def test_draws_go_on_from_text_to_text():
    """A drafter that began every text with the same draws would repeat its guesses in all samples
    of one prompt, which are then no longer independent of them."""

    def function(texts):
        return torch.zeros(len(texts), 50)

    drafter = DySpec(function, sampled=True, nodes=6)
    first, second = (drafter.begin(Toy(50), [1]).draft(2, 9).tokens for _ in range(2))
    assert first != second
    again = replace(drafter, memory=DraftMemory()).begin(Toy(50), [1]).draft(2, 9).tokens
    assert again == first
    assert (
        replace(drafter, seed=1, memory=DraftMemory()).begin(Toy(50), [1]).draft(2, 9).tokens
        != first
    )


# ---- with models


def draft_of(model, noise=0.02):
    """A model that often agrees with `model`."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in twin.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return twin


@pytest.mark.parametrize("expansion", ["levels", "heap"])
@pytest.mark.parametrize("sampled", [False, True])
def test_greedy_text_does_not_depend_on_the_draft_model(tiny_model, expansion, sampled):
    prompt = torch.tensor([PROMPT])
    with torch.no_grad():
        expected = tiny_model.generate(
            prompt, max_new_tokens=24, do_sample=False, eos_token_id=None
        )
    drafter = DySpec(draft_of(tiny_model), nodes=7, expansion=expansion, sampled=sampled)
    found = generate_with_drafter(tiny_model, PROMPT, drafter, 24, eos_token_id=[])
    assert found.ids == expected[0].tolist()
    assert found.tokens_per_pass > 1.5
    assert max(found.nodes) <= 8


def test_the_same_model_drafts_itself_perfectly(tiny_model):
    drafter = DySpec(tiny_model, nodes=8, depth=4, temperature=0.05)
    found = generate_with_drafter(tiny_model, PROMPT, drafter, 1 + 4 * 5, eos_token_id=[])
    assert found.accept_lengths == [5] * 4


@torch.no_grad()
def test_the_draft_models_cache_is_that_of_its_texts(tiny_model):
    """Logits of every node, over several steps with various paths taken, equal a plain pass."""
    source = ModelSource(tiny_model)
    text, generator = list(PROMPT), torch.Generator().manual_seed(0)
    new = list(PROMPT)
    for step in range(5):
        root = source.root(new)
        torch.testing.assert_close(
            root, tiny_model(torch.tensor([text])).logits[0, -1], atol=1e-4, rtol=1e-4
        )
        tree = TreeExpansion([text[-1]])
        levels = [[0], [], []]
        for depth in (1, 2):
            for parent in levels[depth - 1]:
                for rank in range(2):
                    token = int(torch.randint(0, 64, (), generator=generator))
                    below = ChildGuesses([0] * rank + [token], [0.5] * 2, [0.5] * 2, [0.5] * 2)
                    levels[depth].append(tree.add(parent, rank, below))
            logits = source.below(tree, levels[depth])
            for node, row in zip(levels[depth], logits, strict=True):
                plain = tiny_model(torch.tensor([[*text, *path_of(tree, node)]])).logits[0, -1]
                torch.testing.assert_close(row, plain, atol=1e-4, rtol=1e-4)
        path = [[], [2], [1, 3], [2, 6], [2, 5]][step]
        source.settle(path)
        kept = [tree.tokens[node] for node in path]
        new = [7 + step, 8]
        text += [*kept, *new]


def test_what_the_draft_did_not_read_is_read_later(tiny_llama):
    """Steps without guesses, and accepted leaves, which the draft model has not read."""
    drafter = DySpec(tiny_llama, nodes=3, depth=1, temperature=1.0)
    drafted = drafter.begin(tiny_llama, PROMPT)
    text = [*PROMPT, 11]
    for budget in (5, 0, 0, 5, 5):
        tree = drafted.draft(text[-1], budget)
        with torch.no_grad():
            probs = tiny_llama(torch.tensor([text])).logits[0, -1].softmax(-1)
        if budget:
            assert set(tree.tokens[1:]) == set(probs.topk(3).indices.tolist())
            drafted.update(tree, torch.empty(0), Accepted([0, 2], [tree.tokens[2], 30]))
            text += [tree.tokens[2], 30]
        else:
            drafted.update(tree, torch.empty(0), Accepted([0], [31]))
            text += [31]


def test_a_pruned_tree_is_understood(tiny_llama):
    drafter = DySpec(tiny_llama, nodes=6, temperature=1.0)
    with torch.no_grad():
        expected = tiny_llama.generate(
            torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )[0].tolist()

    def prune(text, tree):
        return tree.select([n for n in range(len(tree)) if tree.depths[n] < 2])

    found = generate_with_drafter(tiny_llama, PROMPT, drafter, 12, eos_token_id=[], prune=prune)
    assert found.ids == expected
    assert set(found.accept_lengths[:-1]) == {2}


def test_without_a_draft_model_it_learns_while_it_decodes(tiny_llama):
    drafter = DySpec(nodes=12)
    cold = generate_with_drafter(tiny_llama, PROMPT, drafter, 30, eos_token_id=[])
    warm = generate_with_drafter(tiny_llama, PROMPT, drafter, 30, eos_token_id=[])
    assert warm.ids == cold.ids
    assert warm.forward_calls < cold.forward_calls


def test_a_draft_that_takes_long_and_does_not_help_is_no_longer_called(tiny_llama):
    called = []

    def useless(texts):
        called.append(len(texts))
        return torch.randn(len(texts), 64, generator=torch.Generator().manual_seed(len(called)))

    drafter = DySpec(useless)
    drafted = drafter.begin(tiny_llama, PROMPT)
    drafted.latency = {1: 1.0, 64: 1.1}
    drafter.memory.calls.extend([0.5] * 8)
    for _ in range(300):
        if not drafted._depth():
            break
        drafter.memory.calibration.count(level_guess(1), False)
    assert len(drafted.draft(3, 9)) == 1
    assert not called
    assert len(drafter.begin(tiny_llama, PROMPT).memory.calls) == 0  # the next text tries again


def level_guess(depth):
    from tokenry.decode.speculation.dyspec import level

    return level(depth)


def test_vocabularies_must_agree(tiny_llama):
    other = copy.deepcopy(tiny_llama)
    other.config.vocab_size = 65
    with pytest.raises(VocabularyError, match="draft model has 65 tokens, the model 64"):
        DySpec(other).begin(tiny_llama, PROMPT)
    drafted = DySpec(lambda texts: torch.zeros(len(texts), 9), nodes=3).begin(tiny_llama, PROMPT)
    with pytest.raises(VocabularyError, match=r"logits \[1, 64\] .* got \[1, 9\]"):
        drafted.draft(3, 5)
    drafter = DySpec(nodes=3)
    drafter.begin(tiny_llama, PROMPT)
    with pytest.raises(VocabularyError, match="table has 64 tokens, the model 65"):
        drafter.begin(other, PROMPT)


def test_a_window_that_is_too_short_is_named(tiny_llama):
    short = copy.deepcopy(tiny_llama)
    short.config.max_position_embeddings = 12
    with pytest.raises(InputError, match="prompt has 12 tokens, the draft model reads 12"):
        DySpec(short, nodes=3).begin(tiny_llama, [1] * 12)
    found = generate_with_drafter(tiny_llama, [1] * 8, DySpec(short, nodes=3), 20, eos_token_id=[])
    assert found.nodes[-1] == 1  # beyond its window it drafts nothing
    assert len(found.new_ids) == 20


def test_impossible_settings_are_named():
    with pytest.raises(InputError, match=r"DySpec\.breadth is 0"):
        DySpec(breadth=0)
    with pytest.raises(InputError, match=r"temperature is 0\.0; it must be a number in \(0, inf\)"):
        DySpec(temperature=0.0)
    with pytest.raises(InputError, match=r"DySpec\.nodes is -1"):
        DySpec(nodes=-1)
    with pytest.raises(InputError, match="'tree'"):
        DySpec(expansion="tree")
