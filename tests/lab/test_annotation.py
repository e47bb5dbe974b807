"""Pairs that differ in the label most easily confused, and what a point measures."""

import pytest
import torch

from tokenry.lab.annotation import AnnotationBench, label_logprobs
from tokenry.lab.toy_training import completed
from tokenry.tasks.worlds.annotation import FIRST_LABEL, LABEL_PLACES, Annotation, answers


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    small = {"pairs": 20, "held_out": 12, "batch_size": 8, "steps": 2, "every": 1}
    return AnnotationBench(Annotation(1), tune_steps=2, **small)


def test_label_probabilities_are_those_behind_the_right_scaffold(bench):
    prompts, labels = bench.task.draw(3, torch.Generator().manual_seed(0))
    batch = completed(prompts, answers(labels))
    with torch.no_grad():
        logprob = bench.tuned(batch.ids).logits.log_softmax(-1)
    for side, place in enumerate(LABEL_PLACES):
        expected = logprob[:, 9 + place - 1, FIRST_LABEL : FIRST_LABEL + 6]
        torch.testing.assert_close(label_logprobs(bench.tuned, prompts, labels)[:, side], expected)


def test_the_rival_is_the_class_taken_most_often_and_never_the_class_itself(bench):
    prompts, labels = bench._data[0]
    probability = label_logprobs(bench.tuned, prompts, labels).exp()
    for side in (0, 1):
        for label in range(6):
            mass = probability[labels[:, side] == label, side].sum(0)
            mass[label] = -1.0
            assert bench.rival[side, label] == mass.argmax()


def test_a_pair_differs_in_one_label_which_is_its_rival(bench):
    batch = bench.batch(torch.Generator().manual_seed(3))
    chosen, rejected = batch.ids.chunk(2)
    differs = chosen != rejected
    assert (differs.sum(1) == 1).all()
    for row, place in differs.nonzero().tolist():
        side = LABEL_PLACES.index(place - 9)
        right, wrong = (int(ids[row, place]) - FIRST_LABEL for ids in (chosen, rejected))
        assert wrong == bench.rival[side, right]
    assert batch.group.tolist() == [*range(8)] * 2


def test_weights_are_codes_times_differences(bench):
    batch = bench.batch(torch.Generator().manual_seed(3))
    differs = (batch.ids.chunk(2)[0] != batch.ids.chunk(2)[1]).repeat(2, 1)
    weight = batch.column("weight")
    code = torch.zeros(23, dtype=torch.bool)
    code[[9 + place for place in LABEL_PLACES]] = True
    torch.testing.assert_close(weight[differs], torch.full((16,), 1.2 * 1.1))
    torch.testing.assert_close(weight[~differs & code], torch.full((16,), 1.1))
    assert set(weight[:, ~code][:, 9:].unique().tolist()) == {1.0}
    assert (weight[:, :9] == 0).all()


def test_a_point_has_exact_matches_and_both_labels_log_probabilities(bench):
    prompts, labels = bench._data[2]
    logprobs = label_logprobs(bench.tuned, prompts, labels)
    point = bench.measure(0, bench.tuned)
    exact = [(row.argmax(-1) == pair).all() for row, pair in zip(logprobs, labels, strict=True)]
    assert point.exact == pytest.approx(sum(map(int, exact)) / 12)
    right = [logprobs[n, s, labels[n, s]] for n in range(12) for s in (0, 1)]
    rival = [logprobs[n, s, bench.rival[s, labels[n, s]]] for n in range(12) for s in (0, 1)]
    assert point.right == pytest.approx(float(sum(right)) / 24, abs=1e-5)
    assert point.confused == pytest.approx(float(sum(rival)) / 24, abs=1e-5)
