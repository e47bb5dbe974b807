import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.documentation import docstrings, help_texts, manual, passages
from tokenry.tasks.standard_library import source


def test_passages_are_cuts_of_different_modules_by_seed(tiny_tokenizer):
    modules = ("csv", "json", "random")
    found = passages(tiny_tokenizer, 60, 2, seed=1, modules=modules)
    assert found.shape == (2, 60)
    assert torch.equal(found, passages(tiny_tokenizer, 60, 2, seed=1, modules=modules))
    assert not torch.equal(found, passages(tiny_tokenizer, 60, 2, seed=2, modules=modules))
    assert not torch.equal(found[0], found[1])


def test_too_few_long_modules_are_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="only 0 of 1 modules have 10000000 tokens"):
        passages(tiny_tokenizer, 10_000_000, 1, seed=0, modules=("csv",))


def test_passages_can_be_of_the_source_instead(tiny_tokenizer):
    modules = ("csv", "random")
    found = passages(tiny_tokenizer, 60, 2, seed=1, modules=modules, text=source)
    sources = [tiny_tokenizer(source(name))["input_ids"] for name in modules]
    for row in found.tolist():
        assert any(row == ids[i : i + 60] for ids in sources for i in range(len(ids) - 59))


def test_docstrings_are_those_of_modules_classes_and_functions():
    import inspect
    import textwrap

    texts = docstrings()
    assert all(texts)
    for thing in (textwrap, textwrap.TextWrapper, textwrap.TextWrapper.wrap, textwrap.dedent):
        assert inspect.cleandoc(thing.__doc__) in texts
    assert len(texts) > 3000


def test_corpora_have_the_size_that_was_asked_for():
    topics = manual(50_000)
    assert sum(map(len, topics)) >= 50_000
    assert sum(map(len, topics[:-1])) < 50_000
    assert any("assignment" in topic.lower() for topic in topics)


def test_help_texts_are_of_one_module_after_the_other_and_come_once():
    import csv
    import inspect
    import textwrap

    texts = help_texts(("textwrap", "no_such_module_at_all", "csv"), 100_000)
    assert len(set(texts)) == len(texts)
    first = [inspect.getdoc(textwrap.TextWrapper), inspect.getdoc(csv.Dialect)]
    assert texts[:2] == first
    assert inspect.getdoc(textwrap.dedent) in texts
    assert help_texts(("textwrap",), 10) == first[:1]
