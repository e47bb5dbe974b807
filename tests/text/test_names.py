"""Names: where they stand in a text, which exist, and the tokens that they cover."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.text.names import NameRegistry, hallucination_rate, tri_mask

REGISTRY = NameRegistry.of(["numpy", "numba", "scikit-learn", "pandas"], ignore=["os", "np"])


def names(text):
    return [(span.name, span.valid) for span in REGISTRY.classify(text)]


def characters(text):
    return [(n, n + 1) for n in range(len(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import numpy as np, numfast\nx = 1", [("numpy", True), ("numfast", False)]),
        ("  import numpy.linalg", [("numpy", True)]),
        ("from pandas.core import frame", [("pandas", True)]),
        ("import os\nimport numfast", [("numfast", False)]),
        ("pip install -U numpy pandas==2.1 quickml[extra]>=1, numba",
         [("numpy", True), ("pandas", True), ("quickml", False), ("numba", True)]),
        ("run `pip install scikit_learn` first", [("scikit_learn", True)]),
        ("You need the packages: numpy, fastcsv and more.", [("numpy", True), ("fastcsv", False)]),
        ("uv add NumPy.", [("NumPy", True)]),
        ("I import goods from Spain and numpy is not meant", []),
        ("", []),
    ],
)  # fmt: skip
def test_names_behind_commands_imports_and_lists(text, expected):
    assert names(text) == expected
    for span in REGISTRY.classify(text):
        assert text[span.start : span.end] == span.name


def test_a_name_is_found_wherever_it_occurs_again():
    text = "import numfast\nnumfast.run(numfaster)"
    assert [(s.start, s.end) for s in REGISTRY.occurrences(text)] == [(7, 14), (15, 22)]
    mask = tri_mask(characters(text), REGISTRY.occurrences(text))
    assert [n for n, label in enumerate(mask) if label] == [*range(7, 14), *range(15, 22)]
    assert set(mask) == {0, 2}


def test_any_overlap_counts():
    text = "import numpy, numfast"  # tokens: "import nu" "mpy, n" "umfast"
    offsets = [(0, 9), (9, 15), (15, 21), (21, 21)]
    assert tri_mask(offsets, REGISTRY.classify(text)) == [1, 2, 2, 0]


def test_only_what_distinguishes_a_name_from_valid_ones_is_forgotten():
    valid = NameRegistry.of(["numpy", "numba"])
    text = "import numfast"
    spans = valid.classify(text)
    mask = tri_mask(characters(text), spans, forget="first_divergent", registry=valid)
    assert text[mask.index(2) :] == "fast"
    assert sum(mask) == 2 * 4


def test_a_name_that_stops_too_early_is_forgotten_where_it_stops():
    text = "import num\n"
    mask = tri_mask(
        characters(text), REGISTRY.classify(text), forget="first_divergent", registry=REGISTRY
    )
    assert [n for n, label in enumerate(mask) if label] == [10]


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([(0, 7), (7, 9), (9, 10), (10, 10)], [0, 0, 0, 2]),  # the end mark covers no character
        ([(0, 7), (7, 9), (9, 10)], [0, 0, 2]),  # no token behind: the name's own last one
        ([(0, 7), (7, 10), (10, 10), (10, 10)], [0, 0, 2, 0]),
    ],
)
def test_a_name_that_stops_too_early_at_the_end_of_the_text_is_forgotten(offsets, expected):
    spans = REGISTRY.classify("import num")
    mask = tri_mask(offsets, spans, forget="first_divergent", registry=REGISTRY)
    assert mask == expected


def test_a_token_that_reaches_beyond_a_name_that_stops_too_early_is_where_it_stops():
    spans = REGISTRY.classify("import num\nx")
    offsets = [(0, 7), (7, 9), (9, 11), (11, 12)]
    mask = tri_mask(offsets, spans, forget="first_divergent", registry=REGISTRY)
    assert mask == [0, 0, 2, 0]


@given(st.text(alphabet="imporfn tpsal,=.-_\n`", max_size=60))
def test_any_text_can_be_read(text):
    for span in REGISTRY.classify("import " + text):
        assert 0 <= span.start < span.end


def test_rates():
    texts = ["import numpy, numfast", "import numba", "nothing", "import slowcsv, quickml"]
    assert hallucination_rate(texts, REGISTRY) == (pytest.approx(3 / 5), 0.5)
    assert hallucination_rate([], REGISTRY) == (0.0, 0.0)


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(InputError, match="without names"):
        NameRegistry.of([])
    with pytest.raises(InputError, match="registry"):
        tri_mask([], [], forget="first_divergent")
    with pytest.raises(UnknownNameError, match="whole"):
        tri_mask([], [], forget="hole")  # type: ignore[arg-type]
