"""When thinking ends: worked odds, the phases of a row, and limits that hold."""

import pytest
import torch

from tokenry.core.errors import ConstraintError, InputError, VocabularyError
from tokenry.decode.sample import sample
from tokenry.decode.steering.budget_forcing import BudgetForcing
from tokenry.decode.steering.stop_temperature import StopTemperature
from tokenry.lab.toy_model import toy_model

T = torch.tensor
IDS = T([[5, 6]])
Z = T([[2.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("temperature", "logit", "chance"),
    [(2.0, 1.0, 0.2119), (0.5, -2.0, 0.0132), (1.0, 0.0, 0.0900)],
)
def test_the_worked_temperatures(temperature, logit, chance):
    found = StopTemperature(2, temperature)(IDS, Z)
    assert found[0].tolist() == pytest.approx([2.0, 1.0, logit])
    assert found.softmax(-1)[0, 2].item() == pytest.approx(chance, abs=1e-4)


def test_the_other_modes():
    shifted = StopTemperature(2, 2.0, mode="bias", scale=3.0)(IDS, Z)
    assert shifted[0].tolist() == pytest.approx([2.0, 1.0, 3 * 0.6931472])
    for sign, wanted in ((1, 0.5), (-1, -0.5)):  # towards 0 from either side
        raw = StopTemperature(2, 2.0, mode="raw")(IDS, T([[2.0, 1.0, 1.0 * sign]]))
        assert raw[0, 2].item() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_above_one_the_stop_grows_and_all_other_odds_stay(dtype):
    z = torch.randn(64, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids, before = torch.zeros(64, 1).long(), z.double().softmax(-1)
    for temperature, sign in ((3.0, 1), (0.3, -1)):
        found = StopTemperature(4, temperature)(ids, z)
        change = sign * (found.double().softmax(-1) - before)[:, 4]
        best = z.argmax(-1) == 4
        assert (change[~best] > 0).all()
        assert torch.equal(found[best], z[best])  # nothing to raise
        others = torch.arange(9) != 4
        assert torch.equal(found[:, others], z[:, others])
        assert torch.equal(found.argmax(-1), z.argmax(-1))


def test_it_acts_while_a_row_is_thinking():
    steer = StopTemperature(2, 4.0)
    ids = T([[0, 1, 0], [2, 1, 0], [0, 1, 2]])
    moved = (steer(ids, Z.expand(3, -1)) != Z).any(-1)
    assert moved.tolist() == [True, False, False]
    moved = (StopTemperature(2, 4.0, prompt_length=1)(ids, Z.expand(3, -1)) != Z).any(-1)
    assert moved.tolist() == [True, True, False]  # the prompt's stop does not count
    between = StopTemperature(2, 4.0, start=1)
    ids = T([[0, 0, 0], [0, 1, 0], [1, 2, 0], [2, 1, 0], [1, 2, 1]])
    moved = (between(ids, Z.expand(5, -1)) != Z).any(-1)
    assert moved.tolist() == [False, True, False, True, True]


def test_a_forbidden_stop_stays_forbidden():
    z = T([[2.0, 1.0, -torch.inf]])
    assert torch.equal(StopTemperature(2, 4.0)(IDS, z), z)


STOP, WAIT, END = 3, 4, 0


def thoughts(process, count=60, limit=14):
    """How long sampled rows think behind a prompt of two tokens, and the rows."""
    model = toy_model(6, 20, seed=2, width=16).eval()
    prompt = T([[1, STOP]])
    torch.manual_seed(0)
    rows = sample(
        model, prompt, of=torch.zeros(count).long(), max_new_tokens=limit, processors=[process]
    )
    return [row.index(STOP) if STOP in row else len(row) for row in rows], rows


@pytest.mark.parametrize("wait", [None, WAIT])
def test_thoughts_are_within_the_budget(wait):
    forced = BudgetForcing(STOP, 7, 3, wait=wait, prompt_length=2)
    lengths, rows = thoughts(forced)
    assert set(lengths) == {3, 4, 5, 6, 7}
    exact, _ = thoughts(BudgetForcing(STOP, 5, 5, prompt_length=2))
    assert set(exact) == {5}
    assert set(thoughts(BudgetForcing(STOP, 0, prompt_length=2))[0]) == {0}
    assert any(STOP in row[length + 1 :] for row, length in zip(rows, lengths, strict=True))


def test_the_chance_of_a_stop_that_comes_too_soon_goes_to_wait():
    forced = BudgetForcing(2, 9, 4, wait=0, prompt_length=0)
    p, q = Z.softmax(-1)[0], forced(IDS, Z).softmax(-1)[0]
    torch.testing.assert_close(q, T([p[0] + p[2], p[1], 0.0]))
    plain = BudgetForcing(2, 9, 4)(IDS, Z).softmax(-1)[0]
    torch.testing.assert_close(plain, T([p[0], p[1], 0.0]) / (p[0] + p[1]))
    assert torch.equal(BudgetForcing(2, 9, 2)(IDS, Z), Z)
    sure = BudgetForcing(2, 2)(IDS, T([[2.0, 1.0, -torch.inf]])).softmax(-1)[0]
    assert sure.tolist() == [0, 0, 1]


def test_what_cannot_be_is_refused():
    only = T([[-torch.inf, -torch.inf, 0.0]])
    with pytest.raises(ConstraintError, match="too soon"):
        BudgetForcing(2, 9, 4)(IDS, only)
    with pytest.raises(VocabularyError):
        StopTemperature(3, 2.0)(IDS, Z)
    with pytest.raises(VocabularyError):
        BudgetForcing(2, 9, 4, wait=3)(IDS, Z)
    for temperature, options in (
        (0.0, {}),
        (2.0, {"mode": "other"}),
        (2.0, {"start": 2}),
        (2.0, {"scale": 0.0}),
    ):
        with pytest.raises(InputError):
            StopTemperature(2, temperature, **options)
    for most, options in ((2, {"least": 3}), (-1, {}), (2, {"wait": 2})):
        with pytest.raises(InputError):
            BudgetForcing(2, most, **options)
