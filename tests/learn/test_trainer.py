"""The trainer: the right loss, exactly normalised, whatever the reference or batch split."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.compute import compute_loss
from tokenry.learn.data import (
    PreferenceCollator,
    as_dataset,
    batch_of,
    preference_dataset,
    preference_rows,
)
from tokenry.learn.data.precompute import PrecomputeContext, precompute
from tokenry.learn.objective import Loss, Objective, data_columns
from tokenry.learn.preference.act import ACT
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.meet import MEET
from tokenry.learn.preference.sparsepo import SparsePO
from tokenry.learn.preference.tdpo import TDPO
from tokenry.learn.reference import FrozenModel
from tokenry.learn.trainer import ObjectiveTrainer
from tokenry.model.score import score

PAIRS = [
    {
        "prompt": f"the {noun}",
        "chosen": " sat there" + "!" * (i % 3),
        "rejected": " gathered" * (1 + i % 2),
    }
    for i, noun in enumerate(("cat", "dog", "mat", "theory", "father", "feather", "age", "name"))
]


@pytest.fixture
def start(tiny_llama_text, tiny_tokenizer, tmp_path):
    """Build a trainer on a fresh copy of the tiny model."""
    from transformers import TrainingArguments

    def build(objective, evaluate=False, **options):
        arguments = {
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
            "save_strategy": "no",
        }
        own = ("lora", "reference", "model", "tokens_per_pass", "dropout")
        rest = {k: options.pop(k) for k in own if k in options}
        data = preference_dataset(PAIRS, tiny_tokenizer)
        return ObjectiveTrainer(
            rest.pop("model", None) or copy.deepcopy(tiny_llama_text),
            objective,
            args=TrainingArguments(output_dir=str(tmp_path / "out"), **arguments | options),
            train_dataset=data,
            eval_dataset=data if evaluate else None,
            data_collator=PreferenceCollator.of(tiny_tokenizer),
            **rest,
        )

    return build


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def lora():
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.0)


@pytest.mark.parametrize("objective", [DPO(), TDPO(), TDPO(variant="tdpo1")], ids=repr)
def test_training_starts_at_ln_2_and_lowers_the_loss(start, objective):
    found = losses(start(objective, num_train_epochs=4))
    assert found[0] == pytest.approx(0.693147, abs=1e-5)
    assert found[-1] < found[0] - 0.05


def test_gradient_accumulation_gives_the_losses_of_the_whole_batch(start):
    whole = losses(start(TDPO(), num_train_epochs=3, per_device_train_batch_size=6))
    split = losses(
        start(
            TDPO(),
            num_train_epochs=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
        )
    )
    assert split == pytest.approx(whole, abs=2e-5)


def test_uneven_micro_batches_are_weighted_by_their_pairs(start):
    """8 pairs in micro-batches of 5 and 3: the step is the one of 8 pairs at once, not a mean of
    two means."""
    whole, split = (
        start(DPO(), num_train_epochs=3, optim="sgd", learning_rate=1.0, **sizes)
        for sizes in (
            {"per_device_train_batch_size": 8},
            {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2},
        )
    )
    assert losses(split) == pytest.approx(losses(whole), abs=2e-5)


def test_a_token_mean_objective_is_normalised_by_tokens(start):
    class TokenMean(Objective):
        """Mean surprisal of chosen and rejected tokens; its unit is the token."""

        needs = ("policy.logprob",)
        unit = "token"

        def __call__(self, batch, policy: Scores, reference):
            return Loss(-policy.need("logprob").sum() / batch.target.sum())

    whole = losses(start(TokenMean(), per_device_train_batch_size=8, num_train_epochs=2))
    split = losses(
        start(
            TokenMean(),
            per_device_train_batch_size=3,
            gradient_accumulation_steps=3,
            num_train_epochs=2,
        )
    )
    assert split == pytest.approx(whole, abs=2e-5)


def test_every_kind_of_reference_gives_the_same_losses(start):
    wanted = losses(start(DPO(), reference="copy"))
    assert losses(start(DPO(), reference="precomputed")) == pytest.approx(wanted, abs=1e-5)
    assert losses(start(DPO())) == wanted
    adapted = losses(start(TDPO(), lora=lora(), reference="adapter"))
    assert losses(start(TDPO(), lora=lora(), reference="copy")) == pytest.approx(adapted, abs=1e-5)


def test_lora_trains_the_adapter_only(start, tiny_llama_text):
    trainer = start(TDPO(), lora=lora())
    losses(trainer)
    base = trainer.model.get_base_model().model.embed_tokens.weight
    assert torch.equal(base, tiny_llama_text.model.embed_tokens.weight)
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == {
        n for n, _ in trainer.model.named_parameters() if "lora_" in n
    }


def test_a_frozen_copy_stays_as_it_was(start, tiny_llama_text):
    trainer = start(DPO())
    losses(trainer)
    for ours, before in zip(
        trainer.reference.model.parameters(), tiny_llama_text.parameters(), strict=True
    ):
        assert torch.equal(ours, before)
    assert not torch.equal(
        trainer.model.model.embed_tokens.weight, tiny_llama_text.model.embed_tokens.weight
    )


def test_divergence_cannot_come_from_precomputed_logprobs(start):
    with pytest.raises(InputError, match="whole distributions"):
        start(TDPO(), reference="precomputed")


def test_training_metrics_are_the_objectives_own(start):
    trainer = start(TDPO(), per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer.train()
    logged = trainer.state.log_history[0]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"):
        assert logged[name] == pytest.approx(0.0, abs=1e-5)
    data = trainer.train_dataset
    assert logged["length/chosen"] == pytest.approx(sum(map(len, data["chosen_ids"])) / 8)
    assert logged["kl/rejected"] == pytest.approx(0.0, abs=1e-5)


def test_evaluation_is_exact_over_batches_of_any_size(start, tiny_tokenizer):
    """Batches of 3, 3 and 2 pairs against all 8 at once."""
    trainer = start(TDPO(), evaluate=True)
    trainer.train()
    found = trainer.evaluate()
    batch = batch_of(trainer.data_collator(list(trainer.eval_dataset)))
    reference = FrozenModel(trainer.reference.model)
    expected = compute_loss(TDPO(), batch, trainer.model, reference, grad=False)
    assert found["eval_loss"] == pytest.approx(float(expected.loss), abs=1e-5)
    for name in ("rewards/margin", "rewards/accuracy", "length/chosen", "kl/chosen"):
        wanted = float(expected.metrics[name].mean())
        assert found[f"eval_{name}"] == pytest.approx(wanted, abs=1e-5), name
    tokens = int(batch.target.sum())
    total = float((expected.metrics["kl/chosen"] + expected.metrics["kl/rejected"]).sum())
    assert found["eval_kl"] == pytest.approx(total / tokens, abs=1e-5)
    assert found["eval_entropy"] > 0


class SidesInTokens(Objective):
    """A token-unit objective with a metric of each kind: by unit, by its own number, by vector."""

    needs = ("policy.logprob",)
    unit = "token"

    def __call__(self, batch, policy: Scores, reference, **_):
        surprise, half = -policy.need("logprob"), len(batch.ids) // 2
        chosen = batch.target.clone()
        chosen[half:] = False
        metrics = {
            "scalar": surprise[batch.target].square().mean(),
            "chosen": surprise[chosen].mean(),
            "vector": surprise.sum(-1),
        }
        return Loss(surprise[batch.target].mean(), metrics, {"chosen": chosen.sum()})


@pytest.mark.parametrize(
    "objective",
    [SidesInTokens(), MEET(stage=2), ACT(), SparsePO(), TDPO()],
    ids=lambda objective: type(objective).__name__,
)
def test_evaluation_does_not_depend_on_the_batch_size(objective, start, tiny_tokenizer):
    """Seven pairs in batches of 1, 2, 3 and 7; the token-unit loss also against its definition."""
    rows, _ = preference_rows(PAIRS[:7], tiny_tokenizer)
    trainer = start(objective, model=start(DPO()).model.double())
    rows = precompute(objective, rows, PrecomputeContext(tiny_tokenizer, trainer.model))
    completions, columns = objective.completions, data_columns(objective)
    data = as_dataset(rows, completions, columns)
    trainer.data_collator = PreferenceCollator.of(tiny_tokenizer, completions, columns)
    found = []
    for size in (7, 1, 2, 3):
        trainer.args.per_device_eval_batch_size = size
        metrics = trainer.evaluate(data)
        found.append({k: v for k, v in metrics.items() if "second" not in k and "runtime" not in k})
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6, rel=1e-6)
    if isinstance(objective, SidesInTokens):
        batch = batch_of(trainer.data_collator(list(data)))
        surprise = -score(trainer.model, batch).need("logprob").double()
        half = batch.target.clone()
        half[7:] = False
        assert found[1]["eval_loss"] == pytest.approx(
            float(surprise[batch.target].mean()), abs=1e-6
        )
        assert found[1]["eval_chosen"] == pytest.approx(float(surprise[half].mean()), abs=1e-6)
        assert found[1]["eval_vector"] == pytest.approx(float(surprise.sum(-1).mean()), abs=1e-6)


def test_logged_scalars_are_weighted_by_what_they_are_means_over(start):
    """One step of micro-batches of 3, 3 and 2 pairs against the same pairs at once."""
    whole, split = (
        start(SidesInTokens(), per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        for size, steps in ((8, 1), (3, 3))
    )
    one, other = (losses(trainer) and trainer.state.log_history[0] for trainer in (whole, split))
    for name in ("loss", "scalar", "chosen", "vector"):
        assert other[name] == pytest.approx(one[name], rel=1e-6), name


def test_kl_to_the_reference_is_evaluated_for_objectives_that_do_not_use_it(start):
    trainer = start(DPO(), evaluate=True)
    assert trainer.evaluate()["eval_kl"] == pytest.approx(0.0, abs=1e-6)
    trainer.train()
    assert trainer.evaluate()["eval_kl"] > 1e-4


SCRIPT = """
import sys, json
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import conftest
from tokenry.learn.run import train

