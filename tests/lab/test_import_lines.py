"""Masks of both kinds in every batch, and perplexity of everything but the names."""

import pytest
import torch

from tokenry.lab.import_lines import NamingBench, batch_of, respond
from tokenry.tasks.worlds.import_lines import ImportLines, prompt


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    small = {"lines": 50, "pool": 6, "held_out": 5, "steps": 3, "batch_size": 8}
    return NamingBench(ImportLines(1), fit_steps=2, **small)


def test_half_of_a_batch_names_what_does_not_exist(bench):
    corpus = bench.corpus
    invented = next(name for name in corpus.names if name not in corpus.existing)
    texts = [f"{prompt('abcde')}{name}\n" for name in (corpus.existing[0], invented)]
    examples = [("", text, corpus.registry.occurrences(text)) for text in texts]
    batch = bench.balanced(examples)(torch.Generator().manual_seed(0))
    tri = batch.column("tri")
    marked = (tri == 2).any(1)
    assert sorted(marked.tolist()) == [False] * 4 + [True] * 4
    start = len(prompt("abcde"))
    assert (tri[~marked][:, start : start + len(corpus.existing[0])] == 1).all()
    shared = corpus.registry.shared_prefix(invented)
    assert (tri[marked][:, start : start + shared] == 0).all()
    assert (tri[marked][:, start + shared : start + len(invented)] == 2).all()


def test_perplexity_and_divergence_part_names_from_the_rest(bench):
    point = bench.measure(bench.model)
    assert point.name_kl == pytest.approx(0, abs=1e-6)
    assert point.other_kl == pytest.approx(0, abs=1e-6)
    lines = bench.corpus.lines(bench.tests[0])
    with torch.no_grad():
        ids = batch_of(lines).ids
        logprob = bench.model(ids).logits[:, :-1].log_softmax(-1)
        own = logprob.gather(-1, ids[:, 1:, None])[..., 0]
    kept = own[:, : len(prompt("_____")) - 1]  # what stands before the name, from the second letter
    assert point.perplexity == pytest.approx(float((-kept.mean()).exp()), rel=1e-4)


def test_answers_are_lines_behind_their_prompts(bench):
    texts = respond(bench.model, ["abcde", "vwxyz"], seed=3)
    assert [text.count("\n") for text in texts] == [2, 2]
    assert texts[0].startswith(prompt("abcde"))
    assert texts == respond(bench.model, ["abcde", "vwxyz"], seed=3)


def test_mutated_tests_come_from_failures(bench):
    topics, mutated = bench.tests
    texts = respond(bench.model, topics, bench.corpus.seed)
    failing = [t for t, x in zip(topics, texts, strict=True) if bench.corpus.fails(x)]
    assert len(mutated) == 4 * len(failing)
