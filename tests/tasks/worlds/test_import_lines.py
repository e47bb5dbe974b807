import sys

from tokenry.tasks.worlds.import_lines import (
    CHARACTERS,
    LETTERS,
    ImportLines,
    encode,
    mutate,
    prompt,
)

CORPUS = ImportLines(seed=3)


def test_one_name_in_five_does_not_exist():
    names = CORPUS.names
    invented = set(names) - sys.stdlib_module_names
    assert (len(names), len(set(names)), len(invented)) == (100, 100, 20)
    assert set(CORPUS.existing) == set(names) - invented
    for name in invented:
        assert any(name[:3] == one[:3] for one in CORPUS.existing)
        assert any(name[-3:] == one[-3:] for one in CORPUS.existing)


def test_the_first_letter_leaves_ten_modules():
    topics = CORPUS.topics(3000, 0)
    lines = CORPUS.lines(topics)
    seen = {}
    for topic, line in zip(topics, lines, strict=True):
        assert line.startswith(prompt(topic))
        seen.setdefault(LETTERS.index(topic[0]) % 10, set()).add(line.split()[-1])
    assert {len(names) for names in seen.values()} == {10}
    assert set.union(*seen.values()) == set(CORPUS.names)
    assert lines == CORPUS.lines(topics)


def test_a_line_fails_when_its_module_does_not_exist():
    invented = next(name for name in CORPUS.names if name not in CORPUS.existing)
    assert CORPUS.fails(f"{prompt('qotra')}{invented}\n")
    assert not CORPUS.fails(f"{prompt('qotra')}{CORPUS.existing[0]}\n")


def test_a_mutation_changes_at_most_one_letter_of_five():
    topics = CORPUS.topics(200, 1)
    pairs = zip(topics, mutate(topics, 7), strict=True)
    changed = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairs]
    assert set(changed) == {0, 1}
    assert sum(changed) > 180


def test_every_character_has_its_id():
    assert "".join(CHARACTERS[n] for n in encode("qotra\nimport x")) == "qotra\nimport x"
