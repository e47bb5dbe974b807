"""The toy preference world against enumeration of all its sequences."""

import itertools

import pytest
import torch

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.tasks.preferences import helpful_pairs
from tokenry.tasks.worlds.preference import MarkovPolicy, PreferenceWorld, opposed

SMALL = PreferenceWorld(seed=2, vocabulary=3, length=4, liked=1, disliked=1)
ALL = torch.tensor(list(itertools.product(range(3), repeat=4)))


def enumerated(policy):
    return policy.sequence_logprob(ALL).exp()


@pytest.mark.parametrize(
    "policy", [SMALL.language, SMALL.optimum(0.5)], ids=["language", "optimum"]
)
def test_probabilities_of_all_sequences_sum_to_one(policy):
    assert float(enumerated(policy).sum()) == pytest.approx(1.0)


def test_the_optimum_is_the_tilted_language():
    beta = 0.4
    tilted = enumerated(SMALL.language) * (SMALL.reward(ALL) / beta).exp()
    torch.testing.assert_close(enumerated(SMALL.optimum(beta)), tilted / tilted.sum())


def test_exact_expectation_kl_and_entropy_agree_with_enumeration():
    p, q = SMALL.optimum(0.7), SMALL.language
    mass, other = enumerated(p), enumerated(q)
    assert p.kl(q) == pytest.approx(float((mass * (mass / other).log()).sum()))
    assert p.expected(SMALL.token_reward) == pytest.approx(float(mass @ SMALL.reward(ALL)))
    assert p.entropy() == pytest.approx(float(-(mass * mass.log()).sum()))


def test_no_other_chain_does_better_than_the_optimum():
    beta, generator = 0.5, torch.Generator().manual_seed(0)

    def value(policy):
        return policy.expected(SMALL.token_reward) - beta * policy.kl(SMALL.language)

    best = SMALL.optimum(beta)
    for _ in range(20):
        noise = 0.1 * torch.randn(best.logprob.shape, generator=generator, dtype=torch.float64)
        assert value(MarkovPolicy((best.logprob + noise).log_softmax(-1))) < value(best)


def test_samples_follow_the_chain():
    """20,000 samples; every cell within 6 standard errors: false alarm below 81 * 2e-9 < 1e-6."""
    count = 20_000
    drawn = SMALL.language.sample(count, torch.Generator().manual_seed(1))
    index = (drawn * torch.tensor([27, 9, 3, 1])).sum(-1)
    share = torch.bincount(index, minlength=81) / count
    expected = enumerated(SMALL.language)
    error = (expected * (1 - expected) / count).sqrt().clamp_min(1 / count)
    assert ((share - expected).abs() < 6 * error).all()


def test_labels_follow_bradley_terry():
    """The share of pairs that prefer the better sequence; 6 standard errors, false alarm 2e-9."""
    world = PreferenceWorld(seed=0)
    pairs = world.pairs(4000, torch.Generator().manual_seed(0))
    gap = world.reward(pairs.chosen) - world.reward(pairs.rejected)
    for size in (1.0, 2.0):
        these = gap.abs() == size
        share = (gap[these] > 0).double().mean()
        error = 0.5 / these.sum().sqrt()
        assert abs(share - torch.sigmoid(torch.tensor(size))) < 6 * error


def test_pairs_never_hold_two_equal_sequences_and_come_in_the_number_asked_for():
    tiny = PreferenceWorld(seed=0, vocabulary=2, length=1, liked=1, disliked=1)
    pairs = tiny.pairs(50, torch.Generator().manual_seed(0))
    assert len(pairs) == 50
    assert (pairs.chosen != pairs.rejected).any(-1).all()


def test_same_seed_same_world_and_another_seed_another():
    assert torch.equal(PreferenceWorld(seed=4).token_reward, PreferenceWorld(seed=4).token_reward)
    assert not torch.equal(
        PreferenceWorld(seed=4).language.logprob, PreferenceWorld(seed=5).language.logprob
    )


def test_a_batch_has_chosen_rows_first_and_the_start_token_as_prompt():
    world = PreferenceWorld(seed=0)
    pairs = world.pairs(3, torch.Generator().manual_seed(0))
    batch = world.batch(pairs)
    assert torch.equal(batch.ids[:3, 1:], pairs.chosen)
    assert torch.equal(batch.ids[3:, 1:], pairs.rejected)
    assert (batch.ids[:, 0] == world.start).all()
    assert batch.group.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.target[:, 1:].all()
    assert not batch.target[:, 0].any()


def test_more_rewarded_tokens_than_tokens_is_an_error():
    with pytest.raises(InputError, match="do not fit"):
        PreferenceWorld(vocabulary=3, liked=2, disliked=2)


