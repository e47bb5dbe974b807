"""Losses of tokens and of routes, kinds of bytes, and the early exit, against worked values."""

import random

import pytest
import torch

from tokenry.lab.adaptive_compute import (
    exit_early,
    kinds_of_bytes,
    losses_of_choices,
    predicted,
    restaurant_model,
    routed,
)
from tokenry.lab.toy_model import toy_model
from tokenry.model.adaptive.dual_ffn import DuoLLM, RouteLosses, enumerate_routes
from tokenry.model.adaptive.skipdecode import SkipDecode
from tokenry.tasks.worlds.restaurants import restaurants


def test_losses_and_likeliest_tokens_are_the_models():
    model = toy_model(12, 16, seed=0, width=16)
    ids = torch.randint(12, (3, 9), generator=torch.Generator().manual_seed(1))
    loss, right = predicted(model, ids)
    logits = model(ids).logits.detach()
    for row in range(3):
        for at in range(1, 9):
            logprob = logits[row, at - 1].log_softmax(-1)
            assert float(loss[row, at]) == pytest.approx(-float(logprob[ids[row, at]]), abs=1e-5)
            assert bool(right[row, at]) == (int(logprob.argmax()) == int(ids[row, at]))
    assert loss[:, 0].tolist() == [0.0] * 3
    assert not right[:, 0].any()


def test_rules_that_choose_routes_by_hand():
    routes = enumerate_routes(2)  # 00, 01, 10, 11
    loss = torch.tensor([[[0.0] * 4, [4.0, 3.0, 1.0, 2.0]]])
    entropy = torch.tensor([[[0.0] * 4, [1.0, 0.1, 0.5, 1.0]]])
    losses = RouteLosses(routes, loss, entropy, torch.tensor([[False, True]]))
    found = {way: float(values[0, 1]) for way, values in losses_of_choices(losses, 1).items()}
    assert found.pop("minimum by chance") < 2.0
    assert found == {
        "oracle": 1.0,
        "smallest entropy": 3.0,
        "random": 2.0,
        "first layers": 1.0,
        "last layers": 3.0,
    }


def test_routers_that_always_take_big_blocks_are_the_whole_model():
    model = toy_model(12, 16, seed=0, width=16)
    ids = torch.randint(12, (2, 9), generator=torch.Generator().manual_seed(1))
    whole, _ = predicted(model, ids)
    attached = DuoLLM(inner=4).attach(model)
    for wrapper in attached.wrappers():
        torch.nn.init.zeros_(wrapper.width_router.linear.weight)
    loss, big = routed(attached, ids)
    assert big == 0.0  # the first of equal choices is the small one
    assert not torch.allclose(loss, whole)
    with torch.no_grad():
        for wrapper in attached.wrappers():
            wrapper.width_router.linear.bias = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    loss, big = routed(attached, ids)
    assert big == 2.0
    torch.testing.assert_close(loss, whole)


def test_kinds_of_bytes_of_a_line():
    ids = torch.tensor([list(b"a_1  = bc(9")])
    kinds = {kind: mask[0].nonzero()[:, 0].tolist() for kind, mask in kinds_of_bytes(ids).items()}
    assert kinds == {
        "first byte of a name": [7, 10],
        "further byte of a name": [1, 2, 8],
        "blank after a blank": [4],
    }


def test_a_restaurant_model_learns_from_its_batches_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    rng = random.Random(0)
    batches = [restaurants(8, rng) for _ in range(12)]
    runs = [restaurant_model(batches[:n], 1, layers=2) for n in (1, 12, 12)]
    test = restaurants(8, rng)
    written = test["labels"] != -100
    ids, real = test["input_ids"], test["attention_mask"]
    losses = [float(predicted(m, ids, attention_mask=real)[0][written].mean()) for m in runs]
    assert losses[1] < losses[0]
    assert losses[1] == losses[2]
    assert all(weight.requires_grad for weight in runs[2].parameters())


def test_an_early_exit_spends_the_same_budgets_on_the_lowest_layers():
    model = toy_model(12, 16, seed=0, width=16, layers=4)
    method = SkipDecode(max_layers=4, min_layers=2, length=5)  # budgets 4 4 3 3 2, halves up
    attached = method.attach(model)
    exit_early(attached)
    ran = {}
    ids = torch.randint(12, (1, 7), generator=torch.Generator().manual_seed(1))

    def note(number):
        def hook(_, args):
            ran[number] = args[0].shape[1]

        return hook

    for wrapper in attached.wrappers():
        wrapper.base.register_forward_pre_hook(note(wrapper.number))
    model(input_ids=ids, prompt_columns=2, use_cache=False)
    schedule = method.schedule()
    assert schedule == [4, 4, 3, 3, 2]
    assert ran[0] == ran[1] == 7
    # behind the prompt of two, layer n reads the positions whose budget is above n
    assert ran[2] == 2 + sum(budget > 2 for budget in schedule)
    assert ran[3] == 2 + sum(budget > 3 for budget in schedule)
