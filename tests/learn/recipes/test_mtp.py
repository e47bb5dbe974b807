"""Training of masks: the mask rule, the losses, and that training learns and resumes."""

import copy

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.recipes.draft_heads import Schedule
from tokenry.learn.recipes.mtp import (
    mtp_loss,
    mtp_states,
    mtp_training_batch,
    predictor_loss,
    train_mtp,
)
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.model.score import score


@pytest.fixture(scope="module")
def exact(tiny_model):
    return copy.deepcopy(tiny_model).double()


@pytest.fixture(scope="module")
def predictor(exact):
    predictor = MaskPredictor.of(exact, 3, rank=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for change in predictor.lora.maps:
            change.B.normal_(0.0, 0.3, generator=generator)
    return predictor.double()


def batch(side="right"):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, 64, (n,), generator=generator).tolist() for n in (12, 9)]
    return TokenBatch.from_ids(rows, padding_side=side)


@torch.no_grad()
def plain_states(model, rows):
    position = (rows.attention.cumsum(1) - 1).clamp_min(0)
    output = model(
        input_ids=rows.ids,
        attention_mask=rows.attention.long(),
        position_ids=position,
        output_hidden_states=True,
        use_cache=False,
    )
    return output.hidden_states[-1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_see_no_masks(exact, predictor, side):
    rows = batch(side)
    with torch.no_grad():
        tokens, _ = mtp_states(exact, predictor, mtp_training_batch(rows, 3))
    real = rows.attention
    torch.testing.assert_close(tokens[real], plain_states(exact, rows)[real])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_block_is_as_if_it_stood_alone(exact, predictor, side):
    """Behind every token: the masks' states are those of [the text up to it, the masks]. Beyond
    Gemma's window of 8 too."""
    rows = batch(side)
    with torch.no_grad():
        _, masks = mtp_states(exact, predictor, mtp_training_batch(rows, 3))
        masks = masks.unflatten(1, (-1, 3))
        for row in range(2):
            columns = rows.attention[row].nonzero()[:, 0].tolist()
            for length, column in enumerate(columns, start=1):
                text = rows.ids[row, columns[:length]].tolist()
                ids = torch.tensor([[*text, 0, 0, 0]])
                which = torch.tensor([[0] * length + [1, 2, 3]])
                with predictor.lora.gate(exact, which > 0):
                    alone = exact(
                        inputs_embeds=predictor.embed(exact, ids, which),
                        output_hidden_states=True,
                        use_cache=False,
                    ).hidden_states[-1][0, -3:]
                torch.testing.assert_close(masks[row, column], alone)


def test_labels_anchors_and_positions():
    rows = TokenBatch.from_ids(
        [[10, 11, 12, 13, 14], [20, 21, 22]],
        [[False, True, True, True, True], [False, False, True]],
    )
    found = mtp_training_batch(rows, 2, torch.tensor([0, 2]))
    assert found.labels.tolist() == [[12, 13, 14, -100], [22, -100, -100, -100]]
    assert found.previous[0, :3].tolist() == [11, 12, 13]  # the token before the label
    assert found.anchors[:3].tolist() == [1, 2, 3]  # their states predict 12, 13 and 14
    assert found.masks.tolist() == [[0] * 5 + [1, 2, 1, 2]] * 2
    assert found.positions[0].tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4]
    every = mtp_training_batch(rows, 2)
    by_label = {}
    for label, place in zip(every.labels[0].tolist(), every.positions[0, 5:].tolist(), strict=True):
        by_label.setdefault(label, set()).add(place)
    assert all(len(places) == 1 for label, places in by_label.items() if label != -100)


def test_labels_do_not_depend_on_the_padding_side():
    right, left = (mtp_training_batch(batch(side), 3) for side in ("right", "left"))
    for row in range(2):
        one, two = (b.labels[row][b.labels[row] != -100].tolist() for b in (right, left))
        assert one == two


def test_the_loss_by_hand():
    torch.manual_seed(0)
    logits, sampled = torch.randn(3, 5), torch.randn(3, 5)
    labels, predicted = torch.tensor([1, 1, 4]), torch.tensor([7, 7, 9])
    z, a = torch.randn(3, 4), torch.randn(3, 4)
    found = mtp_loss(logits, sampled, labels, z, a, predicted, (1.0, 2.0, 0.5))
    apart = ((z - a) ** 2).sum(-1)
    consistency = ((apart[0] + apart[1]) / 2 + apart[2]) / 2  # two tokens, one of two masks
    base = -logits.log_softmax(-1)[range(3), labels].mean()
    sampler = -sampled.log_softmax(-1)[range(3), labels].mean()
    torch.testing.assert_close(found.consistency, consistency)
    torch.testing.assert_close(found.total, base + 2.0 * sampler + 0.5 * consistency)


