"""Terms and views: another objective beside, another prompt before, another source of batches."""

import copy
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import FORWARD_KL, REVERSE_KL
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.objective import Loss, Objective, View, frozen_sources
from tokenry.learn.policy.axes import Auxiliary, Clip, GroupAdvantage, RolloutBatch
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.terms import Hinted, Rehearsal
from tokenry.learn.pretraining.sft import SFT
from tokenry.learn.reference import FrozenModel, choose_reference
from tokenry.learn.run import train
from tokenry.model.score import score

ROWS = [([5, 9], [7, 8, 1]), ([6], [10, 1]), ([5, 5, 5], [11])]
QUIET = {
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "samples": 2,
    "max_new_tokens": 4,
    "seed": 3,
}
PROMPTS = [{"prompt": f"the {noun}"} for noun in ("cat", "dog", "mat", "theory", "father", "age")]


def vowels(prompt, completion):
    return sum(letter in "aeiou" for letter in completion) / 4


def written(model, reward=(1.0, 0.0, 0.5)):
    """A batch with the columns of its sampling by this model."""
    batch = TokenBatch.from_ids(
        [[*prompt, *completion] for prompt, completion in ROWS],
        [[False] * len(prompt) + [True] * len(completion) for prompt, completion in ROWS],
        group=[0, 0, 0],
    )
    old = score(model, batch).need("logprob")
    return batch.with_columns(
        reward=torch.tensor(reward), old_logprob=old, advantage=torch.zeros(batch.shape)
    )


def loss_of(goal, model, **options):
    return compute_loss(goal, written(model), model, **options).loss


def test_a_term_adds_its_objective_at_its_weight_and_reports_its_metrics(tiny_llama):
    """With no advantage left to learn from, the term is all there is."""
    plain = compute_loss(SFT(), written(tiny_llama), tiny_llama).loss
    both = PolicyGradient(terms=(Auxiliary(SFT(), weight=0.25),))
    alone = PolicyGradient(None, terms=(Auxiliary(SFT()),))
    assert loss_of(both, tiny_llama).item() == pytest.approx(0.25 * plain.item(), rel=1e-5)
    result = compute_loss(alone, written(tiny_llama), tiny_llama)
    assert result.loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert result.metrics["loss"].mean().item() == pytest.approx(plain.item(), rel=1e-5)
    assert alone.rollout_needs == ()
    assert alone.needs == ("policy.logprob",)
    assert alone.prepare(written(tiny_llama), None) is not None


def test_without_an_advantage_there_is_nothing_else_to_act_on():
    for options in ({}, {"terms": (Auxiliary(SFT()),), "gate": lambda x, rollouts: x}):
        with pytest.raises(InputError, match="without an advantage"):
            PolicyGradient(None, **options)
    with pytest.raises(InputError, match=r"Auxiliary\.weight"):
        Auxiliary(SFT(), weight=-1.0)


def rehearsing(size=2, weight=1.0):
    source = Rehearsal(ROWS, size)
    return PolicyGradient(terms=(Auxiliary(SFT(), weight, source, "old"),))


def test_a_rehearsal_gives_its_rows_in_turn_and_its_objective_sees_them(tiny_llama):
    goal = rehearsing()
    modules = goal.modules(tiny_llama)
    batch = written(tiny_llama)
    assert "policy@old.logprob" in goal.needs
    seen = []
    for turn in range(3):
        found = compute_scores(goal, batch, tiny_llama, modules=modules)
        view = found.others["batch@old"]
        seen += [row[real].tolist() for row, real in zip(view.ids, view.attention, strict=True)]
        result = goal(batch, found.policy, **found.others)
        wanted = compute_loss(SFT(), view, tiny_llama).loss
        assert result.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert result.metrics["old/loss"].mean().item() == pytest.approx(wanted.item(), rel=1e-5)
        assert int(modules["Rehearsal"].turn) == 2 * (turn + 1)
    assert seen == [[*p, *c] for p, c in (*ROWS, *ROWS)]
    modules.eval()  # an evaluation looks and leaves no trace
    compute_scores(goal, batch, tiny_llama, modules=modules, grad=False)
    assert int(modules["Rehearsal"].turn) == 6


