"""Cut names: prompts are whole lines of source up to the inside of a name of 6 to 12 letters."""

import re

from tokenry.tasks.standard_library import source
from tokenry.tasks.suites.cut_names import MODULES, cut_names


def test_a_prompt_and_its_rest_are_source_cut_inside_a_name():
    texts = [source(module) for module in MODULES]
    for cut in cut_names(60, seed=2):
        (text,) = [text for text in texts if cut.prompt + cut.rest in text][:1]
        begin = text.index(cut.prompt + cut.rest)
        assert begin == 0 or text[begin - 1] == "\n"
        head = re.search(r"[A-Za-z_]*$", cut.prompt)
        assert 1 < len(cut.rest) + 1 <= 9
        assert len(head[0]) >= 2
        assert re.fullmatch(r"[A-Za-z_]+", cut.rest)
        assert len(cut.prompt) - len(head[0]) >= 160
    assert cut_names(5, 1) == cut_names(5, 1)
    assert cut_names(5, 1) != cut_names(5, 2)


def test_a_rest_is_as_long_as_it_may_be():
    assert {len(cut.rest) for cut in cut_names(300, 0, most=3)} == {2, 3}
