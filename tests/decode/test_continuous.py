"""Continuous chains of thought: the same as by hand without a cache, and what is mixed."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.decode.continuous import continuous_generate, mixture

ALPHA = torch.tensor([[0.5, 0.3, 0.1995, 0.0005], [0.0, 0.0, 1.0, 0.0]])


@pytest.mark.parametrize("mode", ["mean", "greedy"])
def test_with_a_cache_it_is_what_the_model_says_of_the_embeddings(tiny_llama, mode):
    asked = TokenBatch.from_ids([[5, 6, 7], [8]], padding_side="left")
    alpha, answers = continuous_generate(
        tiny_llama, asked.ids, 3, mode, attention=asked.attention, answer=2
    )
    table = tiny_llama.get_input_embeddings().weight
    for row, prompt in enumerate(([5, 6, 7], [8])):
        embedded = table[torch.tensor(prompt)]
        for step in range(5):
            with torch.no_grad():
                logits = tiny_llama(inputs_embeds=embedded[None]).logits[0, -1]
            p = logits.softmax(-1)
            one = torch.nn.functional.one_hot(p.argmax(), len(p)).to(p)
            if step < 3:
                torch.testing.assert_close(alpha[row, step], p, rtol=1e-3, atol=1e-5)
            else:
                assert answers[row][step - 3] == int(p.argmax())
            beta = p if mode == "mean" and step < 3 else one
            embedded = torch.cat([embedded, (beta @ table)[None]])


def test_without_thoughts_it_answers_at_once(tiny_llama):
    ids = torch.tensor([[5, 6]])
    alpha, answers = continuous_generate(tiny_llama, ids, 0)
    with torch.no_grad():
        logits = tiny_llama(ids).logits[0, -1]
    assert answers == [[int(logits.argmax())]]
    assert alpha.shape == (1, 0, len(logits))


@pytest.mark.parametrize("tokens", [1, 3, 12])
def test_the_mean_of_draws_is_unbiased_and_its_variance_falls_as_one_over_k(tokens):
    rows = 20_000
    generator = torch.Generator().manual_seed(0)
    beta = mixture(ALPHA[:1].expand(rows, -1), "mts", tokens, generator=generator)
    torch.testing.assert_close((beta * tokens).round(), beta * tokens)
    p = ALPHA[0]
    variance = p * (1 - p) / tokens
    assert ((beta.mean(0) - p).abs() < 6 * (variance / rows).sqrt() + 1e-6).all()
    torch.testing.assert_close(beta.var(0)[:3], variance[:3], rtol=0.1, atol=0)


def test_dirichlet_draws_have_the_mean_and_the_spread_of_their_concentration():
    """Var = p (1 - p) / (gamma + 1) over the tokens that are kept."""
    rows, gamma = 20_000, 4.0
    generator = torch.Generator().manual_seed(0)
    beta = mixture(ALPHA[:1].expand(rows, -1), "dirichlet", 1, gamma, generator)
    torch.testing.assert_close(beta.sum(-1), torch.ones(rows))
    assert (beta[:, 3] == 0).all()  # below 1e-3
    p = ALPHA[0] / ALPHA[0, :3].sum()
    variance = p * (1 - p) / (gamma + 1)
    assert ((beta.mean(0) - p).abs()[:3] < 6 * (variance / rows).sqrt()[:3]).all()
    torch.testing.assert_close(beta.var(0)[:3], variance[:3], rtol=0.1, atol=0)
    sure = mixture(ALPHA[1:], "dirichlet", generator=generator)
    assert sure.tolist() == [[0, 0, 1, 0]]


def test_bad_settings_are_refused(tiny_llama):
    ids = torch.tensor([[5, 6]])
    for wrong in ({"mode": "other"}, {"tokens": 0}, {"concentration": 0.0}, {"steps": -1}):
        with pytest.raises(InputError):
            continuous_generate(tiny_llama, ids, **{"steps": 1, **wrong})
