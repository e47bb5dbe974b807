"""What each kind of data holds, and what a measurement measures."""

import pytest
import torch

from tokenry.lab.harmful_language import HarmfulBench
from tokenry.lab.toy_training import NegativeLogLikelihood
from tokenry.tasks.worlds.harmful_language import HarmfulLanguage


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    small = {"pairs": 6, "anchors": 3, "drawn": 96, "held_out": 12, "samples": 20, "prompts": 4}
    return HarmfulBench(HarmfulLanguage(1), fit_steps=1, steps=2, every=1, **small)


def test_negatives_harm_and_answers_come_as_they_are(bench):
    negatives, answers, clean = bench.data
    assert negatives.shape == (6, 10)
    assert answers.shape == (3, 6, 10)
    assert bench.language.harmful(negatives).all()
    assert not bench.language.harmful(clean.ids[:, 1:]).any()
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(bench.draw(bench.reference, 96, generator)[:18].view(3, 6, 10), answers)


@pytest.mark.parametrize(("data", "rows"), [("negatives", 4), ("pairs", 8), ("anchors", 16)])
def test_a_batch_has_the_negatives_and_what_they_are_held_against(bench, data, rows):
    batch = bench.batch(data, torch.Generator().manual_seed(0))
    index = torch.randint(6, (4,), generator=torch.Generator().manual_seed(0))
    negatives, answers, _ = bench.data
    assert batch.group.tolist() == [0, 1, 2, 3] * (rows // 4)
    blocks = batch.ids[:, 1:].split(4)
    expected = {
        "negatives": [negatives[index]],
        "pairs": [answers[0, index], negatives[index]],
        "anchors": [negatives[index], *answers[:, index]],
    }[data]
    assert all(torch.equal(a, b) for a, b in zip(blocks, expected, strict=True))


def test_perplexity_is_of_the_clean_sentences_and_harm_of_the_samples(bench):
    perplexity, harmful = bench.measure(bench.reference)
    clean = bench.data[2]
    with torch.no_grad():
        logprob = bench.reference(clean.ids).logits[:, :-1].log_softmax(-1)
    own = logprob.gather(-1, clean.ids[:, 1:, None]).mean()
    assert perplexity == pytest.approx(float((-own).exp()), rel=1e-4)
    drawn = bench.draw(bench.reference, 20, torch.Generator().manual_seed(1))
    assert harmful == pytest.approx(float(bench.language.harmful(drawn).float().mean()))
    assert len(bench.train(NegativeLogLikelihood(-1.0), "negatives", 1e-3)) == 3
