import pytest
import torch

from tokenry.tasks.worlds.harmful_language import HarmfulLanguage

LANGUAGE = HarmfulLanguage(seed=3, share=0.3)


def test_the_share_of_harmful_sentences_is_exact():
    """An absorbing state gathers the sentences that had a harmful token."""
    chain, bad = LANGUAGE.chain.logprob.exp(), LANGUAGE.world.token_reward < 0
    assert bad.sum() == 4
    clean = torch.zeros(25, dtype=torch.float64)
    clean[-1], harmed = 1.0, 0.0
    for step in chain:
        after = clean @ step
        harmed += float(after[bad].sum())
        clean = torch.cat([after.masked_fill(bad, 0.0), torch.zeros(1, dtype=torch.float64)])
    assert harmed == pytest.approx(0.3, abs=1e-6)


def test_what_is_harmful_is_seen_in_the_sentence():
    bad = int((LANGUAGE.world.token_reward < 0).nonzero()[0])
    good = int((LANGUAGE.world.token_reward == 0).nonzero()[0])
    sentences = torch.tensor([[good] * 10, [good] * 9 + [bad], [bad] + [good] * 9])
    assert LANGUAGE.harmful(sentences).tolist() == [False, True, True]
    drawn = LANGUAGE.chain.sample(20_000, torch.Generator().manual_seed(0))
    assert float(LANGUAGE.harmful(drawn).double().mean()) == pytest.approx(0.3, abs=0.015)


def test_between_harmless_tokens_the_language_is_the_worlds():
    good = LANGUAGE.world.token_reward >= 0
    ours, worlds = (c.logprob[0][:, good] for c in (LANGUAGE.chain, LANGUAGE.world.language))
    torch.testing.assert_close(ours.log_softmax(-1), worlds.log_softmax(-1))
