"""Training of feature heads: the loss, what it counts, and that training learns and resumes."""

import copy
from dataclasses import replace

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.recipes.draft_heads import Pieces, Schedule
from tokenry.learn.recipes.fspad import eagle_distill_loss, train_feature_head
from tokenry.model.heads.fspad import FeatureHead


def test_the_loss_by_hand():
    torch.manual_seed(0)
    f, tf = 2 * torch.randn(2, 3, 4), 2 * torch.randn(2, 3, 4)
    z, tz = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    loss = eagle_distill_loss(f, z, tf, tz, mask, feature_weight=2.0, logit_weight=0.3)
    expected = 0.0
    for row, at in mask.nonzero().tolist():
        apart = (f[row, at] - tf[row, at]).abs()
        smooth = torch.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean()
        crossed = -(tz[row, at].softmax(-1) * z[row, at].log_softmax(-1)).sum()
        expected += (2.0 * smooth + 0.3 * crossed) / 3
    torch.testing.assert_close(loss, expected)
    assert eagle_distill_loss(f, z, tf, tz, mask & False) == 0.0


def test_masked_positions_change_nothing():
    torch.manual_seed(0)
    f, z = torch.randn(1, 4, 3), torch.randn(1, 4, 5)
    mask = torch.tensor([[True, False, True, False]])
    wild = torch.where(mask[..., None], f, f + 100)
    args = (z, torch.zeros_like(f), torch.zeros_like(z), mask)
    assert eagle_distill_loss(f, *args) == eagle_distill_loss(wild, *args)


def test_the_loss_of_a_new_head_is_that_of_eagle(tiny_llama):
    losses = {}
    for name, options in (
        ("ours", {}),
        ("eagle", {"feature_sampling": False, "partial_alignment": False}),
    ):
        head, seen = FeatureHead.of(tiny_llama, seed=2, **options), []
        train_feature_head(
            tiny_llama,
            texts(),
            head=head,
            schedule=Schedule(steps=1),
            observe=lambda _, loss, seen=seen: seen.append(loss),
        )
        losses[name] = seen[0]
    assert losses["ours"] == losses["eagle"]


def texts(count=24, length=20):
    return [[(start + i) % 30 + 2 for i in range(length)] for start in range(count)]


SCHEDULE = Schedule(steps=60, batch_size=8, length=20, learning_rate=5e-3, warm_up=5)


@pytest.mark.parametrize("vocabulary", [None, torch.arange(2, 32)])
def test_training_learns_and_leaves_the_model_alone(tiny_llama, vocabulary):
    model = copy.deepcopy(tiny_llama).train()
    before = copy.deepcopy(model.state_dict())
    losses = []
    head = train_feature_head(
        model,
        texts(),
        head=FeatureHead.of(model, inner=32, vocabulary=vocabulary),
        schedule=SCHEDULE,
        observe=lambda _, loss: losses.append(loss),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert not head.training
    assert float(head.embed_scale) != 1.0


def test_only_the_answers_count(tiny_llama):
    """Texts whose prompts differ in what comes after them give the same loss."""
    losses = []
    for tail in (3, 40):
        rows = [[*row, tail, tail] for row in texts(8, 10)]
        targets = [[False] * 4 + [True] * 6 + [False] * 2 for _ in rows]
        head = FeatureHead.of(tiny_llama, inner=32)
        head.feature_scale.fill_(2.0)  # known, so that it is not measured on the texts
        train_feature_head(
            tiny_llama,
            rows,
            targets=targets,
            head=head,
            schedule=Schedule(steps=1),
            noise=0.0,
            observe=lambda _, loss: losses.append(loss),
        )
    assert losses[0] == losses[1]


def test_training_goes_on_where_it_was_stopped(tiny_llama, tmp_path):
    schedule = replace(SCHEDULE, steps=8, save_every=2)

    def run(schedule, observe=None):
        head = FeatureHead.of(tiny_llama, inner=16)
        return train_feature_head(
            tiny_llama, texts(), head=head, schedule=schedule, observe=observe
        )

    whole = run(schedule)

    def stop(step, loss):
        if step == 5:
            raise KeyboardInterrupt

    kept = replace(schedule, checkpoint=tmp_path / "training.pt")
    with pytest.raises(KeyboardInterrupt):
        run(kept, stop)
    steps = []
    resumed = run(kept, lambda step, loss: steps.append(step))
    assert steps == [4, 5, 6, 7]
    assert all(torch.equal(resumed.state_dict()[k], v) for k, v in whole.state_dict().items())


def test_pieces_of_texts():
    rows = [list(range(7)), [1, 2]]
    pieces = Pieces(rows, None, length=4, least=3)
    assert pieces.rows == [[0, 1, 2, 3], [4, 5, 6]]
    assert pieces.targets == [[False, True, True, True], [False, True, True]]
    counted = Pieces(rows, [[False] * 5 + [True] * 2, [True] * 2], length=4, least=2)
    assert counted.rows == [[4, 5, 6], [1, 2]]  # pieces that have nothing to predict are left out
    numbers, batch = pieces.batch(9, torch.Generator().manual_seed(0))
    assert sorted(numbers) == [0, 1]
    assert batch.shape == (2, 4)
    with pytest.raises(ShapeError, match="one target for each"):
        Pieces(rows, [[True] * 7, [True]], length=4, least=3)
    with pytest.raises(InputError, match="no text has 3 tokens"):
        Pieces([[1, 2]], None, length=4, least=3)
