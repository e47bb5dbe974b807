"""Losses behind a prompt against plain passes; rivals of sparse attention; rank correlation."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from tokenry.lab.prompt_policies import (
    Eviction,
    RandomSets,
    Remembered,
    mean_kl,
    prefilled,
    rank_correlation,
    saliency_correlation,
    tail_logprobs,
)
from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.tokenselect import TokenSelect

IDS = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(0))
PROMPT, TEXT = IDS[:, :30], IDS[:, 30:]


def plain_loss(model):
    with torch.no_grad():
        logprob = model(IDS).logits[:, 29:-1].log_softmax(-1)
    return -logprob.gather(-1, TEXT[..., None])[..., 0]


def test_with_room_for_every_key_nothing_is_lost(tiny_llama):
    before = tiny_llama.config._attn_implementation
    with prefilled(tiny_llama, PROMPT) as read:
        full = read.under(TEXT, H2O(heavy=0, recent=100))
        selected, served = read.selecting(TEXT, TokenSelect(n_init=4, k=60, n_local=20))
        bounded = read.under(TEXT, H2O(heavy=0, recent=4))
    assert tiny_llama.config._attn_implementation == before
    torch.testing.assert_close(full, plain_loss(tiny_llama), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(selected, plain_loss(tiny_llama), rtol=1e-4, atol=1e-4)
    assert 0 <= served <= 1
    # the first token comes with the prompt, the others see less
    torch.testing.assert_close(bounded[:, 0], full[:, 0])
    assert not torch.allclose(bounded[:, 1:], full[:, 1:], atol=1e-3)


def test_a_selection_that_serves_always_is_counted(tiny_llama):
    with prefilled(tiny_llama, PROMPT) as read:
        rates = [
            read.selecting(TEXT, TokenSelect(n_init=2, k=4, n_local=4, reuse=reuse))[1]
            for reuse in (2.0, -1.0)
        ]
    assert rates[0] == 0.0
    assert rates[1] > 0.5


def test_policies_of_one_prefill_do_not_disturb_each_other(tiny_llama):
    with prefilled(tiny_llama, PROMPT) as read:
        once = read.under(TEXT, H2O(heavy=2, recent=4), "random", seed=1)
        read.selecting(TEXT, TokenSelect(n_init=2, k=4, n_local=4))
        assert read.under(TEXT, H2O(heavy=2, recent=4), "random", seed=1).equal(once)


def test_divergence_of_the_last_positions(tiny_llama):
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    by_hand = (0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)) / 2
    assert mean_kl(p.clamp_min(1e-30).log(), q.log()) == pytest.approx(by_hand)
    tail = tail_logprobs(tiny_llama, IDS[:1], 3)
    with torch.no_grad():
        torch.testing.assert_close(tail, tiny_llama(IDS[:1]).logits[0, -3:].log_softmax(-1))


def test_sets_that_are_remembered_drawn_and_shared(tiny_llama):
    options = {"layers": (1, 2), "tau": 0.3, "window": 4, "min_tokens": 4}
    ours = Remembered(**options)
    with ours.on(tiny_llama):
        tail_logprobs(tiny_llama, IDS[:1], 2)
    sizes = ours.sizes(40)
    assert len(sizes) == 2
    assert all(8 <= size <= 40 for size in sizes)
    rival = RandomSets(sizes=list(sizes), generator=torch.Generator().manual_seed(0), **options)
    with rival.on(tiny_llama) as prefill:
        tail_logprobs(tiny_llama, IDS[:1], 2)
    read = [int(n) for n in prefill.cost.attended.values()]
    assert read == [size for size in sizes if size < 40]
    evicting = Eviction(size=9, **options)
    with evicting.on(tiny_llama) as prefill:
        tail_logprobs(tiny_llama, IDS[:1], 2)
    assert [int(n) for n in prefill.cost.attended.values()] == [9, 9]
    shared = evicting.chosen[0][0]  # [H, 9]
    assert (shared == shared[:1]).all()
    assert shared[0, -4:].tolist() == [36, 37, 38, 39]


def test_columns_that_are_read_again_by_hand():
    first, last = torch.tensor([[[0, 4], [1, 4]]]), torch.tensor([[[1, 4], [1, 4]]])
    ours = Remembered(chosen=[first, None, last])
    # head 0 dropped 1, 2, 3 and 1 came back; head 1 dropped 0, 2, 3 and none did
    assert ours.read_again(5) == pytest.approx(1 / 6)
    assert Remembered().read_again(5) == 0.0


def test_rank_correlation_is_spearmans():
    left, right = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    expected = [spearmanr(a, b).statistic for a, b in zip(left, right, strict=True)]
    torch.testing.assert_close(
        rank_correlation(left, right).tolist(), expected, rtol=1e-4, atol=1e-4
    )


def test_saliency_is_correlated_and_the_model_left_as_it_was(tiny_llama):
    before = tiny_llama.config._attn_implementation
    found = saliency_correlation(tiny_llama, IDS[:1], (0, 2), window=8)
    assert -1 <= found <= 1
    assert tiny_llama.config._attn_implementation == before
    single = [saliency_correlation(tiny_llama, IDS[:1], (layer,), 8) for layer in (0, 2)]
    assert found == pytest.approx(sum(single) / 2, abs=1e-6)
