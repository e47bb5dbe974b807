"""Plain sampling by vLLM: the policy's own distribution, drawn by a faster engine.

y_t ~ softmax( logits(. | x, y_<t) / temperature )     until an end token, or max_new_tokens

The engine holds a copy of the policy, which gets the policy's weights before every draw (with an
adapter their sums, `model.plain_weights`). It filters nothing (no top-k, top-p, min-p, penalties),
ends at the trainer's end tokens alone, and gives back the ids that it sampled, never their text.
Old log-probabilities are the trainer's, as for every source, at the same temperature. Seeds come
from torch's generator.

Reconstructed from vLLM's documentation (`LLM.generate`, `LLM.apply_model`, `SamplingParams`,
`RequestOutput`) and tested against a stand-in with these types: no real engine was tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ModelError
from tokenry.core.extras import require_extra
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, rollout_source
from tokenry.model.compat import unwrap
from tokenry.model.plain_weights import plain_weights


@rollout_source("vllm")
@dataclass
class VLLM:
    """Completions from a vLLM engine in this process.

    Args:
        engine: a `vllm.LLM` of the policy's architecture; None: one is made at the first draw.
        options: of the engine that is made, as `vllm.LLM` takes them (gpu_memory_utilization, ...).
    """

    engine: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        require_extra('the rollout source "vllm"', "vllm")
        import vllm  # type: ignore[import-not-found]

        if self.engine is None:
            self.engine = _engine(unwrap(policy).config, self.options)
        self.engine.apply_model(partial(_load, weights=list(plain_weights(policy))))
        self.engine.reset_prefix_cache()  # what was computed with other weights
        texts = prompts.texts()
        seeds = torch.randint(2**31 - 1, (len(texts),)).tolist()
        parameters = [
            vllm.SamplingParams(
                n=settings.samples,
                temperature=settings.temperature,
                top_p=1.0,
                min_p=0.0,
                repetition_penalty=1.0,
                max_tokens=settings.max_new_tokens,
                stop_token_ids=list(prompts.ends),
                ignore_eos=True,  # the end tokens are the trainer's
                detokenize=False,
                seed=seed,
            )
            for seed in seeds
        ]
        asked = [{"prompt_token_ids": text} for text in texts]
        answers = self.engine.generate(asked, parameters, use_tqdm=False)
        if len(answers) != len(texts):
            raise ModelError(f"vLLM answered {len(answers)} of {len(texts)} prompts")
        of, completions = [], []
        for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            if list(answer.prompt_token_ids) != text:
                raise ModelError(f"vLLM read prompt {number} otherwise than it was given")
            for output in sorted(answer.outputs, key=lambda output: output.index):
                of.append(number)
                completions.append(sampled_ids(output, prompts.ends, settings.max_new_tokens))
        return prompts.batch(of, completions)


def sampled_ids(output: Any, ends: Sequence[int], longest: int) -> list[int]:
    """The ids of a `CompletionOutput`, the end token included.

    Raises:
        ModelError: it ended for another reason than an end token or its length.
    """
    ids = [int(token) for token in output.token_ids]
    stop = output.stop_reason
    if output.finish_reason == "stop" and isinstance(stop, int) and ids[-1:] != [stop]:
        ids.append(stop)  # of an engine that leaves the end token away
    whole = (output.finish_reason, bool(ids) and ids[-1] in ends) == ("stop", True)
    if not whole and (output.finish_reason != "length" or len(ids) != longest):
        raise ModelError(
            f"vLLM ended a completion of {len(ids)} tokens for the reason "
            f"{output.finish_reason!r}: neither an end token nor max_new_tokens={longest} (is the "
            "engine's max_model_len too small?)"
        )
    return ids


def _engine(config: Any, options: Mapping[str, Any]) -> Any:
    """An engine of the architecture; its weights come with each draw."""
    import vllm  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        given = {"load_format": "dummy", "skip_tokenizer_init": True, **options}
        return vllm.LLM(model=folder, **given)


def _load(model: Any, weights: Sequence[tuple[str, Tensor]]) -> None:
    model.load_weights(iter(weights))
