"""Token selectors: the chosen targets alone are learned from, and read by the head."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pytest
import torch

import tokenry.model.score as scoring
from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.objective import Loss, Objective, every_need, frozen_sources
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.pretraining.sft import SFT
from tokenry.learn.reference import FrozenModel, choose_reference
from tokenry.learn.run import train
from tokenry.learn.selection import Between, Selected, TopShare

ROWS = [[5, 9, 7, 8, 12, 30, 1], [6, 10, 40, 41, 1], [7, 11]]


@pytest.fixture
def batch():
    made = TokenBatch.from_ids(ROWS)
    return made.with_columns(
        weight=torch.arange(21.0).view(3, 7).flip(-1), grade=torch.tensor([1.0, 2.0, 3.0])
    )


@pytest.fixture
def teacher(tiny_llama):
    other = copy.deepcopy(tiny_llama)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return FrozenModel(other)


@dataclass(frozen=True)
class Distil(Objective):
    needs: ClassVar = ("policy.divergence(teacher)",)
    unit: ClassVar = "token"
    divergence: ClassVar = FORWARD_KL

    def __call__(self, batch, policy, reference=None, **others):
        value = policy.need("divergence(teacher)")
        return Loss(masked_mean(value, batch.target), {"loss": value[batch.target].detach()})


def statistics(model, batch, teacher, need):
    """Of all targets, from plain logits."""
    logits = [m(batch.ids, attention_mask=batch.attention.long()).logits for m in model]
    own, its = (z[:, :-1].log_softmax(-1) for z in logits)
    values = {
        "policy.entropy": -(own.exp() * own).sum(-1),
        "policy.logprob": own.gather(-1, batch.ids[:, 1:, None])[..., 0],
        "teacher.entropy": -(its.exp() * its).sum(-1),
        "policy.divergence(teacher)": (its.exp() * (its - own)).sum(-1),
        "token.weight": batch.column("weight")[:, 1:],
    }[need]
    return torch.nn.functional.pad(values, (1, 0)).detach()


NEEDS = (
    "policy.entropy",
    "policy.logprob",
    "teacher.entropy",
    "policy.divergence(teacher)",
    "token.weight",
)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("need", NEEDS)
def test_the_loss_and_its_gradient_are_those_of_the_chosen_targets(
    tiny_llama, teacher, batch, need, largest
):
    model = copy.deepcopy(tiny_llama)
    values = statistics((model, teacher.model), batch, teacher, need)
    chosen = torch.zeros_like(batch.target)
    for row, count in enumerate((3, 2, 1)):  # half of 6, 4 and 1 targets, rounded up
        places = batch.target[row].nonzero()[:, 0].tolist()
        places.sort(key=lambda t, row=row: float(values[row, t]), reverse=largest)
        chosen[row, places[:count]] = True
    assert chosen.sum() < batch.target.sum()
    objective = Selected(Distil(), TopShare(need, 0.5, largest))
    frozen = {"teacher": teacher}
    scores = compute_scores(objective, batch, model, frozen=frozen)
    assert torch.equal(scores.policy.mask, chosen)
    result = compute_loss(objective, batch, model, frozen=frozen)
    result.loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    plain = compute_loss(Distil(), replace(batch, target=chosen), model, frozen=frozen)
    plain.loss.backward()
    torch.testing.assert_close(result.loss, plain.loss)
    assert len(result.metrics["loss"]) == int(chosen.sum())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("need", NEEDS)
def test_the_kernels_that_are_differentiated_read_the_chosen_rows_alone(
    tiny_llama, teacher, batch, need, monkeypatch
):
    read = []

    def watched(real, hidden, *given, **options):
        if torch.is_grad_enabled():
            read.append((len(hidden), hidden.requires_grad))
        return real(hidden, *given, **options)

    for name in ("fused_scores", "fused_divergence"):
        monkeypatch.setattr(scoring, name, partial(watched, getattr(scoring, name)))
    objective = Selected(Distil(), TopShare(need, 0.5))
    compute_loss(objective, batch, copy.deepcopy(tiny_llama), frozen={"teacher": teacher})
    assert [rows for rows, learns in read if learns] == [6]


def test_without_a_selector_nothing_changes_and_a_share_of_1_is_no_selector(tiny_llama, batch):
    losses = [
        compute_loss(objective, batch, tiny_llama).loss.item()
        for objective in (SFT(), Selected(SFT(), TopShare("policy.entropy", 1.0)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("share", "counts"), [(0.2, [2, 1, 1]), (0.5, [3, 2, 1]), (1 / 3, [2, 2, 1])]
)
def test_shares_are_rounded_up_row_by_row(batch, share, counts):
    chosen = TopShare("token.weight", share)(batch, {})
    assert chosen.sum(-1).tolist() == counts
    # the weights fall along a row: the first targets are the largest
    assert all(row[1 : 1 + n].all() for row, n in zip(chosen, counts, strict=True))


def test_bounds_are_part_of_what_lies_between(batch):
    chosen = Between("token.weight", 7.0, 9.0)(batch, {})
    values = batch.column("weight")
    assert torch.equal(chosen, batch.target & (values >= 7) & (values <= 9))
    assert chosen.any()
    whole = Between("row.grade", least=2.0)(batch, {})
    assert torch.equal(whole, batch.target & torch.tensor([[False], [True], [True]]))


def test_what_the_data_say_is_chosen_before_any_model_reads(tiny_llama, teacher, batch):
    seen = []

    def watched(given, needs, **options):
        seen.append(int(given.target.sum()))
        return teacher(given, needs, **options)

    objective = Selected(Distil(), Between("row.grade", most=1.0))
    compute_loss(objective, batch, tiny_llama, frozen={"teacher": watched})
    assert seen == [6]


def test_nothing_chosen_is_a_loss_of_0(tiny_llama, teacher, batch):
    model = copy.deepcopy(tiny_llama)
    for bound in (Between("policy.entropy", least=1e9), Between("token.weight", least=1e9)):
        result = compute_loss(Selected(Distil(), bound), batch, model, frozen={"teacher": teacher})
        result.loss.backward()
        assert result.loss.item() == 0
        assert all(w.grad is None or (w.grad == 0).all() for w in model.parameters())


def test_models_that_only_the_selector_looks_at_are_asked_for(tiny_llama):
    objective = Selected(SFT(), TopShare("judge.entropy"))
    assert frozen_sources(objective) == ("judge",)
    assert "judge.entropy" in every_need(objective)
    held = Selected(SFT(), TopShare("reference.logprob"))
    assert choose_reference("auto", tiny_llama, every_need(held)) is not None
    assert choose_reference("auto", tiny_llama, every_need(SFT())) is None


def test_what_cannot_be_selected_is_refused():
    with pytest.raises(InputError, match="select"):
        Selected(PPO(), TopShare("policy.entropy"))
    for share in (0.0, 1.1):
        with pytest.raises(InputError, match="share"):
            TopShare("policy.entropy", share)


def test_it_trains_in_the_real_trainer_and_evaluates(tiny_llama_text, tiny_tokenizer, tmp_path):
    rows = [
        {"prompt": f"the {n}", "completion": " sat there"} for n in ("cat", "dog", "mat", "age")
    ]
    losses = {}
    for share in (1.0, 0.4):
        record = train(
            Selected(SFT(), TopShare("policy.logprob", share, largest=False)),
            rows,
            (copy.deepcopy(tiny_llama_text), tiny_tokenizer),
            tmp_path / str(share),
            eval_data=rows[:2],
            disable_tqdm=True,
            use_cpu=True,
            per_device_train_batch_size=2,
            save_strategy="no",
        ).record
        losses[share] = [entry["loss"] for entry in record["history"] if "loss" in entry]
        assert record["evaluation"]["eval_entropy"] > 0
    assert losses[0.4][0] > losses[1.0][0] + 0.1  # the least likely tokens alone


def test_the_count_is_known_before_the_scores_where_it_can_be(batch):
    assert TopShare("policy.entropy", 1 / 3).count(batch) == 2 + 2 + 1
    between = Between("token.weight", 7.0, 9.0)
    assert between.count(batch) == between(batch, {}).sum() < batch.target.sum()
    assert Between("policy.entropy", 7.0, 9.0).count(batch) == batch.target.sum()


def test_micro_batches_weigh_as_many_as_they_choose(tiny_llama_text, tiny_tokenizer, tmp_path):
    completions = (" sat", " sat there on the mat", " sat on the mat", " ran over there then")
    rows = [{"prompt": "the cat", "completion": text} for text in completions]
    losses = []
    for size in (4, 1):
        record = train(
            Selected(SFT(), TopShare("policy.entropy", 0.4)),
            rows,
            (copy.deepcopy(tiny_llama_text), tiny_tokenizer),
            tmp_path / str(size),
            disable_tqdm=True,
            use_cpu=True,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            learning_rate=1e-2,
            num_train_epochs=2,
            save_strategy="no",
        ).record
        losses.append([entry["loss"] for entry in record["history"] if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
