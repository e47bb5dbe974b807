"""Texts of the standard library: cuts, orders and letters."""

import inspect
import random
import textwrap

import torch

from tokenry.tasks.standard_library import (
    DOCUMENTED,
    MODULES,
    SMALL,
    LibraryText,
    beginnings,
    byte_pieces,
    drawn,
    member,
    shuffled,
    source,
    token_pieces,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sources_and_members_are_found_by_name():
    assert "def wrap(" in source("textwrap")
    assert member("textwrap.wrap") is textwrap.wrap
    for name in SMALL:
        assert len(inspect.getsource(member(name))) > 50
    for name in DOCUMENTED:
        assert len(inspect.getdoc(member(name)) or "") >= 100
    assert len(set(MODULES)) == len(MODULES)


def test_names_are_drawn_without_repeats_by_seed():
    names = drawn(MODULES, 5, generator(1))
    assert len(set(names)) == 5
    assert names == drawn(MODULES, 5, generator(1)) != drawn(MODULES, 5, generator(2))


def test_shuffled_sources_are_long_enough_and_all_there():
    every, long = shuffled(random.Random(0)), shuffled(random.Random(0), least=20_000)
    assert sorted(long) == sorted(text for text in every if len(text) > 20_000)
    assert 0 < len(long) < len(every)
    assert every != shuffled(random.Random(1))


def test_token_pieces_begin_a_line_of_different_modules(tiny_tokenizer):
    rows = token_pieces(tiny_tokenizer, 24, 3, seed=5)
    assert rows.shape == (3, 24)
    assert rows.equal(token_pieces(tiny_tokenizer, 24, 3, seed=5))
    whole = [text.decode() for text in shuffled(random.Random(5))]
    for row in rows.tolist():
        piece = tiny_tokenizer.decode(row)
        assert any("\n" + piece in text for text in whole)


def test_byte_pieces_are_cuts_of_the_texts():
    texts = [bytes(range(40)), bytes(range(100, 140))]
    rows = byte_pieces(texts, 8, 20, random.Random(0))
    assert rows.shape == (20, 8)
    assert {int(row[0]) // 100 for row in rows} == {0, 1}
    for row in rows.tolist():
        assert bytes(row) in texts[row[0] // 100]


def test_beginnings_are_cuts_of_long_modules_and_not_of_the_others(tiny_tokenizer):
    names = ("textwrap", "argparse", "string", "csv")
    cuts, others = beginnings(tiny_tokenizer, names, 16, 2, seed=0)
    assert [len(cut) for cut in cuts] == [16, 16]
    assert len(others) == 2
    decoded = [tiny_tokenizer.decode(ids) for ids in others]
    for cut in cuts:
        piece = tiny_tokenizer.decode(cut)
        assert any(piece in source(name) for name in names)
        assert not any(piece in text for text in decoded)


def test_letters_of_the_library():
    world = LibraryText(("textwrap", "string"), length=12, start=4)
    assert world.text.startswith(source("textwrap")[:20])
    assert world.alphabet == "".join(sorted(set(world.text)))
    assert world.size == len(world.alphabet)
    assert "".join(world.alphabet[place] for place in world.ids[:30]) == world.text[:30]
    batch = world.batch(5, generator())
    assert batch.ids.shape == (5, 12)
    assert not batch.target[:, 0].any()
    assert batch.target[:, 1:].all()
    for row in batch.ids.tolist():
        assert "".join(world.alphabet[place] for place in row) in world.text
    assert repr(world) != repr(LibraryText(("textwrap",), length=12, start=4))
