"""The lines: replayed as text, and with each module switched off."""

import re

import pytest

from tokenry.tasks.suites.tail.algorithm import ABSENT
from tokenry.tasks.suites.tail.task import ALGORITHMS, TailTraces
from tokenry.tasks.suites.tail.trace import Machine, Step, lines

EACH = pytest.mark.parametrize("name", ALGORITHMS)
LINE = re.compile(r"(\S+):((?: \S+=\S+)*) ->((?: \S+=\S+)*) ; (\S+)")


def read(text):
    return [pair.partition("=")[::2] for pair in text.split()]


def parsed(lines):
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), lines
    return [(match[1], read(match[2]), read(match[3]), match[4]) for match in matches]


def number(text):
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


@EACH
@pytest.mark.parametrize("tier", ["S", "M"])
@pytest.mark.parametrize("atomic", [True, False])
def test_replayed_every_operand_is_the_latest_write_and_the_answer_comes_out(name, tier, atomic):
    algorithm = ALGORITHMS[name]
    for item in TailTraces(name, tier, atomic=atomic).items(8, 2):
        *steps, last = item.solution.split("\n")
        inputs = item.about["inputs"]
        memory = {address: str(value) for address, value in algorithm.tape(inputs).items()}
        for _, fetched, written, _ in parsed(steps):
            assert all(memory[address] == value for address, value in fetched)
            memory |= dict(written)
        values = {address: number(value) for address, value in memory.items()}
        assert f"= {algorithm.answer(inputs, values)}" == last


# backtracking returns to the call that made it, under a label that was used before
@pytest.mark.parametrize("name", sorted({*ALGORITHMS} - {"palindrome_permutations"}))
def test_every_step_goes_to_the_next_line(name):
    for item in TailTraces(name).items(8, 2):
        steps = parsed(item.solution.split("\n")[:-1])
        labels = [label for label, *_ in steps]
        assert [control for *_, control in steps] == [*labels[1:], "end"]
        assert len(set(labels)) == len(labels)


@EACH
def test_without_the_fetcher_only_the_operands_are_gone(name):
    for item in TailTraces(name).items(8, 2):
        *steps, last = item.solution.split("\n")
        without = TailTraces(name, fetch=False).trace(item.about["inputs"])
        kept = [re.sub(r": .*?-> ?", ": -> ", line).replace(">  ;", "> ;") for line in steps]
        assert [*kept, last] == without


@EACH
@pytest.mark.parametrize("tier", ["S", "L"])
def test_without_linear_transition_there_are_fewer_steps_and_the_same_answer(name, tier):
    for item in TailTraces(name, tier).items(4, 2):
        steps = item.solution.split("\n")
        fewer = TailTraces(name, tier, linear=False).trace(item.about["inputs"])
        assert fewer.count("...") == 1
        assert len(fewer) - 1 < len(steps)  # the dots are no step
        at = fewer.index("...")
        assert fewer == [*steps[:at], "...", *steps[len(steps) - (len(fewer) - at - 1) :]]


@EACH
def test_without_atomic_states_blocks_are_lines(name):
    for item in TailTraces(name).items(4, 2):
        inputs = item.about["inputs"]
        machine = Machine(ALGORITHMS[name].tape(inputs))
        ALGORITHMS[name].run(inputs, machine)
        blocks = [step.block for step in machine.steps]
        changes = 1 + sum(a != b for a, b in zip(blocks, blocks[1:], strict=False))  # noqa: RUF007
        merged = TailTraces(name, atomic=False).trace(inputs)
        assert len(merged) == changes + 1
        assert merged[-1] == item.solution.split("\n")[-1]


STEPS = [
    Step("a", {"x": 1, "y": 2}, {"z": 3}, "b", "one"),
    Step("b", {"z": 3, "x": 1}, {"z": 4, "w": ABSENT}, "c", "one"),
    Step("c", {"w": ABSENT}, {}, "d", "two"),
    Step("d", {}, {"w": 5}, "end", "three"),
]


def test_worked_lines():
    all_four = ["a: x=1 y=2 -> z=3 ; b", "b: z=3 x=1 -> z=4 w=- ; c", "c: w=- -> ; d"]
    all_four += ["d: -> w=5 ; end"]
    assert lines(STEPS) == all_four
    assert lines(STEPS, linear=False) == [*all_four[:2], "...", all_four[3]]
    assert lines(STEPS[:3], linear=False) == [all_four[0], "...", all_four[2]]
    assert lines(STEPS[:2], linear=False) == all_four[:2]  # nothing to jump over
    assert lines(STEPS, atomic=False) == ["a: x=1 y=2 -> z=4 w=- ; c", *all_four[2:]]
    assert lines(STEPS, fetch=False)[:3] == ["a: -> z=3 ; b", "b: -> z=4 w=- ; c", "c: -> ; d"]
    assert lines(STEPS, linear=False, atomic=False, fetch=False) == [
        "a: -> z=4 w=- ; c",
        "...",
        "d: -> w=5 ; end",
    ]
    assert lines(STEPS, style="styled") == [
        "At a, read x=1 y=2, write z=3, then b.",
        "At b, read z=3 x=1, write z=4 w=-, then c.",
        "At c, read w=-, then d.",
        "At d, write w=5, then end.",
    ]
    assert lines(STEPS, style="styled", fetch=False)[0] == "At a, write z=3, then b."
    assert lines([]) == []
