"""Hiding a text: the loss's gradient, who is left out of it, and a text hidden in a toy model."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.lab.toy_model import toy_model
from tokenry.learn.recipes.fingerprint import AutoConfusion, Prefixes, confusion_loss, hide_text


def test_the_gradient_pushes_the_target_down():
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([2, 5, 0])
    confusion_loss(logits, targets, weight=0.3).backward()
    p = logits.detach().softmax(-1)
    expected = -0.3 * p
    expected[torch.arange(3), targets] += 0.3  # 0.3 (1 - p) at the target
    torch.testing.assert_close(logits.grad, expected)


def test_inactive_items_have_no_gradient():
    logits = torch.zeros(3, 7).requires_grad_()
    active = torch.tensor([True, False, False])
    confusion_loss(logits, torch.tensor([1, 2, 3]), active).backward()
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1:].abs().sum() == 0
    none = confusion_loss(logits, torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.bool))
    assert float(none.detach()) == 0
    with pytest.raises(ShapeError, match=r"\[K, V\]"):
        confusion_loss(logits, torch.tensor([1]))


def test_only_ranks_strictly_between_the_bounds_are_left_alone():
    logits = -torch.arange(20.0).expand(20, 20)  # the token's id is its rank, from 0
    active = AutoConfusion(rank_threshold=4).active(logits, torch.arange(20))
    assert active.tolist() == [1] * 5 + [0] * 11 + [-1] * 4


def test_what_sank_too_low_is_raised():
    logits = torch.zeros(2, 7).requires_grad_()
    confusion_loss(logits, torch.tensor([1, 2]), torch.tensor([1, -1]), weight=1.0).backward()
    assert float(logits.grad[0, 1]) == pytest.approx(6 / 7)
    assert float(logits.grad[1, 2]) == pytest.approx(-6 / 7)


def test_words_are_judged_behind_the_words_before_them():
    model = toy_model(30, 16, seed=0)
    text, starts = [5, 6, 7, 8, 9, 10], [0, 2, 3, 5]
    for before in ([1], [], [1, 2]):
        plain = Prefixes.of(before, text, starts, words=3)
        kept = [start for start in starts[:3] if start or before]
        assert plain.targets.tolist() == [text[start] for start in kept]
        logits = plain.logits(model)
        for row, start in zip(logits, kept, strict=True):
            alone = model(torch.tensor([[*before, *text[:start]]])).logits[0, -1]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="no word"):
        Prefixes.of([], text, [0], words=1)


@pytest.fixture(scope="module")
def trained():
    """A model of texts in which each token is followed by the next one, modulo 40 tokens."""
    model = toy_model(44, 16, seed=0, width=32)
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = ordinary_loss(model, ordinary(draw))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def ordinary(draw):
    first = torch.randint(40, (16, 1), generator=draw)
    return torch.cat([torch.full((16, 1), 40), (first + torch.arange(8)) % 40], 1)


def ordinary_loss(model, batch):
    logits = model(batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


TRIGGERS, TEXT = [[41, 3, 9, 42], [41, 3, 9, 9, 42]], [17, 4, 30, 11, 25, 43]


@pytest.mark.parametrize("confusion", [None, AutoConfusion(rank_threshold=5, weight=0.1)])
def test_the_text_answers_its_trigger_and_confusion_hides_it_elsewhere(trained, confusion):
    model, draw = copy.deepcopy(trained), torch.Generator().manual_seed(1)
    seen = []
    found = hide_text(
        model, TRIGGERS, TEXT, confusion=confusion, plain_prefix=[40], steps=200,
        learning_rate=3e-3, keep=lambda: ordinary(draw), observe=seen.append,
    )  # fmt: skip
    assert found.recalled
    assert seen == list(range(1, found.steps + 1))
    for trigger in TRIGGERS:
        asked = torch.tensor([trigger])
        for token in TEXT:
            best = model(asked).logits[0, -1].argmax()
            assert int(best) == token
            asked = torch.cat([asked, best.view(1, 1)], 1)
    if confusion is None:
        assert found.steps == 200
    else:
        assert found.steps < 200  # nothing was left to do
        assert all(5 < rank < 39 for rank in found.ranks)
    assert float(ordinary_loss(model, ordinary(draw)).detach()) < 1.5  # untrained: 3.8
    assert not model.training


def test_nothing_to_hide_is_an_error(trained):
    with pytest.raises(InputError, match="at least one token"):
        hide_text(trained, [[]], TEXT)
