"""The programs that the documentation shows run as they stand, on a tiny model."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.constraints.stop import Stop
from tokenry.decode.steering.ending import Ending
from tokenry.text.vocabulary import token_bytes

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


@torch.no_grad()
def test_the_exact_distribution_of_the_distortion_example(tiny_llama_text, tiny_tokenizer):
    """Against every tokenization of every text, scored one by one."""
    distortion = example("distortion")
    pieces = token_bytes(tiny_tokenizer)

    def tokenizations(rest):
        if not rest:
            return [[]]
        fits = [t for t, piece in enumerate(pieces) if piece and rest.startswith(piece)]
        return [[t, *more] for t in fits for more in tokenizations(rest[len(pieces[t]) :])]

    prompt = tiny_tokenizer.encode(distortion.PROMPT)
    grammar = Grammar.regex("(cat|the)[.]", tiny_tokenizer)
    stop = Ending(Stop(["."], tiny_tokenizer), prompt)
    found = distortion.exact((tiny_llama_text, tiny_tokenizer), grammar, stop)
    for text in ("cat.", "the."):
        mass = 0.0
        for ids in tokenizations(text.encode()):
            logits = tiny_llama_text(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
            logprobs = [float(logits[at, t]) for at, t in zip(places, ids, strict=True)]
            mass += math.exp(sum(logprobs))
        assert found[text] == pytest.approx(mass, rel=1e-3)
    assert found.keys() == {"cat.", "the."}
