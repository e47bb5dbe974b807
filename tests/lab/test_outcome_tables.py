import pytest
import torch

from tokenry.lab.outcome_tables import OutcomeTables, at_equal_reward

TABLES = OutcomeTables(seed=1, count=3, outcomes=5)


def test_the_optimum_under_reverse_kl_is_the_tilt():
    reference, reward = TABLES.data
    tilt = (reference + reward / 0.7).softmax(-1)
    expected, entropy, kept = TABLES.optimum("reverse_kl", 0.7)
    torch.testing.assert_close(expected, (tilt * reward).sum(-1))
    torch.testing.assert_close(entropy, -(tilt * tilt.log()).sum(-1))
    assert torch.equal(kept, (tilt >= 0.1 * reference.exp()).double().mean(-1))
    assert kept.min() < 1


def test_tables_are_seeded_distributions():
    reference, _ = TABLES.data
    torch.testing.assert_close(reference.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(reference, OutcomeTables(1, 3, 5).data[0])
    assert not torch.equal(reference, OutcomeTables(2, 3, 5).data[0])


def test_rewards_rise_as_beta_falls():
    assert (TABLES.optima("forward_kl", [0.1, 1.0, 10.0])[:, 0].diff(dim=0) > 0).all()


def test_at_equal_reward_values_are_linear_within_the_shared_range():
    def path(*rows):  # one table, rows of (reward, entropy, kept)
        return torch.tensor(rows, dtype=torch.float64)[..., None]

    optima = {"a": path((0, 4, 1), (2, 0, 0.5)), "b": path((1, 3, 1), (5, 1, 0))}
    values = at_equal_reward(optima, 0.5)  # the shared range is 1 to 2
    assert values["a"][:, 0].tolist() == pytest.approx([1.0, 0.625])
    assert values["b"][:, 0].tolist() == pytest.approx([2.75, 0.875])
