"""vLLM as a rollout source, against a stand-in with its documented types."""

import copy

import pytest
import torch

import fake_vllm
from policy_trainer import PROMPTS, logged, run
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ModelError
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.vllm import VLLM, sampled_ids
from tokenry.model.plain_weights import plain_weights

ENDS = (1, 3, 10, 11, 12)


@pytest.fixture
def engine(monkeypatch):
    return fake_vllm.install(monkeypatch)


def prompts():
    batch = TokenBatch.from_ids([[5, 6, 7], [8, 9]], padding_side="left")
    return Prompts(batch.ids, batch.attention, ENDS)


def adapted(model, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    given = {"target_modules": "all-linear", "lora_alpha": 5, "init_lora_weights": False}
    config = LoraConfig(r=3, **given | options)
    return get_peft_model(copy.deepcopy(model), config)


def test_the_engine_has_the_policys_weights_and_is_asked_for_its_distribution(engine, tiny_llama):
    source, policy = VLLM(options={"max_model_len": 64}), copy.deepcopy(tiny_llama)
    for scale in (1.0, 0.5):
        with torch.no_grad():
            policy.model.embed_tokens.weight *= scale
        batch = source(policy, prompts(), RolloutSettings(3, 6, temperature=0.7))
        ids = torch.tensor([[5, 6, 7, 8]])
        torch.testing.assert_close(source.engine.model(ids).logits, policy(ids).logits)
    assert source.engine.options == {"max_model_len": 64}
    assert source.engine.resets == 2
    asked = source.engine.asked[0]
    wanted = fake_vllm.SamplingParams(
        3, temperature=0.7, stop_token_ids=list(ENDS), ignore_eos=True, max_tokens=6
    )
    assert asked == wanted.__class__(**vars(wanted) | {"seed": asked.seed, "detokenize": False})
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({one.seed for one in source.engine.asked}) == 4


def test_an_adapters_weights_are_added_and_the_policy_is_left_alone(engine, tiny_llama):
    policy = adapted(tiny_llama)
    before = copy.deepcopy(policy.state_dict())
    weights = dict(plain_weights(policy))
    assert set(weights) == {name for name, _ in tiny_llama.named_parameters()}
    source = VLLM()
    source(policy, prompts(), RolloutSettings(2, 4))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours, plain = policy(ids).logits, tiny_llama(ids).logits
        torch.testing.assert_close(source.engine.model(ids).logits, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"modules_to_save": ["norm"]}])
def test_an_adapter_that_is_no_sum_is_refused(options, tiny_llama):
    with pytest.raises(InputError, match="is not added to one of the model's"):
        dict(plain_weights(adapted(tiny_llama, **options)))


def test_it_trains_like_the_plain_source(engine, tiny_llama_text, tiny_tokenizer, tmp_path):
    """On policy at every draw: the ratios of a first update are 1, also when weights have moved."""
    found, _ = run(
        "grpo",
        (tiny_llama_text, tiny_tokenizer),
        tmp_path,
        PROMPTS[:4],
        rewards=[lambda prompt, completion: float(len(completion))],
        source="vllm",
        temperature=0.6,
        per_device_train_batch_size=2,
        learning_rate=0.05,
    )
    assert logged(found, "ratio") == [pytest.approx(1, abs=1e-6)] * 2
    assert found.record["rollout"]["source"] == "vllm"


@pytest.mark.parametrize(
    ("ids", "reason", "stop", "wanted"),
    [
        ([5, 6, 3], "stop", 3, [5, 6, 3]),
        ([5, 6], "stop", 3, [5, 6, 3]),
        ([5, 6, 7, 8], "length", None, [5, 6, 7, 8]),
        ([5, 6], "length", None, None),  # the engine's window
        ([5, 6], "stop", None, None),
        ([5, 6], "stop", "text", None),
        ([5, 6, 3], "abort", None, None),
        ([], "abort", None, None),
    ],
)
def test_what_ends_a_completion(ids, reason, stop, wanted):
    output = fake_vllm.CompletionOutput(0, "", ids, finish_reason=reason, stop_reason=stop)
    if wanted is None:
        with pytest.raises(ModelError, match="vLLM ended a completion"):
            sampled_ids(output, ENDS, 4)
    else:
        assert sampled_ids(output, ENDS, 4) == wanted


def test_a_prompt_that_is_read_otherwise_and_a_missing_engine_are_named(
    engine, tiny_llama, monkeypatch
):
    real = fake_vllm.LLM._answer
    monkeypatch.setattr(fake_vllm.LLM, "_answer", lambda self, n, i, p: real(self, n, i[1:], p))
    with pytest.raises(ModelError, match="prompt 0 otherwise"):
        VLLM()(tiny_llama, prompts(), RolloutSettings(2, 4))
    monkeypatch.setattr("tokenry.core.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install vllm"):
        VLLM()(tiny_llama, prompts(), RolloutSettings(2, 4))
