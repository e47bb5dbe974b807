"""The report on held-out pairs: zero at the reference, sums of its parts elsewhere."""

import copy

import pytest
import torch

from tokenry.learn.reference import FrozenModel
from tokenry.learn.report import preference_report

PAIRS = [
    {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " gathered"},
    {"prompt": "the dog", "chosen": " sat", "rejected": " gathered feathers there"},
    {"prompt": "a theory", "chosen": " there", "rejected": " is a mat"},
]


@pytest.fixture
def moved(tiny_llama_text):
    policy = copy.deepcopy(tiny_llama_text)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def test_margin_and_kl_vanish_at_the_reference(tiny_llama_text, tiny_tokenizer):
    report = preference_report(tiny_llama_text, tiny_tokenizer, PAIRS, FrozenModel(tiny_llama_text))
    assert len(report.pairs) == 3
    assert report.margin == pytest.approx(0.0, abs=1e-5)
    assert report.kl == pytest.approx(0.0, abs=1e-6)
    assert report.accuracy == 0.0


def test_numbers_do_not_depend_on_the_batch_size(moved, tiny_llama_text, tiny_tokenizer):
    one, three = (
        preference_report(
            moved, tiny_tokenizer, PAIRS, FrozenModel(tiny_llama_text), batch_size=size
        )
        for size in (1, 3)
    )
    assert one.margin == pytest.approx(three.margin, abs=1e-5)
    assert one.kl == pytest.approx(three.kl, abs=1e-5)
    assert one.kl > 0


def test_a_pair_has_its_tokens_and_the_sums_of_its_parts(moved, tiny_llama_text, tiny_tokenizer):
    report = preference_report(moved, tiny_tokenizer, PAIRS, FrozenModel(tiny_llama_text), beta=0.5)
    for pair, given in zip(report.pairs, PAIRS, strict=True):
        assert "".join(pair.chosen.tokens) == given["chosen"] + "</s>"
        assert len(pair.chosen.kl) == len(pair.chosen.tokens) == len(pair.chosen.logprob)
        assert min(pair.chosen.kl + pair.rejected.kl) > 0
        ratio = sum(pair.chosen.log_ratio) - sum(pair.rejected.log_ratio)
        assert pair.margin == pytest.approx(0.5 * ratio)
    assert report.accuracy == sum(pair.margin > 0 for pair in report.pairs) / 3
