"""Ways through reasonings: the best fixed sequence by exhaustion, and what is counted."""

import torch

from tokenry.decode.routing.rlot import Constraints
from tokenry.lab.reasoning_paths import (
    FAMILIES,
    BlocksAtRandom,
    FixedBlocks,
    best_sequence,
    common_pairs,
    constraints_without,
    solved,
)
from tokenry.tasks.reasoning_blocks import REASON, TERMINATE, Observation


def seen(step):
    return Observation(torch.full((2, 7), 2), torch.tensor(step), torch.zeros(2).bool())


def test_fixed_blocks_go_by_the_step_and_then_terminate():
    way = FixedBlocks(torch.tensor([[0, 2]]))
    assert way.act(seen([0, 1])).tolist() == [0, 2]
    assert way.act(seen([2, 9])).tolist() == [TERMINATE, TERMINATE]


def test_the_best_sequence_solves_as_many_as_any_other():
    alone = best_sequence("arithmetic", 100, 0, [REASON])
    best = best_sequence("arithmetic", 100, 0)
    rates = [float(solved(FixedBlocks(s), "arithmetic", 3000, 5).double().mean())
             for s in (best, alone, torch.tensor([[TERMINATE]]))]  # fmt: skip
    assert rates[0] > rates[1] > rates[2] == 0.0
    assert set(alone[0].tolist()) <= {REASON, TERMINATE}
    assert best[0, -1] == TERMINATE


def test_all_ways_see_the_same_problems_and_other_seeds_others():
    way = FixedBlocks(torch.tensor([[0, 0]]))
    one, again, other = (solved(way, "commonsense", 200, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_pairs_are_shares_of_all_neighbours():
    way = FixedBlocks(torch.tensor([[0, 0, 1]]))
    pairs = common_pairs(way, "arithmetic", 10, 0)
    expected = {"reason → reason", "reason → decompose", "decompose → terminate"}
    assert set(pairs) == expected
    assert all(abs(share - 1 / 3) < 1e-9 for share in pairs.values())
    assert common_pairs(FixedBlocks(torch.tensor([[4]])), "arithmetic", 3, 0) == {"none": 0.0}


def test_chance_takes_allowed_blocks_alone():
    way = BlocksAtRandom(torch.Generator().manual_seed(0))
    first = torch.cat([way.act(seen([0, 5])) for _ in range(200)]).view(-1, 2)
    assert set(first[:, 0].tolist()) == {0, 1, 2, 4}
    assert set(first[:, 1].tolist()) == {TERMINATE}


def test_families_and_constraints():
    assert list(FAMILIES) == ["arithmetic", "commonsense"]
    assert constraints_without("debate", "refine") == Constraints(6, (2, 3))
