"""The README's Python example runs as it stands."""

import re
from pathlib import Path

import pytest


@pytest.mark.model
def test_the_readmes_example_runs(capsys, smollm2):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Sydney" in printed
    assert '"city"' in printed
