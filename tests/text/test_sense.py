"""Words that carry the sense of a text, against hand-made lists."""

import pytest

from tokenry.text.compression import words
from tokenry.text.sense import KEPT, KINDS, senses


def kinds(text):
    spans = words(text)
    found = zip(spans, senses(text, spans), strict=True)
    return {text[start:end]: kind for (start, end), kind in found if kind}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the rate did not rise", {"not": "negations"}),
        ("it doesn’t; we can't, cannot.", {"doesn’t;": "negations", "can't,": "negations",
                                           "cannot.": "negations"}),
        ("er kommt nicht, sans doute", {"nicht,": "negations", "sans": "negations"}),
        ("notable knots in another northern place", {"another": None}),
        ("doses of 10 mg/kg, five weeks", {"10": "numbers", "mg/kg,": "units", "five": "numbers",
                                           "weeks": "units"}),
        ("a week of 3.5 %", {"3.5": "numbers", "%": "numbers"}),
        ("The river is wide. We saw Ada's boat in Paris",
         {"Ada's": "names", "Paris": "names"}),
        ("Berlin grew. Tea is hot, and tea is good.", {"Berlin": "names"}),
        ("ask NASA or a@b.org via GitHub", {"NASA": "names", "a@b.org": "names",
                                            "GitHub": "names"}),
        ("I think I'm right", {}),
        ("THIS IS ALL IN CAPITALS", {"ALL": "degrees"}),
        ("it may rise unless all fall", {"may": "modals", "unless": "conditions",
                                         "all": "degrees"}),
        ("売上は伸びなかった", {"な": "negations", "か": "negations", "っ": "negations",
                          "た": "negations"}),
        ("", {}),
    ],
)  # fmt: skip
def test_words_of_each_kind(text, expected):
    assert kinds(text) == {word: kind for word, kind in expected.items() if kind}


def test_what_is_kept_by_default_are_kinds():
    assert set(KEPT) < set(KINDS)
    assert KEPT == ("negations", "numbers", "units", "names")
