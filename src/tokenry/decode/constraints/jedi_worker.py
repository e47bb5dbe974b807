"""What runs jedi: reads requests, one JSON object a line, and writes an answer for each.

A request is {"text", "caret", "strict"}; an answer is {"completions": [[source, target], ...] or
null}, or {"failed": message} where jedi itself broke down. It is a program of its own, so that a
call that hangs can be ended with its process; `JediEngine` starts it. Nothing of Tokenry is
imported here.
"""

import json
import re
import sys
from functools import lru_cache
from typing import Any

STRINGS = re.compile(
    r"""#[^\n]*|(?P<triple>\"""|''')(?:\\.|.)*?(?:(?P=triple)|\Z)|(?P<quote>["'])"""
    r"""(?:\\.|(?!(?P=quote))[^\\\n])*(?P<closed>(?P=quote)|\n|\Z)""",
    re.DOTALL,
)
BRACKETS = re.compile(r"[()\[\]{}\n]")
LEFT = {")": "(", "]": "[", "}": "{"}
# a name may be new here: the start of a statement, other targets of an assignment, and what follows
# these words
BINDING = re.compile(
    r"(?:|(?:[*(\[]*\s*\w+\s*[)\]]*\s*,\s*)+[*(\[]*)"
    r"|(?:.*[^\w.])?(?:def|class|as|for|async|global|nonlocal|type)"
    r"|(?:.*[^\w.])?for\s(?:(?!\bin\b)[\w\s,()*\[\]])*"
    r"|(?:.*[^\w.])?lambda\b[^:]*"
    r"|(?:async\s+)?def\b.*|case\b.*",
    re.DOTALL,
)


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever prints must not print into the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            pairs = completions(request["text"], request["caret"], request["strict"])
            answer: dict[str, Any] = {"completions": pairs}
        except Exception as error:  # jedi raises all sorts of errors on code that is half written
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def completions(text: str, caret: int, strict: bool = True) -> list[tuple[str, str]] | None:
    """(source, target) of what jedi proposes at the caret; None where it cannot know.

    It cannot know inside strings and comments, in numbers, where a name may be new, and after an
    object of which it finds no attribute at all.

    Args:
        strict: names inside brackets must be known, which forbids `[x for x in ...]`, where x comes
            before its `for`, and keyword arguments of functions that jedi does not find; otherwise
            nothing is known about them.
    """
    before = text[:caret]
    match = re.search(r"\w*\Z", before)
    assert match is not None
    typed, start = match[0], match.start()
    if typed[:1].isdigit() or re.search(r"(?<![\w.])\d+\.\w*\Z", before) or inside_string(before):
        return None
    attribute = before[:start].endswith(".")
    if not attribute:
        head, in_brackets = statement(before[:start])
        if BINDING.fullmatch(head.strip()) or (in_brackets and not strict):
            return None
    names = names_at(before[:start] + text[caret:], start)
    if attribute and not names:
        return None
    return [(typed, name) for name in names if name.startswith(typed)]


@lru_cache(maxsize=256)
def names_at(text: str, caret: int) -> tuple[str, ...]:
    """All names that jedi proposes where nothing is typed yet: one answer for the whole name."""
    import jedi
    from jedi.api.environment import InterpreterEnvironment

    # what a parameter may be is guessed from all calls in the file: seconds, and never all of them
    jedi.settings.dynamic_params = False
    line = text.count("\n", 0, caret) + 1
    column = caret - (text.rfind("\n", 0, caret) + 1)
    # the environment of this process: no further one that would outlive it
    script = jedi.Script(text, environment=InterpreterEnvironment())
    return tuple(proposed.name for proposed in script.complete(line, column))


def inside_string(before: str) -> bool:
    """Whether a string or comment is open at the end."""
    last = None
    for match in STRINGS.finditer(before):
        last = match
    if last is None or last.end() < len(before):
        return False
    if last[0].startswith("#"):
        return True
    if quotes := last["triple"]:
        return len(last[0]) < 2 * len(quotes) or not last[0].endswith(quotes)
    return not last["closed"]


def statement(before: str) -> tuple[str, bool]:
    """The unfinished statement at the end, strings emptied, and whether a bracket is open in it."""
    bare = STRINGS.sub(lambda match: "" if match[0].startswith("#") else '""', before)
    start, open_brackets = 0, []
    for match in BRACKETS.finditer(bare):
        mark = match[0]
        if mark == "\n":
            start = start if open_brackets else match.end()
        elif mark in LEFT:
            if open_brackets and open_brackets[-1] == LEFT[mark]:
                open_brackets.pop()
        else:
            open_brackets.append(mark)
    head = bare[start:]
    # what follows a semicolon, or the colon of a one-line block, is a statement too
    if not open_brackets:
        head = re.split(r";|^\s*(?:else|try|finally)\s*:", head)[-1]
    return head, bool(open_brackets)


if __name__ == "__main__":
    main()