tokenizer = conftest.tiny_tokenizer._get_wrapped_function()()
pairs = json.loads({pairs!r})
for name, objective, count, size, options in json.loads({runs!r}):
    model = conftest.build_llama(vocab_size=len(tokenizer))
    train(objective, pairs[:count], (model, tokenizer), {output!r} + "/" + name,
          num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=size,
          eval_data=pairs[:count], per_device_eval_batch_size=2, disable_tqdm=True,
          save_strategy="no", use_cpu=True, seed=3, **options)
torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
"""
# name, objective, pairs, pairs of a step in one process, options. MEET's unit is the token; three
# pairs in steps of eight leave the second process nothing at all.
RUNS = [
    ("even", "tdpo", 8, 4, {}),
    ("seven", "tdpo", 7, 4, {}),
    ("three", "dpo", 3, 8, {}),
    ("tokens", "meet", 7, 4, {"stage": 2}),
    ("few-tokens", "meet", 3, 8, {"stage": 2}),
    ("accumulated", "act", 7, 4, {"gradient_accumulation_steps": 2}),
]


def run_script(folder, name, launcher, processes):
    import json

    script = folder / f"{name}.py"
    output = folder / name
    tests = str(Path(__file__).parents[1])
    runs = json.dumps([(*run[:3], run[3] // processes, run[4]) for run in RUNS])
    pairs = json.dumps(PAIRS)
    script.write_text(SCRIPT.format(tests=tests, pairs=pairs, output=str(output), runs=runs))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        run[0]: json.loads((output / run[0] / "run.json").read_text())["history"] for run in RUNS
    }


def test_two_processes_give_the_losses_and_metrics_of_one(tmp_path):
    """Two gloo processes with half of each step's pairs, against one process with all of them.

    Started by torch's launcher: `accelerate launch --cpu --num_processes 2` (1.15) starts a single
    process unless it is given an MPI host file.
    """
    options = "--nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint localhost:0"
    two = run_script(tmp_path, "two", ["-m", "torch.distributed.run", *options.split()], 2)
    one = run_script(tmp_path, "one", [], 1)
    for run in one:
        assert len(one[run]) == len(two[run])
        for ours, theirs in zip(one[run], two[run], strict=True):
            assert set(ours) == set(theirs)
            for name in ours:
                if not any(word in name for word in ("second", "runtime", "flos")):
                    assert theirs[name] == pytest.approx(ours[name], abs=2e-5, rel=1e-4), (
                        run,
                        name,
                    )
    assert [entry["loss"] for entry in one["even"] if "loss" in entry][-1] < 0.69


def test_passes_of_any_size_give_the_same_training(start):
    """One pair at a time or all at once: the same gradients, so the same weights."""
    found = []
    for tokens in (1, 40, None):
        trainer = start(TDPO(), tokens_per_pass=tokens, optim="sgd")
        trainer.train()
        found.append([p.detach().clone() for p in trainer.model.parameters()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_an_objective_that_couples_rows_is_never_split(start):
    class Coupled(DPO):
        separable = False
        seen: list[int] = []  # noqa: RUF012

        def __call__(self, batch, policy, reference, **others):
            self.seen.append(len(batch.ids))
            return super().__call__(batch, policy, reference)

    trainer = start(Coupled(), tokens_per_pass=1)
    trainer.train()
    assert Coupled.seen == [8, 8]


def test_a_reference_with_another_vocabulary_is_refused(start, tiny_llama):
    from tokenry.core.errors import VocabularyError

    with pytest.raises(VocabularyError, match="the reference predicts 64 tokens"):
        start(DPO(), reference=FrozenModel(tiny_llama))


def with_dropout(model):
    """A copy of the model whose attention drops half of what it reads."""
    model = copy.deepcopy(model)
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    return model


def dropping_lora():
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.5, lora_alpha=64
    )


@pytest.mark.parametrize("adapter", [None, dropping_lora()], ids=["full", "lora"])
def test_the_first_loss_is_ln_2_whatever_dropout_the_model_has(start, tiny_llama_text, adapter):
    trainer = start(DPO(), model=with_dropout(tiny_llama_text), lora=adapter, max_steps=1)
    assert losses(trainer) == [pytest.approx(0.693147, abs=1e-5)]
    assert trainer.accelerator.unwrap_model(trainer.model).config.attention_dropout == 0.5
    dropping = start(
        DPO(), model=with_dropout(tiny_llama_text), lora=adapter, max_steps=1, dropout=True
    )
    assert losses(dropping) != [pytest.approx(0.693147, abs=1e-3)]


def test_dropout_changes_nothing_unless_asked_for(start, tiny_llama_text):
    """Not only the first loss: two adapters, with and without dropout, train alike."""
    plain = lora()
    plain.lora_alpha = 64
    one, two = (
        start(DPO(), lora=adapter, num_train_epochs=2) for adapter in (plain, dropping_lora())
    )
    assert losses(one) == losses(two)


def test_a_model_that_is_random_in_training_mode_is_refused(start, tiny_llama_text):
    """Noise that is no dropout: a hook that adds to the hidden states while training."""
    model = copy.deepcopy(tiny_llama_text)

    def noisy(module, inputs, output):
        return output + torch.randn_like(output) if module.training else output

    model.model.norm.register_forward_hook(noisy)
    with pytest.raises(InputError, match="differ from those of evaluation mode"):
        start(DPO(), model=model, reference="copy").train()
    start(DPO(), model=model, reference="copy", dropout=True, max_steps=1).train()
    with pytest.raises(InputError, match="dropout must be true or false, got 'no'"):
        start(DPO(), model=model, dropout="no")


def test_an_objective_that_returns_no_loss_or_counts_in_no_unit_is_refused(start):
    class Bare(DPO):
        def __call__(self, batch, policy, reference, **others):
            return super().__call__(batch, policy, reference).loss

    class Vector(DPO):
        def __call__(self, batch, policy, reference, **others):
            return Loss(policy.need("logprob").sum(-1))

    class Galaxy(DPO):
        unit = "galaxy"

    with pytest.raises(InputError, match="Bare must return a Loss with a scalar, not Tensor"):
        start(Bare()).train()
    with pytest.raises(InputError, match=r"not a loss of shape \[8\]"):
        start(Vector()).train()
    with pytest.raises(InputError, match=r"Galaxy.unit is 'galaxy'; it must be one of 'pair'"):
        start(Galaxy())
