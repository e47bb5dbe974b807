"""MEET: controls are tokens that no vocabulary has, and stage 1 touches nothing else."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.lab.preference_world import train_in_world, world_model
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.meet import MEET, ControlPrompts
from tokenry.model.score import score
from tokenry.tasks.worlds.preference import PreferenceWorld

PROMPT, GOOD, BAD = [5, 6], [7, 8, 9], [10, 11]


def batch_of(*completions, before=(), **options):
    rows = [[*before, *PROMPT, *completion] for completion in completions]
    target = [[False] * (len(before) + len(PROMPT)) + [True] * len(c) for c in completions]
    return TokenBatch.from_ids(rows, target, group=[*range(len(completions) // 2)] * 2, **options)


def test_only_the_class_of_a_row_moves(tiny_model):
    objective, batch = MEET(length=3), batch_of(GOOD, BAD)
    modules = objective.modules(tiny_model)
    policy = score(tiny_model, batch, prefix=objective.prefix(batch, modules), grad=True)
    good = policy.need("logprob")[0].sum()
    (gradient,) = torch.autograd.grad(good, modules.weight)
    assert gradient[0].abs().min() > 0
    assert (gradient[1] == 0).all()


def test_stage_one_leaves_every_weight_of_the_model_as_it_was():
    world = PreferenceWorld(vocabulary=8, length=4)
    reference = world_model(world, 0, width=16, layers=1)
    pairs = world.pairs(8, torch.Generator().manual_seed(0))
    found = {}
    for stage in (1, 2):
        objective = MEET(stage=stage, length=2)
        modules = objective.modules(reference)
        start = modules.weight.detach().clone()
        policy, _ = train_in_world(
            objective,
            world,
            reference,
            pairs,
            steps=2,
            batch_size=4,
            samples=4,
            modules=modules,
            learning_rate=1e-3,
        )
        assert (modules.weight != start).any(dim=-1).all()
        found[stage] = policy
    before = reference.state_dict()
    assert all(torch.equal(before[k], v) for k, v in found[1].state_dict().items())
    assert not all(torch.equal(before[k], v) for k, v in found[2].state_dict().items())
    assert not MEET(stage=1).trains_policy
    assert MEET(stage=2).trains_policy


def test_without_soft_tokens_it_is_plain_likelihood_training(tiny_model):
    batch = batch_of(GOOD, BAD)
    objective = MEET(stage=2, length=0)
    loss = compute_loss(objective, batch, tiny_model, modules=objective.modules(tiny_model)).loss
    plain = score(tiny_model, batch).need("logprob")
    torch.testing.assert_close(loss, -plain.sum() / 5)


def test_a_control_of_embedded_words_is_the_same_as_the_words(tiny_model):
    words = ((12, 13, 14), (20, 21, 22))
    objective, batch = MEET(length=3, start_ids=words), batch_of(GOOD, BAD)
    modules = objective.modules(tiny_model)
    found = compute_scores(objective, batch, tiny_model, modules=modules).policy.need("logprob")
    for row, (text, completion) in enumerate(zip(words, (GOOD, BAD), strict=True)):
        written = batch_of(completion, completion, before=text)
        expected = score(tiny_model, written).need("logprob")[0][written.target[0]]
        torch.testing.assert_close(found[row][batch.target[row]], expected, rtol=1e-4, atol=1e-5)


def test_short_texts_are_repeated_to_the_length(tiny_llama):
    made = ControlPrompts.of(tiny_llama, 2, 3, [[7], [8, 9]])
    table = tiny_llama.get_input_embeddings().weight
    torch.testing.assert_close(made.weight[0], table[[7, 7, 7]])
    torch.testing.assert_close(made.weight[1], table[[8, 9, 8]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(tiny_model, side):
    objective = MEET(length=3)
    modules = objective.modules(tiny_model)
    batch = batch_of(GOOD, BAD)
    filler = batch_of(GOOD * 3, GOOD * 3)
    padded = batch.concat(filler, side=side).select([0, 1])
    assert padded.shape[1] > batch.shape[1]
    one, two = (
        compute_loss(objective, b, tiny_model, modules=modules).loss for b in (batch, padded)
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_swapping_the_controls_swaps_what_the_classes_say(tiny_llama):
    objective, batch = MEET(length=3), batch_of(GOOD, GOOD)
    modules = objective.modules(tiny_llama)
    swapped = ControlPrompts(modules.weight.flip(0))
    one = compute_scores(objective, batch, tiny_llama, modules=modules).policy.need("logprob")
    two = compute_scores(objective, batch, tiny_llama, modules=swapped).policy.need("logprob")
    assert (one[0] - one[1]).abs().max() > 1e-3
    torch.testing.assert_close(one, two.flip(0))


def test_stage_two_starts_where_stage_one_ended(tiny_llama, tmp_path):
    first, batch = MEET(length=3, seed=1), batch_of(GOOD, BAD)
    modules = first.modules(tiny_llama)
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.1)
    for _ in range(3):
        loss = compute_loss(first, batch, tiny_llama, modules=modules).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = compute_loss(first, batch, tiny_llama, modules=modules).loss
    save_file(modules.state_dict(), tmp_path / "objective.safetensors")
    second = MEET(stage=2, length=3, controls=str(tmp_path))
    model = copy.deepcopy(tiny_llama)
    torch.testing.assert_close(
        compute_loss(second, batch, model, modules=second.modules(model)).loss, end, rtol=0, atol=0
    )
    assert end < loss + 0.5
    with pytest.raises(ShapeError, match=r"\[2, 3, 32\]"):
        MEET(length=4, controls=str(tmp_path)).modules(model)
    with pytest.raises(InputError, match="stage 1"):
        MEET(controls=str(tmp_path / "nowhere")).modules(model)


def test_a_mixture_leads_from_bad_to_good():
    controls = ControlPrompts(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    good, bad = controls.weight
    torch.testing.assert_close(controls.mixture((1.0, 0.0)), good)
    torch.testing.assert_close(controls.mixture((0.25, 0.75)), 0.25 * good + 0.75 * bad)


def test_the_loss_is_a_mean_over_completion_tokens_alone():
    batch = batch_of(GOOD, BAD)
    logprob = torch.where(batch.target, -1.0, torch.nan)
    logprob[1, 2:4] = -3.0
    logprob.requires_grad_()
    result = MEET()(batch, Scores(batch.ids, batch.target, logprob=logprob))
    result.loss.backward()
    assert float(result.loss.detach()) == pytest.approx((3 * 1 + 2 * 3) / 5)
    assert float(result.metrics["nll/chosen"]) == 1.0
    assert float(result.metrics["nll/rejected"]) == 3.0
    assert (logprob.grad[batch.target] == -0.2).all()
    assert (logprob.grad[~batch.target] == 0).all()


def test_impossible_settings_are_errors(tiny_llama):
    assert objective["meet"] is MEET
    with pytest.raises(InputError, match="stage"):
        MEET(stage=3)
    with pytest.raises(InputError, match="length"):
        MEET(length=-1)
    with pytest.raises(InputError, match="2 classes"):
        MEET(start_ids=((1,),)).modules(tiny_llama)
    with pytest.raises(InputError, match="shares"):
        MEET().modules(tiny_llama).mixture([1.0])
    with pytest.raises(ShapeError, match="classes"):
        ControlPrompts(torch.zeros(2, 3))


def test_rows_in_another_order_get_no_control(tiny_llama):
    """Interleaved pairs: each row would be trained under the other class's control."""
    objective, batch = MEET(length=2), batch_of(GOOD, GOOD, BAD, BAD)
    modules = objective.modules(tiny_llama)
    assert objective.prefix(batch, modules).shape == (4, 2, 32)
    with pytest.raises(ShapeError, match="row 0 of block 1 is of prompt 1, that of block 0 of"):
        objective.prefix(batch.select([0, 1, 3, 2]), modules)
    with pytest.raises(ShapeError, match="same order"):
        objective.prefix(batch.select([0, 2, 1, 3]), modules)
    ungrouped = TokenBatch(batch.ids, batch.attention, batch.target)
    with pytest.raises(ShapeError, match="needs `group`"):
        objective.prefix(ungrouped, modules)


def test_a_first_stage_without_soft_prompts_is_refused():
    with pytest.raises(InputError, match="stage 1 trains the soft prompts alone"):
        MEET(length=0)
    with pytest.raises(InputError, match=r"MEET\.length is 2\.5"):
        MEET(length=2.5)
    assert MEET(stage=2, length=0).length == 0
