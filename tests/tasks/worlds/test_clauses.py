"""Clauses: which texts are valid, how often they are empty, and how long they are."""

import random

from tokenry.tasks.worlds.clauses import (
    CONTENT,
    DIALECTS,
    END,
    LIMIT,
    OPENERS,
    VOCABULARY,
    ClauseLanguage,
)


def test_texts_are_valid_or_empty_three_in_a_hundred_and_end_within_the_limit():
    language = ClauseLanguage(seed=4)
    rows = language.texts(4000, random.Random(0))
    texts = [row[1:-1] for row in rows]
    assert all(row[0] in DIALECTS and row[-1] == END for row in rows)
    assert abs(sum(not text for text in texts) / len(texts) - 0.03) < 0.01
    assert all(language.valid(row[0], row[1:-1]) for row in rows if row[1:-1])
    assert max(map(len, texts)) < LIMIT
    assert {token for row in rows for token in row} <= set(range(VOCABULARY))
    # behind a clause from the third on, before 18 tokens, three texts of ten end
    at_risk = ended = 0
    for text in filter(None, texts):
        clauses, at = 0, 0
        while at < len(text):
            at += OPENERS[text[at]]
            clauses += 1
            if clauses >= 3 and at < 18:
                at_risk, ended = at_risk + 1, ended + (at == len(text))
    assert abs(ended / at_risk - 0.3) < 0.03


def test_what_breaks_a_clause_is_not_valid():
    language = ClauseLanguage(seed=0)
    dialect = DIALECTS[0]
    text: list[int] = []
    for opener in OPENERS:
        text.append(opener)
        while len(text) < sum(size for o, size in OPENERS.items() if o <= opener):
            text.append(next(iter(language.follows[dialect, text[-1]])))
    assert len(text) == 2 + 3 + 5
    assert language.valid(dialect, text)
    assert not language.valid(dialect, [])
    assert not language.valid(dialect, text[:-1])  # the last clause is cut
    assert not language.valid(dialect, text[:5])  # two clauses
    assert not language.valid(dialect, [CONTENT[0], *text])
    wrong = next(s for s in CONTENT if s not in language.follows[dialect, text[0]])
    assert not language.valid(dialect, [text[0], wrong, *text[2:]])


def test_a_seed_is_one_language():
    assert ClauseLanguage(1).follows == ClauseLanguage(1).follows
    assert ClauseLanguage(1).openers != ClauseLanguage(2).openers
    follows = ClauseLanguage(1).follows
    assert {len(after) for after in follows.values()} == {4}
    assert follows.keys() == {(d, s) for d in DIALECTS for s in (*OPENERS, *CONTENT)}
