import torch

from tokenry.tasks.reasoning_blocks import BLOCKS, REASON, REFINE, TERMINATE, Observation, executed


def seen(step, answered=False):
    return Observation(torch.full((1, 7), 2), torch.tensor([step]), torch.tensor([answered]))


def done(action, *state, most=5):
    return int(executed(torch.tensor([action]), seen(*state), most))


def test_the_blocks_have_their_numbers():
    assert BLOCKS == ("reason", "decompose", "debate", "refine", "terminate")
    assert (REASON, REFINE, TERMINATE) == (0, 3, 4)


def test_refining_first_is_reasoning_and_later_is_itself():
    assert [done(action, 0) for action in range(5)] == [0, 1, 2, REASON, 4]
    assert [done(action, 1) for action in range(5)] == [0, 1, 2, 3, 4]


def test_an_answer_and_the_last_action_terminate():
    for action in range(5):
        assert done(action, 0, True) == done(action, 2, True) == TERMINATE
        assert done(action, 4) == TERMINATE
        assert done(action, 0, most=1) == TERMINATE
    assert done(1, 3) == 1