def test_shipped_pairs_are_whole_distinct_and_disjoint():
    train, heldout = helpful_pairs("train"), helpful_pairs("heldout")
    assert (len(train), len(heldout)) == (48, 12)
    assert len({pair["prompt"] for pair in train + heldout}) == 60
    for pair in train + heldout:
        assert set(pair) == {"prompt", "chosen", "rejected"}
        assert 8 <= len(pair["prompt"].split()) <= 20
        assert pair["chosen"] != pair["rejected"]
    with pytest.raises(UnknownNameError, match="heldout"):
        helpful_pairs("held-out")  # type: ignore[arg-type]


def test_the_optimum_at_a_kl_has_that_kl_and_no_tilt_has_more_reward_there():
    policy = SMALL.optimum_at(0.8)
    assert policy.kl(SMALL.language) == pytest.approx(0.8, rel=1e-6)
    beta = 0.37
    other = SMALL.optimum(beta)
    same = SMALL.optimum_at(other.kl(SMALL.language))
    torch.testing.assert_close(same.logprob, other.logprob, rtol=1e-6, atol=1e-6)


def test_foresight_is_the_chance_of_a_token_with_reward():
    chance = SMALL.foresight(ALL)
    chain, matters = SMALL.language.logprob[0].exp(), SMALL.token_reward != 0
    assert chance.shape == ALL.shape
    torch.testing.assert_close(chance[:, 0], chain[-1, matters].sum().expand(len(ALL)))
    torch.testing.assert_close(chance[:, 1:], chain[ALL[:, :-1]][..., matters].sum(-1))


def test_an_opposed_taste_contradicts_four_tokens_and_shares_the_language():
    world = PreferenceWorld(seed=5)
    taste = opposed(world)
    product = world.token_reward * taste.token_reward
    assert product.sum() == -4
    assert (product != 0).sum() == 4
    assert sorted(taste.token_reward[world.token_reward == 0].tolist()) == [-1.0] + 16 * [0.0] + [
        1.0
    ]
    assert torch.equal(taste.language.logprob, world.language.logprob)
    assert taste.pairs(4, torch.Generator().manual_seed(0)).chosen.shape == (4, 10)


def test_a_token_is_contained_as_often_as_in_all_sequences_together():
    chain = PreferenceWorld(seed=3, vocabulary=4, length=3, liked=1, disliked=1).language
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    probability = chain.sequence_logprob(every).exp()
    for token in range(4):
        with_it = (every == token).any(1)
        assert chain.containing(token) == pytest.approx(float(probability[with_it].sum()))


def test_a_chain_is_tilted_by_one_number_until_a_share_contains_the_token():
    chain = PreferenceWorld(seed=3, vocabulary=6, length=4).language
    for share in (0.02, 0.6):
        raised = chain.with_share(2, share)
        assert raised.containing(2) == pytest.approx(share, abs=1e-6)
        ratio = (raised.logprob - chain.logprob)[0]  # [V + 1, V]: equal for all other tokens
        others = [0, 1, 3, 4, 5]
        assert torch.allclose(ratio[:, others], ratio[:, others[:1]].expand(-1, 5))
        boost = ratio[:, 2] - ratio[:, 0]
        assert torch.allclose(boost, boost[:1].expand_as(boost))


def test_the_likeliest_completion_is_that_of_all_and_greedy_takes_the_likeliest_token():
    policy, start = SMALL.optimum(0.3), torch.tensor([0, 1, 2])
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    for token, ours in zip(start, policy.likeliest(start, 1), strict=True):
        whole = torch.cat([token.expand(len(texts), 1), texts], 1)
        logprob = policy.sequence_logprob(whole) - policy.logprob[0, -1, token]
        assert ours.tolist() == texts[logprob.argmax()].tolist()
    token, followed = start, []
    for step in (1, 2, 3):
        token = policy.logprob[step, token].argmax(-1)
        followed.append(token)
    assert torch.equal(policy.greedy(start, 1), torch.stack(followed, 1))


def test_greedy_falls_into_a_trap_that_the_likeliest_completion_avoids():
    steps = torch.tensor([[[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]], [[0.5, 0.5], [0.1, 0.9], [0, 1]]])
    policy = MarkovPolicy(steps.double().log())
    start = torch.tensor([2])
    assert policy.greedy(start, 0).tolist() == [[0, 0]]
    assert policy.likeliest(start, 0).tolist() == [[1, 1]]


def test_pairs_are_cut_and_joined():
    pairs = SMALL.pairs(6, torch.Generator().manual_seed(0))
    joined = pairs[4:] + pairs[:4]
    chosen, rejected = joined
    assert torch.equal(chosen, pairs.chosen.roll(2, 0))
    assert torch.equal(rejected, pairs.rejected.roll(2, 0))
