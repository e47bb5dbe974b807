"""The language models that experiments run on, and what stands in for them in a smoke test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokenry.lab.scale import Scale
from tokenry.lab.toy_model import toy_model
from tokenry.model.hub import Loaded, load, locate


def language_model(scale: Scale, name: str = "smollm2") -> Loaded:
    """The named model and its tokenizer; at smoke scale two random layers with that tokenizer."""
    return _stand_in(name) if scale == "smoke" else load(name)


@lru_cache(maxsize=2)
def _stand_in(name: str) -> Loaded:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(locate(name))
    model = toy_model(len(tokenizer), 2048, seed=0, width=32, tied=True)
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Loaded(model.eval(), tokenizer)


@torch.no_grad()
def next_token_logprob(loaded: Loaded, texts: Sequence[str]) -> Tensor:
    """log p of every token behind each text, [texts, V], float64."""
    rows = [torch.tensor([loaded.tokenizer(text)["input_ids"]]) for text in texts]
    logits = [loaded.model(ids, logits_to_keep=1).logits[0, -1] for ids in rows]
    return torch.stack(logits).double().log_softmax(-1)


def chat_prompt(tokenizer: Any, message: str) -> list[int]:
    """The ids of a chat in which the user says this and the model is to answer."""
    messages = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