def test_no_gradient_goes_to_the_anchor_and_none_flows_at_the_anchor():
    z, a = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    logits, labels, places = torch.zeros(2, 5), torch.tensor([0, 1]), torch.tensor([0, 1])
    mtp_loss(logits, None, labels, z, a, places, (0.0, 0.0, 1.0)).total.backward()
    assert a.grad is None
    torch.testing.assert_close(z.grad, (z - a).detach())  # 2 (z - a) / two tokens
    same = mtp_loss(logits, None, labels, a, a, places)
    assert same.consistency.item() == 0.0


def test_only_the_predictor_gets_gradients(exact):
    predictor = MaskPredictor.of(exact, 2, rank=2)
    for weight in exact.parameters():
        weight.grad = None
    predictor_loss(exact, predictor, batch()).total.backward()
    assert predictor.masks.grad.abs().sum() > 0
    assert predictor.sampler.first.weight.grad.abs().sum() > 0
    assert all(change.B.grad.abs().sum() > 0 for change in predictor.lora.maps)


def test_the_models_own_loss_is_added_and_is_a_constant_under_the_gate(exact, predictor):
    rows = batch()
    with torch.no_grad():
        logits = exact(input_ids=rows.ids, attention_mask=rows.attention.long()).logits
    logprob = logits.log_softmax(-1)[:, :-1].gather(-1, rows.ids[:, 1:, None])[..., 0]
    own = -logprob[rows.target[:, 1:]].mean()
    without, found = (predictor_loss(exact, predictor, rows, own_weight=w) for w in (0.0, 2.0))
    torch.testing.assert_close(found.total - without.total, 2 * own.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.base - without.base, 2 * own.float(), atol=1e-4, rtol=1e-4)
    one, two = (torch.autograd.grad(loss.total, predictor.masks)[0] for loss in (without, found))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def counting_texts(count=24, length=20):
    """Texts that count up from anywhere: every further token is determined."""
    return [[(start + i) % 30 + 2 for i in range(length)] for start in range(count)]


SCHEDULE = Schedule(steps=60, batch_size=8, length=20, learning_rate=1e-2, warm_up=5)


def test_training_learns_and_leaves_the_model_alone(tiny_llama):
    model = copy.deepcopy(tiny_llama).train()
    before = copy.deepcopy(model.state_dict())
    losses = []
    predictor = train_mtp(
        model,
        counting_texts(),
        k=2,
        rank=4,
        blocks=6,
        schedule=SCHEDULE,
        weights=(1.0, 1.0, 0.0),
        observe=lambda step, loss: losses.append(loss.base.item()),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert not predictor.training


def test_training_goes_on_where_it_was_stopped(tiny_llama, tmp_path):
    from dataclasses import replace

    def run(schedule, observe=None):
        return train_mtp(
            tiny_llama, counting_texts(), k=2, rank=2, blocks=4, schedule=schedule, observe=observe
        )

    schedule = replace(SCHEDULE, steps=8, save_every=2)
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
    (tmp_path / "training.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match="remove it to start anew"):
        run(kept)


def test_impossible_input_is_refused(tiny_llama):
    with pytest.raises(InputError, match="no text has 3 tokens"):
        train_mtp(tiny_llama, [[1, 2]], k=2, rank=1)
    with pytest.raises(InputError, match="blocks is 0"):
        train_mtp(tiny_llama, counting_texts(), k=2, rank=1, blocks=0)
    with pytest.raises(InputError, match="blocks start at columns 0 to 11"):
        mtp_training_batch(batch(), 2, torch.tensor([12]))
    with pytest.raises(InputError, match="batch_size"):
        Schedule(batch_size=0)
    with pytest.raises(InputError, match="learning_rate"):
        Schedule(learning_rate=0.0)


def test_the_models_own_loss_is_that_of_its_scaled_logits(scaled_model):
    """The loss with own_weight grows by the next-token loss, with scale and soft cap."""
    batch = TokenBatch.from_ids([[5, 9, 30, 41, 7, 8]])
    predictor = MaskPredictor.of(scaled_model, 2, 1)
    losses = [
        predictor_loss(scaled_model, predictor, batch, own_weight=own).base for own in (0.0, 1.0)
    ]
    logprob = score(scaled_model, batch).logprob[batch.target]
    torch.testing.assert_close(losses[1] - losses[0], -logprob.mean(), atol=1e-5, rtol=1e-4)
