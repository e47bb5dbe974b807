"""The same losses and gradients as TRL's DPOTrainer, on the same batch and the same model."""

import copy

import pytest
import torch

from tokenry.learn.compute import compute_loss
from tokenry.learn.data import PreferenceCollator, batch_of, preference_dataset
from tokenry.learn.objective import objective
from tokenry.learn.reference import FrozenModel

trl = pytest.importorskip("trl")

PAIRS = [
    {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " gathered"},
    {"prompt": "there is a theory", "chosen": " that", "rejected": " sat there and there"},
    {"prompt": "def add(a,", "chosen": " b):", "rejected": " father)"},
]
# name in TRL -> the same loss here
CASES = {
    "reverse_kl": ("dpo", {}, {}),
    "js_divergence": ("f-dpo", {"f_divergence": "jensen_shannon_sum"}, {}),
    "forward_kl": ("f-dpo", {"f_divergence": "forward_kl"}, {}),
    "alpha_divergence": (
        "f-dpo",
        {"f_divergence": "alpha:0.3"},
        {"f_alpha_divergence_coef": 0.7},
    ),
}


@pytest.fixture
def models(tiny_llama_text):
    """A policy, and a reference that differs from it."""
    policy = copy.deepcopy(tiny_llama_text)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return policy, copy.deepcopy(tiny_llama_text)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_trls(models, tiny_tokenizer, tmp_path, name):
    key, settings, trl_settings = CASES[name]
    policy, reference = models
    data = preference_dataset(PAIRS, tiny_tokenizer)
    ours = copy.deepcopy(policy).train()
    batch = batch_of(PreferenceCollator.of(tiny_tokenizer)(list(data)))
    preset = objective[key](beta=0.2, **settings)
    loss = compute_loss(preset, batch, ours, FrozenModel(reference)).loss
    loss.backward()

    class Prepared(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    theirs = copy.deepcopy(policy)
    config = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=0.2,
        f_divergence_type=name,
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        **trl_settings,
    )
    trainer = Prepared(
        model=theirs,
        ref_model=reference,
        args=config,
        train_dataset=data,
        processing_class=tiny_tokenizer,
    )
    inputs = trainer.data_collator(list(data))
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    pairs = zip(ours.named_parameters(), trainer.model.named_parameters(), strict=True)
    for (one, mine), (_, peer) in pairs:
        torch.testing.assert_close(
            mine.grad, peer.grad, rtol=1e-5, atol=1e-5, msg=lambda m, o=one: f"{o}: {m}"
        )