def test_a_rehearsals_gradient_reaches_the_policy(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    goal = rehearsing(size=3)
    loss = compute_loss(goal, written(model), model, modules=goal.modules(model)).loss
    loss.backward()
    own = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    compute_loss(SFT(), written(model), model).loss.backward()  # the same three rows
    for name, weight in model.named_parameters():
        torch.testing.assert_close(own[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_rehearsed_is_refused():
    with pytest.raises(InputError, match="rows"):
        Rehearsal([])
    with pytest.raises(InputError, match="rows"):
        Rehearsal([([1], [])])
    with pytest.raises(InputError, match="size"):
        Rehearsal(ROWS, 0)
    with pytest.raises(InputError, match="a hint is either"):
        Hinted()
    twice = tuple(Auxiliary(SFT(), 1.0, Rehearsal(ROWS), name) for name in "ab")
    with pytest.raises(InputError, match="module_name"):
        PolicyGradient(terms=twice).modules(None)


HINT = (20, 21, 22)


@dataclass(frozen=True)
class ToldMore:
    """An advantage: how much likelier a hint makes each token; a term that looks at it too."""

    rollout_needs: ClassVar = ("policy@hinted.logprob",)
    axes: ClassVar = (Hinted(HINT),)

    def __call__(self, rollouts):
        return rollouts.scores("policy@hinted").need("logprob") - rollouts.old_logprob


def logprob_with(model, hint):
    """Each row's log-probabilities when the hint stands behind its prompt, by plain logits."""
    values = []
    for prompt, completion in ROWS:
        ids = torch.tensor([[*prompt, *hint, *completion]])
        logits = model(ids).logits[0].log_softmax(-1)
        start = len(prompt) + len(hint)
        values += [logits[start + n - 1, token] for n, token in enumerate(completion)]
    return torch.stack(values)


def test_a_second_conditioning_is_scored_where_the_rollouts_tokens_stand(tiny_llama):
    goal = PolicyGradient(ToldMore())
    batch = written(tiny_llama)
    found = compute_scores(goal, batch, tiny_llama, needs=goal.rollout_needs, grad=False)
    told = found.others["policy@hinted"].need("logprob")
    wanted = logprob_with(tiny_llama, HINT).detach()
    torch.testing.assert_close(told[batch.target], wanted, rtol=1e-4, atol=1e-4)
    assert (told[~batch.target] == 0).all()
    ready = goal.prepare(batch, found.policy, **found.others)
    plain = logprob_with(tiny_llama, ()).detach()
    torch.testing.assert_close(
        ready.column("advantage")[batch.target], wanted - plain, rtol=1e-3, atol=1e-4
    )


def test_every_row_may_have_its_own_hint(tiny_llama):
    hints = torch.tensor([[20, 21], [22, -1], [-1, -1]])
    batch = written(tiny_llama).with_columns(hint=hints)
    view = Hinted(column="hint")(RolloutBatch(batch))
    rows = [row[real].tolist() for row, real in zip(view.ids, view.attention, strict=True)]
    own = ([20, 21], [22], [])
    assert rows == [[*p, *h, *c] for (p, c), h in zip(ROWS, own, strict=True)]
    assert view.target.sum().item() == sum(len(c) for _, c in ROWS)


@dataclass(frozen=True)
class FromHinted:
    """KL of the policy that was told more to the policy that was not: self-distillation."""

    needs: ClassVar = ("policy.divergence(policy@hinted)",)
    divergence: ClassVar = FORWARD_KL
    axes: ClassVar = (Hinted(HINT),)

    def __call__(self, rollouts):
        value = rollouts.scores().need("divergence(policy@hinted)")
        return masked_mean(value, rollouts.mask)


def test_the_divergence_from_the_policy_that_was_told_more_is_a_constant_teachers(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    goal = PolicyGradient(None, terms=(FromHinted(),))
    loss = loss_of(goal, model)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    terms = []
    for prompt, completion in ROWS:
        told = model(torch.tensor([[*prompt, *HINT, *completion]])).logits[0].log_softmax(-1)
        plain = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
        teacher = told[len(prompt) + len(HINT) - 1 : -1].detach()
        student = plain[len(prompt) - 1 : -1]
        terms.append((teacher.exp() * (teacher - student)).sum(-1))
    wanted = torch.cat(terms).mean()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)


def test_frozen_models_may_be_told_more_too_and_count_as_what_they_are(tiny_llama):
    @dataclass(frozen=True)
    class Guided:
        needs: ClassVar = ("reference@hinted.logprob", "teacher@hinted.entropy")
        axes: ClassVar = (Hinted(HINT),)

        def __call__(self, rollouts):
            own = rollouts.scores("reference@hinted").need("logprob")
            return masked_mean(own, rollouts.mask)

    goal = PolicyGradient(None, terms=(Guided(),))
    assert frozen_sources(goal) == ("teacher",)
    assert choose_reference("auto", tiny_llama, goal.needs) is not None
    other = FrozenModel(tiny_llama)
    value = loss_of(goal, tiny_llama, reference=other, frozen={"teacher": other})
    torch.testing.assert_close(value, logprob_with(tiny_llama, HINT).mean(), rtol=1e-4, atol=1e-4)


def test_another_conditioning_must_keep_the_targets(tiny_llama):
    batch = written(tiny_llama)
    other = Scores(batch.ids + 1, batch.target, logprob=torch.zeros(batch.shape))
    with pytest.raises(ShapeError, match="keep the targets"):
        other.placed_on(batch.ids, batch.target)

    class Nameless(Objective):
        needs, unit = ("policy@hinted.logprob",), "row"

        def views(self, batch, modules):
            return {"other": View(batch)}

        def __call__(self, batch, policy, reference=None, **others):
            return Loss(torch.zeros(()))

    with pytest.raises(InputError, match='needs the view "hinted"'):
        compute_loss(Nameless(), batch, tiny_llama)


def test_two_axes_must_agree_on_the_divergence():
    @dataclass(frozen=True)
    class Reverse(FromHinted):
        divergence: ClassVar = REVERSE_KL

    assert PolicyGradient(None, terms=(FromHinted(),)).divergence is FORWARD_KL
    with pytest.raises(InputError, match="more than one divergence"):
        str(PolicyGradient(None, terms=(FromHinted(), Reverse())).divergence)


@dataclass(frozen=True)
class Watching:
    """An advantage that keeps the running mean of all rewards as its baseline, in a buffer."""

    def module(self, model):
        made = torch.nn.Module()
        made.register_buffer("sum", torch.zeros(()))
        made.register_buffer("count", torch.zeros(()))
        return made

    def __call__(self, rollouts):
        state, reward = rollouts.module(self), rollouts.total_reward
        baseline = state.sum / state.count.clamp_min(1)
        if state.training:
            state.sum += reward.sum()
            state.count += len(reward)
        return reward - baseline


@dataclass(frozen=True)
class Cooling:
    """A token weight that falls with the progress of the training."""

    seen: ClassVar = []

    def __call__(self, rollouts, advantage):
        self.seen.append(rollouts.progress)
        return torch.full(advantage.shape, 1 - rollouts.progress)


def everything():
    return PolicyGradient(
        Watching(),
        clip=Clip(0.2, 0.28),
        weights=(Cooling(),),
        terms=(FromHinted(), Auxiliary(SFT(), 0.1, Rehearsal(ROWS, 2), "old")),
    )


def run(loaded, output, objective, **settings):
    model, tokenizer = loaded
    options = {"rewards": [vowels], **QUIET, **settings}
    return train(objective, PROMPTS, (copy.deepcopy(model), tokenizer), output, **options)


def losses(record):
    return {entry["step"]: entry["loss"] for entry in record["history"] if "loss" in entry}


def test_state_terms_views_and_progress_work_in_the_real_trainer_and_are_resumed(
    tiny_llama_text, tiny_tokenizer, tmp_path
):
    loaded = tiny_llama_text, tiny_tokenizer
    Cooling.seen.clear()
    settings = {"updates": 2, "save_strategy": "steps", "save_steps": 3, "eval_data": PROMPTS[:2]}
    whole = run(loaded, tmp_path / "whole", everything(), **settings)
    steps = whole.record["steps"]
    assert steps == 6
    assert sorted({round(value * steps) for value in Cooling.seen}) == [*range(steps), steps]
    from safetensors.torch import load_file

    state = load_file(tmp_path / "whole" / "objective.safetensors")
    assert state["Watching.count"].item() == 2 * len(PROMPTS)  # evaluations are not counted
    assert state["Rehearsal.turn"].item() == 2 * steps
    logged = [entry for entry in whole.record["history"] if "old/loss" in entry]
    assert len(logged) == steps
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    folder = tmp_path / "resumed"
    folder.mkdir()
    checkpoint.rename(folder / checkpoint.name)
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"state": "running"}))
    again = losses(run(loaded, folder, everything(), resume=True, **settings).record)
    first = losses(whole.record)
    assert {s: again[s] for s in again if s > 3} == {s: first[s] for s in first if s > 3}


