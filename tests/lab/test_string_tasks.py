"""Answers are judged by their text, their length, and the marker that they wrote."""

import pytest
import torch

import tokenry.lab.string_tasks as module
from tokenry.lab.string_tasks import StringBench
from tokenry.learn.preference.treasure_markers import TreasureMarkers
from tokenry.tasks.worlds.string_tasks import FREQUENCIES


@pytest.fixture(scope="module")
def bench():
    return StringBench(1, rows=400, per_task=1, steps=1)


def test_answers_behind_a_marker_block_are_judged(bench, monkeypatch):
    tests = bench.data[1]
    assert [row["markers"]["task"] for row in tests] == list(FREQUENCIES)

    def written(model, prompts, length, generator, *, end, greedy):
        texts = [row["chosen"] for row in tests]
        texts[1] = f"[task: reverse] {tests[1]['chosen']}"
        texts[2] = f"[task: copy] {tests[2]['chosen']} a"
        texts[3] = (
            "a" + tests[3]["chosen"][1:]
            if tests[3]["chosen"][0] != "a"
            else "b" + tests[3]["chosen"][1:]
        )
        ids = [bench.tokenizer(text)["input_ids"] for text in texts]
        return torch.tensor([row + [end] * (16 - len(row)) for row in ids])

    monkeypatch.setattr(module, "sample_on", written)
    answers = bench.answers(None)
    assert answers.right.tolist() == [True, True, False, False, True, True]
    assert answers.wrong_length.tolist() == [False, False, True, False, False, False]
    assert answers.marker.tolist() == [False, True, False, False, False, False]


def test_fixed_markers_stand_behind_the_prompt(bench, monkeypatch):
    shown = []

    def watch(model, prompts, *_, **__):
        shown.append(prompts)
        return torch.zeros(len(prompts), 16, dtype=torch.long)

    monkeypatch.setattr(module, "sample_on", watch)
    for fixed in (False, True):
        bench.answers(None, fixed=fixed)
    plain, marked = shown
    assert torch.equal(marked[:, : plain.shape[1]], plain)
    for row, ids in zip(bench.data[1], marked, strict=True):
        behind = bench.tokenizer.decode(ids[plain.shape[1] :])
        assert f"task : {row['markers']['task']}" in behind
        assert f"length : {row['markers']['length']}" in behind


def test_without_markers_the_same_rows_are_learnt(bench):
    one = bench.train(TreasureMarkers(computed=()), markers=False)
    two = bench.train(TreasureMarkers(computed=()))
    assert not torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert all(row["markers"] is not None for row in bench.data[0])
