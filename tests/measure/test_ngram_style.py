"""The style sweep's measures on texts whose values are known."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.steering.ngram_style import NGramStyle
from tokenry.measure.ngram_style import contexts, distinct_n, judge, style_sweep, until_end
from tokenry.text.ngrams import NOTHING, NGramModel

PROMPTS = ["the cat", "there is a theory"]


@pytest.fixture(scope="module")
def ngrams(tiny_tokenizer):
    texts = ["the cat sat on the mat", "their father gathered feathers"]
    return NGramModel.fit(
        [tiny_tokenizer(text)["input_ids"] for text in texts], len(tiny_tokenizer)
    )


def test_the_measures_step_by_step(tiny_llama_text, tiny_tokenizer, ngrams):
    prompt, text = [tiny_tokenizer(text)["input_ids"] for text in ("the cat", " sat on a mat")]
    point = judge((tiny_llama_text, tiny_tokenizer), ngrams, 0.5, [prompt], [text])
    base, apart, changed = [], [], []
    with torch.no_grad():
        for t, token in enumerate(text):
            so_far = torch.tensor([[*prompt, *text[:t]]])
            logits = tiny_llama_text(so_far).logits[:, -1].float()
            steered = NGramStyle(ngrams, 0.5)(so_far, logits)
            base.append(float(logits.log_softmax(-1)[0, token]))
            p, q = logits.softmax(-1)[0], steered.softmax(-1)[0]
            m = (p + q) / 2
            apart.append(float((p * (p / m).log() + q * (q / m).log()).sum() / 2))
            changed.append(float(logits.argmax() != steered.argmax()))
    style = ngrams.logprob([*prompt, *text])[len(prompt) :]
    assert point.base_perplexity == pytest.approx(math.exp(-sum(base) / len(base)), rel=1e-3)
    assert point.style_perplexity == pytest.approx(math.exp(-float(style.mean())), rel=1e-5)
    assert point.divergence == pytest.approx(sum(apart) / len(apart), abs=1e-5)
    assert point.changed == pytest.approx(sum(changed) / len(changed))
    assert point.token_overlap == pytest.approx(float(ngrams.knows(text).float().mean()))
    assert point.distinct_2 == distinct_n(text)


def test_a_sweep_is_repeatable_and_starts_at_the_model(tiny_llama_text, tiny_tokenizer, ngrams):
    loaded = (tiny_llama_text, tiny_tokenizer)
    options = {"strengths": (0.0, 2.0), "samples": 2, "max_new_tokens": 8, "seed": 4}
    plain, steered = style_sweep(loaded, ngrams, PROMPTS, **options)
    assert plain.divergence < 1e-6
    assert plain.changed == 0.0
    assert steered.divergence > 0.1
    assert steered.style_perplexity < plain.style_perplexity
    assert len(plain.texts) == 4
    assert style_sweep(loaded, ngrams, PROMPTS, **options)[1] == steered


def test_contexts_reach_back_before_the_text():
    ids = torch.tensor([5, 6, 7])
    assert contexts(ids, 0, 3).tolist() == [[NOTHING, NOTHING], [NOTHING, 5], [5, 6]]
    assert contexts(ids, 2, 2).tolist() == [[6]]
    assert contexts(ids, 1, 1).shape == (2, 0)


def test_small_pieces():
    assert distinct_n([1, 2, 1, 2]) == pytest.approx(2 / 3)
    assert distinct_n([1]) == 1.0
    assert until_end([3, 4, 0, 5], [0]) == [3, 4]
    with pytest.raises(InputError, match="prompt"):
        style_sweep((None, None), None, [])
