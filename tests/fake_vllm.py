"""A stand-in for vLLM: the part of its documented types and calls that a rollout source uses.

`install()` puts it where `import vllm` finds it. Texts are sampled by a transformers model that is
made from the engine's folder and has the weights that `load_weights` was given.
"""

import sys
import types
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec

import torch

from tokenry.decode.sample import sample


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True


class LLM:
    made = 0

    def __init__(self, model, *, load_format="auto", skip_tokenizer_init=False, **options):
        from transformers import AutoConfig, AutoModelForCausalLM

        assert load_format == "dummy"
        assert skip_tokenizer_init
        LLM.made += 1
        self.options, self.asked, self.resets = options, [], 0
        with torch.random.fork_rng():
            self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).eval()
        self.model.load_weights = self._load_weights

    def _load_weights(self, weights):
        own = dict(self.model.named_parameters())
        given = dict(weights)
        assert set(given) == set(own)
        with torch.no_grad():
            for name, weight in given.items():
                own[name].copy_(weight)

    def apply_model(self, func):
        return [func(self.model)]

    def reset_prefix_cache(self):
        self.resets += 1
        return True

    def generate(self, prompts, sampling_params=None, use_tqdm=True):
        return [
            self._answer(str(number), prompt["prompt_token_ids"], params)
            for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    def _answer(self, name, ids, params):
        self.asked.append(params)
        ends = params.stop_token_ids or []
        completions = sample(
            self.model,
            torch.tensor([ids]),
            of=torch.zeros(params.n).long(),
            max_new_tokens=params.max_tokens,
            ends=ends,
            temperature=params.temperature,
            generator=torch.Generator().manual_seed(params.seed),
        )
        outputs = []
        for index, own in enumerate(completions):
            stopped = own[-1] in ends
            reason = ("stop", own[-1]) if stopped else ("length", None)
            outputs.append(CompletionOutput(index, "", own, None, None, *reason))
        return RequestOutput(name, list(ids), outputs[::-1])  # in any order


def install(monkeypatch):
    """Make `import vllm` find this."""
    module = types.ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module
