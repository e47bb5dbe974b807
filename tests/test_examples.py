"""The programs that the documentation shows run as they stand, on a tiny model."""

import importlib.util
import math
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_papers_combine_by_arguments(tiny_llama_text, tiny_tokenizer):
    reports = example("combine").compare(
        (tiny_llama_text, tiny_tokenizer), as_chat=False, max_steps=2, disable_tqdm=True
    )
    assert set(reports) == {"mixed", "dpo"}
    for report in reports.values():
        assert len(report.pairs) == 12
        assert math.isfinite(report.margin)
    assert reports["mixed"].margin != reports["dpo"].margin
