"""Copy success and disambiguation accuracy, counted by hand."""

import math

import pytest

from tokenry.core.errors import InputError
from tokenry.measure.constraint_copy import constraint_copy_metrics, occurs

MATCHES = [
    [["Bank", "Ufer"], ["Fluss"]],
    [["Bank", "Ufer"], ["Schloss", "Burg", "Verschluss"]],
    [["Haus"]],
]
REFERENCES = ["Am Ufer des Flusses, am Fluss.", "Die Bank im Schloss.", "Ein Gebäude."]
PREDICTIONS = ["Das ufer am Bach.", "Das Ufer im Schloss.", "Ein Haus."]


def test_counts_by_hand():
    found = constraint_copy_metrics(MATCHES, PREDICTIONS, REFERENCES)
    # Haus is not in its reference and does not count; Ufer in the second is the wrong sense.
    assert found.phrases == 4
    assert found.csr == 2 / 4
    assert found.by_degree == {1: 0.0, 2: 0.5, 3: 1.0}
    assert found.polysemy == pytest.approx((0.5 * math.log2(3) + 2) / 6)


def test_a_perfect_translation_has_success_one():
    found = constraint_copy_metrics(MATCHES, REFERENCES, REFERENCES)
    assert found.csr == 1.0
    assert set(found.by_degree.values()) == {1.0}


def test_a_candidate_counts_only_if_prediction_and_reference_share_it():
    both = constraint_copy_metrics([[["Bank", "Ufer"]]], ["Bank"], ["Ufer oder Bank"])
    other = constraint_copy_metrics([[["Bank", "Ufer"]]], ["Bank"], ["Ufer"])
    assert (both.csr, other.csr) == (1.0, 0.0)


def test_tokens_are_compared_side_by_side():
    assert occurs([1, 2], [0, 1, 2])
    assert not occurs([1, 2], [1, 0, 2])
    assert not occurs([1, 2], [1])
    found = constraint_copy_metrics([[[[5], [6, 7]]]], [[1, 6, 7]], [[6, 7]])
    assert found.csr == 1.0


def test_texts_are_compared_as_whole_words():
    assert occurs("fluss", "Der Fluss.")
    assert not occurs("Fluss", "Flusses")


def test_nothing_to_count_is_not_a_number_and_lengths_must_agree():
    found = constraint_copy_metrics([[]], ["a"], ["b"])
    assert math.isnan(found.csr)
    assert math.isnan(found.polysemy)
    assert found.by_degree == {}
    with pytest.raises(InputError, match="1 sources, 2 predictions and 1 references"):
        constraint_copy_metrics([[]], ["a", "b"], ["a"])
