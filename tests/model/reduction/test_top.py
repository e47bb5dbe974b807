import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.model.reduction.top import Absorb, Top

TOKENS = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 2.0], [1.0, 0.05]])
SCORES = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.3])


def test_top_keeps_the_largest_scores_in_their_order():
    assert Top()(TOKENS, SCORES, 2).index.tolist() == [0, 2]
    assert Top((1,))(TOKENS, SCORES, 2).index.tolist() == [0, 1]
    assert Top()(TOKENS, torch.zeros(5), 2).index.tolist() == [0, 1]  # of equal ones the earlier


def test_absorb_puts_every_token_to_the_kept_one_that_it_resembles_most():
    reduction = Absorb()(TOKENS, SCORES, 2)
    assert reduction.groups.tolist() == [0, 0, 1, 1, 0]
    assert reduction.sizes.tolist() == [3, 2]
    wanted = torch.stack([TOKENS[[0, 1, 4]].mean(0), TOKENS[[2, 3]].mean(0)])
    torch.testing.assert_close(reduction.apply(TOKENS), wanted)


def test_groups_stand_where_their_first_member_stood():
    scores = torch.tensor([0.0, 0.0, 0.8, 0.0, 0.9])  # kept: 2 and 4; 0 joins 4
    reduction = Absorb()(TOKENS, scores, 2)
    assert reduction.groups.tolist() == [0, 0, 1, 1, 0]
    assert reduction.positions().tolist() == [0, 2]


def test_a_kept_token_stays_with_itself_even_if_it_equals_another():
    same = torch.ones(4, 2)
    reduction = Absorb()(same, torch.tensor([0.1, 0.9, 0.8, 0.2]), 2)
    assert reduction.groups[1] != reduction.groups[2]
    assert reduction.sizes.sum() == 4


def test_protected_tokens_need_a_budget():
    with pytest.raises(InputError, match="protected"):
        Absorb((0, 1, 2))(TOKENS, SCORES, 2)
