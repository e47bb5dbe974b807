"""Several drafters: the best of all their guesses, and each drafter keeps up with the text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.decode.speculation import mixture as mixtures
from tokenry.decode.speculation.baselines import NoDraft
from tokenry.decode.speculation.context import ContextNGrams
from tokenry.decode.speculation.dyspec import DySpec
from tokenry.decode.speculation.goose import Goose
from tokenry.decode.speculation.lookahead import Lookahead
from tokenry.decode.speculation.mixture import UNRATED, Mixture, overlaid
from tokenry.decode.speculation.mtp import MTP
from tokenry.decode.speculation.recycling import TokenRecycling
from tokenry.decode.speculation.speculate import drafter as drafters
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.tree_expansion import Calibration, Guess
from tokenry.decode.speculation.verify import Accepted

PROMPT = [5, 9, 3, 8, 2, 7, 4, 6, 1, 5, 9, 3]


def rated(tokens, parents, probs):
    notes = [None, *(Guess(t, p, "kind", None) for t, p in zip(tokens[1:], probs, strict=True))]
    return TokenTree(tuple(tokens), tuple(parents), tuple(notes))


def paths(tree):
    """Every node as the tokens down to it."""
    found = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        found.append((*found[parent], token))
    return found[1:]


@st.composite
def trees(draw):
    size = draw(st.integers(0, 6))
    parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size + 1))]
    tokens = [7, *(draw(st.integers(0, 2)) for _ in range(size))]
    return rated(tokens, parents, [0.5] * size)


@given(st.lists(trees(), min_size=1, max_size=3))
def test_every_path_of_every_tree_is_there_once(several):
    mixed = overlaid(several)
    assert len(set(paths(mixed))) == len(paths(mixed))
    assert set(paths(mixed)) == {path for tree in several for path in paths(tree)}
    for path, note in zip(paths(mixed), mixed.notes[1:], strict=True):
        having = {number for number, tree in enumerate(several) if path in paths(tree)}
        assert set(note.cursor) == having
        assert all(paths(several[n])[node - 1] == path for n, node in note.cursor.items())


def test_a_guess_that_several_make_is_likelier_and_of_a_kind_of_its_own():
    mixed = overlaid(
        [rated([7, 1, 2], [-1, 0, 0], [0.5, 0.4]), rated([7, 1, 3], [-1, 0, 1], [0.2, 0.9])]
    )
    found = dict(zip(paths(mixed), mixed.notes[1:], strict=True))
    assert {path: note.prob for path, note in found.items()} == {
        (1,): pytest.approx(1 - 0.5 * 0.8),
        (2,): pytest.approx(0.4),
        (1, 3): pytest.approx(0.9),
    }
    assert len({note.kind for note in found.values()}) == 3


def test_a_drafter_that_rates_nothing_is_rated_by_depth():
    mixed = overlaid([TokenTree.chain([7, 1, 2]), rated([7, 4], [-1, 0], [0.3])])
    assert [note.prob for note in mixed.notes[1:]] == pytest.approx([UNRATED, UNRATED, 0.3])
    assert mixed.notes[1].kind != mixed.notes[2].kind


class Fixed:
    """Always the same tree; remembers what it was told."""

    def __init__(self, tree, reads_prompt=False):
        self.tree, self.reads_prompt, self.told = tree, reads_prompt, []

    def begin(self, model, prompt):
        return self

    def draft(self, last_token, budget):
        return TokenTree((last_token, *self.tree.tokens[1:]), self.tree.parents, self.tree.notes)

    def update(self, tree, logits, accepted):
        self.told.append((tree, logits, accepted))


def test_the_most_probable_nodes_are_read(tiny_llama):
    one = rated([7, 1, 2, 3], [-1, 0, 1, 2], [0.6, 0.5, 0.9])
    other = rated([7, 4, 5], [-1, 0, 0], [0.4, 0.28])
    for nodes, expected in (
        (0, set()),
        (1, {(1,)}),
        (2, {(1,), (4,)}),  # 0.6, 0.4, 0.6 · 0.5, 0.28, 0.6 · 0.5 · 0.9
        (3, {(1,), (4,), (1, 2)}),
        (5, {(1,), (4,), (1, 2), (5,), (1, 2, 3)}),
    ):
        draft = Mixture((Fixed(one), Fixed(other)), nodes=nodes).begin(tiny_llama, PROMPT)
        assert set(paths(draft.draft(7, 9))) == expected
    assert set(paths(draft.draft(7, 1))) == {(1,), (4,), (5,)}  # the budget


def test_the_size_is_the_one_that_pays(tiny_llama, monkeypatch):
    monkeypatch.setattr(mixtures, "latency_curve", lambda model: {1: 1.0, 2: 1.0, 3: 1.35, 4: 3.0})
    one, other = rated([7, 1], [-1, 0], [0.9]), rated([7, 2, 3], [-1, 0, 0], [0.8, 0.7])
    draft = Mixture((Fixed(one), Fixed(other))).begin(tiny_llama, PROMPT)
    assert len(draft.draft(7, 9)) == 3  # 1.9 / 1, 2.7 / 1.35, 3.4 / 3


def test_every_drafter_is_told_the_whole_pass_and_its_own_notes(tiny_llama):
    one = rated([7, 1, 2], [-1, 0, 1], [0.6, 0.5])
    other = TokenTree((7, 1, 3), (-1, 0, 1), ("root", "first", "second"))
    silent = Fixed(TokenTree.chain([7, 9]))
    parts = Fixed(one), Fixed(other), silent
    draft = Mixture(parts, nodes=9).begin(tiny_llama, PROMPT)
    tree = draft.draft(7, 9)
    logits, accepted = torch.randn(len(tree), 64), Accepted([0, 1], [1, 50])
    draft.update(tree, logits, accepted)
    notes = []
    for part in parts:
        ((told, rows, walked),) = part.told
        assert (told.tokens, told.parents) == (tree.tokens, tree.parents)
        assert rows is logits
        assert walked is accepted
        notes.append(dict(zip(paths(told), told.notes[1:], strict=bool(told.notes))))
    assert notes[0][1,] == one.notes[1]
    assert notes[0][1, 2] == one.notes[2]
    assert notes[1][1,] == "first"
    assert notes[1][1, 3] == "second"
    assert notes[0][1, 3].prob == notes[1][1, 2].prob == 0
    assert notes[2] == {}


def test_only_the_mixture_calibrates_what_another_guessed(tiny_llama):
    context = ContextNGrams(nodes=2)
    draft = Mixture((context, Fixed(rated([7, 60, 61], [-1, 0, 1], [0.9, 0.9]))), nodes=9)
    draft = draft.begin(tiny_llama, PROMPT)
    tree = draft.draft(8, 9)  # 8 was followed by 2 and 7
    draft.update(tree, torch.zeros(len(tree), 64), Accepted([0], [60]))
    own = [kind for kind in context.calibration.expected if kind != "another drafter's"]
    assert [kind[0] for kind in own] == ["context"]
    assert context.calibration.expected["another drafter's"] == 0


def test_the_prompt_goes_to_those_who_asked_for_it(tiny_llama):
    tree = rated([7, 1], [-1, 0], [0.5])
    reading, other = Fixed(tree, reads_prompt=True), Fixed(tree)
    mixture = Mixture((reading, other))
    assert mixture.reads_prompt
    assert not Mixture((other, other)).reads_prompt
    generate_with_drafter(tiny_llama, PROMPT, mixture, 4, eos_token_id=[])
    assert reading.told[0][0].tokens == tuple(PROMPT[1:])
    assert len(reading.told) == len(other.told) + 1


def test_two_of_the_same_draft_what_one_drafts(tiny_llama):
    alone, both = [], []
    for seen, drafter in (
        (alone, ContextNGrams(nodes=4)),
        (both, Mixture((ContextNGrams(nodes=4), ContextNGrams(nodes=4)), nodes=4)),
    ):
        generate_with_drafter(
            tiny_llama,
            PROMPT,
            drafter,
            30,
            eos_token_id=[],
            on_step=lambda tree, _, seen=seen: seen.append(set(paths(tree))),
        )
    assert alone == both
    assert any(alone)


MIXTURES = {
    "goose and lookahead": lambda: (Goose(), Lookahead()),
    "the paper's goose and prompt lookup": lambda: (Goose(nodes=20), drafters["prompt-lookup"]()),
    "dyspec and context": lambda: (DySpec(nodes=6), ContextNGrams()),
    "drawn dyspec and recycling": lambda: (DySpec(sampled=True, nodes=6), TokenRecycling()),
    "recycling from logits and context": lambda: (
        TokenRecycling(learn_prompt="logits"),
        ContextNGrams(),
    ),
    "mtp and context": lambda: (MTP(), ContextNGrams()),
    "fspad and recycling": lambda: (drafters["fspad"](nodes=8), TokenRecycling()),
    "a mixture and lookahead": lambda: (Mixture(), Lookahead()),
}


@pytest.mark.parametrize("parts", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_that_of_plain_decoding(parts, tiny_model, temperature):
    texts = []
    mixture = Mixture(parts())
    for drafter in (NoDraft(), mixture, mixture):
        found = generate_with_drafter(
            tiny_model,
            PROMPT,
            drafter,
            30,
            temperature=temperature,
            eos_token_id=[],
            generator=torch.Generator().manual_seed(3),
        )
        texts.append(found.ids)
    assert texts[0] == texts[1] == texts[2]


def test_bad_mixtures_are_named(tiny_llama):
    with pytest.raises(InputError, match="two or more drafters"):
        Mixture((Goose(),))
    with pytest.raises(InputError, match="two or more drafters"):
        Mixture(("goose", "context"))
    with pytest.raises(InputError, match=r"Mixture\.nodes is -1"):
        Mixture(nodes=-1)
    with pytest.raises(InputError, match="MaskDraft and FeatureDraft each read the tree"):
        Mixture((MTP(), drafters["fspad"]())).begin(tiny_llama, PROMPT)


def test_rates_follow_what_came_true(tiny_llama):
    """A source that is always wrong loses its place in a tree of one guess."""
    mixture = Mixture(
        (Fixed(rated([7, 1], [-1, 0], [0.9])), Fixed(rated([7, 2], [-1, 0], [0.5]))),
        nodes=1,
        calibration=Calibration(strength=1.0),
    )
    draft = mixture.begin(tiny_llama, PROMPT)
    guessed = []
    for _ in range(5):
        tree = draft.draft(7, 9)
        guessed.append(tree.tokens[1])
        draft.update(tree, torch.zeros(2, 64), Accepted([0], [2]))
    assert guessed[0] == 1
    assert guessed[-1] == 2