def test_the_trainers_hinted_advantage_is_that_of_plain_logits(
    tiny_llama_text, tiny_tokenizer, tmp_path, monkeypatch
):
    import tokenry.learn.trainer as module

    drawn, real = [], module.ObjectiveTrainer._roll_out

    def watched(self, inputs):
        model = copy.deepcopy(self.model).eval()
        drawn.append((model, real(self, inputs)))
        return drawn[-1][1]

    monkeypatch.setattr(module.ObjectiveTrainer, "_roll_out", watched)
    goal = PolicyGradient(ToldMore(), aggregation="sequence-sum")
    run((tiny_llama_text, tiny_tokenizer), tmp_path / "a", goal, max_steps=2)
    for model, fields in drawn:
        ids, attention, target = fields["ids"], fields["attention"], fields["target"]
        for row in range(len(ids)):
            prompt = ids[row][attention[row] & ~target[row]].tolist()
            completion = ids[row][target[row]].tolist()
            sums = []
            for hint in ((), HINT):
                text = torch.tensor([[*prompt, *hint, *completion]])
                logprob = model(text).logits[0].log_softmax(-1)[len(prompt) + len(hint) - 1 : -1]
                sums.append(logprob.gather(-1, torch.tensor(completion)[:, None]).sum())
            found = fields["column.advantage"][row].sum()
            assert found.item() == pytest.approx((sums[1] - sums[0]).item(), abs=1e-3)


def test_groups_keep_their_own_meaning_beside_terms(tiny_llama):
    """The advantage of a group is untouched by what is added to the loss."""
    batch = written(tiny_llama)
    with_term = PolicyGradient(GroupAdvantage(), terms=(Auxiliary(SFT()),))
    own = score(tiny_llama, batch)
    torch.testing.assert_close(
        with_term.prepare(batch, own).column("advantage"),
        PolicyGradient(GroupAdvantage()).prepare(batch, own).column("advantage"),
    )
