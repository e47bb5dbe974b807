"""Troubles 3 and 10: a policy is compared with itself as it was sampled from.

At its temperature, by every model (trl#3029, OpenRLHF#853), an adapter that it came with included.
Ratios of 1 under dropout (trl#3500) are `test_buffer.py`'s.
"""

import copy
from dataclasses import dataclass, field

import pytest
import torch

from policy_trainer import PROMPTS, Watch, logged, run, tempered
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.beams import Beams


@dataclass(frozen=True)
class Spy(GRPO):
    """GRPO that keeps what it is called with."""

    seen: list = field(default_factory=list, hash=False, compare=False)

    def __call__(self, batch, policy, reference, **others):
        own = policy.need("logprob").detach().clone()
        self.seen.append((batch, own, {} if reference is None else reference))
        return super().__call__(batch, policy, reference, **others)


class Models(Watch):
    def __init__(self):
        super().__init__()
        self.models = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.models.append(copy.deepcopy(model).eval())


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
def test_policy_old_and_reference_carry_it(adapter, tiny_llama_text, tiny_tokenizer, tmp_path):
    """Ratio 1 and KL 0 at first, and then those of the distributions at 0.6, in every update."""
    goal, models, start = Spy(beta=0.1), Models(), copy.deepcopy(tiny_llama_text)
    found, _ = run(
        goal,
        (tiny_llama_text, tiny_tokenizer),
        tmp_path,
        PROMPTS[:2],
        rewards=[lambda prompt, completion: len(completion)],
        temperature=0.6,
        updates=3,
        learning_rate=2e-3,
        lora={"r": 4} if adapter else False,
        callbacks=[models],
    )
    assert logged(found, "ratio")[0] == pytest.approx(1, abs=1e-6)
    assert logged(found, "kl/old")[0] == pytest.approx(0, abs=1e-6)
    assert logged(found, "kl/reference")[0] == pytest.approx(0, abs=1e-8)
    assert len(goal.seen) == 3
    for (batch, own, _), model in zip(goal.seen, models.models, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(own, tempered(model, batch, 0.6), rtol=1e-4, atol=1e-4)
            before = tempered(start, batch, 0.6)
        for name in ("old_logprob", "reference_logprob"):
            torch.testing.assert_close(batch.column(name), before, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        entropy = tempered(start, batch, 0.6, "entropy")[batch.target].mean()
    assert logged(found, "entropy") == [pytest.approx(float(entropy), abs=1e-4)]
    assert logged(found, "ratio")[2] != pytest.approx(1, abs=1e-3)


def test_samples_for_an_objective_of_given_texts_stay_at_temperature_1(
    tiny_llama_text, tiny_tokenizer, tmp_path
):
    rows = [{"prompt": f"the {noun}", "completion": " sat"} for noun in ("cat", "dog")]
    losses = []
    for temperature in (1.0, 0.5):
        drawn = []

        def source(policy, prompts, settings, drawn=drawn):
            drawn.append(settings.temperature)
            return prompts.batch([0, 1], [[7, 8, 1], [9, 1]])

        found, _ = run(
            "sft",
            (tiny_llama_text, tiny_tokenizer),
            tmp_path / str(temperature),
            rows,
            source=source,
            share=1.0,
            temperature=temperature,
        )
        assert drawn == [temperature]
        losses += logged(found, "loss")
    assert losses[0] == losses[1]


def test_no_other_filter_is_taken(tiny_llama_text, tiny_tokenizer, tmp_path):
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
        with pytest.raises((InputError, UnknownNameError), match=name):
            run("grpo", (tiny_llama_text, tiny_tokenizer), tmp_path, **{name: 0.9})


def test_beams_know_their_log_probability_at_it(tiny_llama):
    ids = torch.tensor([[5, 6]])
    prompts = Prompts(ids, ids > 0, (1,))
    batch = Beams([[7, 8], [9]])(tiny_llama, prompts, RolloutSettings(2, temperature=0.6))
    with torch.no_grad():
        wanted = tempered(tiny_llama, batch, 0.6).sum(-1)
    torch.testing.assert_close(batch.column("beam_logprob"), wanted, rtol=1e-4, atol=1e-4)


def test_a_model_that_brings_an_adapter_is_its_own_reference(
    tiny_llama_text, tiny_tokenizer, tmp_path
):
    """Trouble 10: not its base (trl#3194): ratio 1 and KL 0 at first; the bare base is far away."""
    from peft import LoraConfig, get_peft_model

    found = {}
    for reference in ("auto", "adapter"):
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(copy.deepcopy(tiny_llama_text), config)
        found[reference], _ = run(
            GRPO(beta=0.1),
            (model, tiny_tokenizer),
            tmp_path / reference,
            PROMPTS[:2],
            rewards=[lambda prompt, completion: float(len(completion))],
            reference=reference,
            temperature=0.7,
        )
        assert logged(found[reference], "ratio")[0] == pytest.approx(1, abs=1e-6)
    assert logged(found["auto"], "kl/reference")[0] == pytest.approx(0, abs=1e-8)
    assert logged(found["adapter"], "kl/reference")[0] > 0.1
