"""MaskPredictor: what a model needs to predict several tokens ahead from masks behind a text.

Behind a text x_1 .. x_n stand k learned mask embeddings m_1 .. m_k at the positions n+1 .. n+k.
With z the last hidden states, E and U the model's input and output embeddings, and gated LoRA
(`tokenry.model.layers.gated_lora`) active on the masks only,

    softmax(U z_n) predicts x_{n+1}, as ever
    softmax(U h_j) predicts x_{n+1+j},     h_j = MLP([z_{n+j} ; E(x_{n+j})]),      1 <= j <= k

The MLP, two blocks of Linear, SiLU and LayerNorm (2d -> d -> d), is the sampler: told the token
before, predictions of one pass agree with each other. Without it h_j = z_{n+j}.

Source: Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential (arXiv
2507.11851).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tokenry.core.checks import in_range
from tokenry.core.errors import ModelError
from tokenry.core.files import read_tensors, write_tensors
from tokenry.model import compat
from tokenry.model.layers.gated_lora import GatedLoRA
from tokenry.model.output import output_logits

KIND = "multi-token predictor"


class MaskPredictor(nn.Module):
    """What is trained: mask embeddings [k, d], the gated LoRA, and the sampler (or None)."""

    def __init__(self, masks: Tensor, lora: GatedLoRA, sampler: MTPSampler | None):
        super().__init__()
        self.masks = nn.Parameter(masks)
        self.lora, self.sampler = lora, sampler

    @classmethod
    def of(
        cls,
        model: Any,
        k: int = 8,
        rank: int = 16,
        *,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        sampler: bool = True,
        seed: int = 0,
    ) -> MaskPredictor:
        """An untrained predictor of k tokens beyond the next.

        Masks start like tokens of the vocabulary, with their mean and spread.

        Args:
            rank: of the gated LoRA.
            alpha: of the gated LoRA.
            targets: of the gated LoRA.
        """
        in_range("k", k, "[1, inf)", integer=True)
        lora = GatedLoRA.of(model, rank, alpha, targets, seed)
        table = model.get_input_embeddings()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            device = table.weight.device
            rows = table(torch.randint(table.num_embeddings, (512,)).to(device)).float()
            noise = torch.randn(k, rows.shape[1]).to(device)
            masks = rows.mean(0) + noise * rows.std(0)
            mixer = MTPSampler(rows.shape[1]).to(device) if sampler else None
        return cls(masks, lora, mixer)

    @property
    def k(self) -> int:
        return len(self.masks)

    def check(self, model: Any) -> None:
        """ModelError if the predictor was made for states of another width, or if the model cannot
        read masks behind a text."""
        compat.require_trees(model)
        width = model.get_input_embeddings().embedding_dim
        if self.masks.shape[1] != width:
            raise ModelError(
                f"the predictor's masks have {self.masks.shape[1]} dimensions and the model's "
                f"embeddings {width}: it was trained for another model"
            )

    def embed(self, model: Any, ids: Tensor, masks: Tensor) -> Tensor:
        """[B, L, d]: the tokens `ids` [B, L], and mask j where `masks` [B, L] is j > 0."""
        embedded = model.get_input_embeddings()(ids)
        chosen = self.masks.to(embedded.dtype)[(masks - 1).clamp_min(0)]
        return torch.where((masks > 0)[..., None], chosen, embedded)

    def logits(self, model: Any, states: Tensor, previous: Tensor) -> Tensor:
        """[n, V] float32 for masks' states [n, d], told the tokens before the predicted ones."""
        return output_logits(model, self.sample_states(model, states, previous))

    def sample_states(self, model: Any, states: Tensor, previous: Tensor) -> Tensor:
        """h [n, d] of the sampler; the states themselves without one."""
        if self.sampler is None:
            return states
        embedded = model.get_input_embeddings()(previous.to(states.device))
        return self.sampler(states, embedded)

    def save(self, path: str | Path) -> None:
        """Write everything as one safetensors file; nothing is left when that fails."""
        tensors = {"masks": self.masks.data}
        tensors |= {f"lora.{name}": tensor for name, tensor in self.lora.tensors().items()}
        if self.sampler is not None:
            tensors |= {f"sampler.{name}": t for name, t in self.sampler.state_dict().items()}
        write_tensors(path, tensors, {"kind": KIND, "alpha": self.lora.alpha})

    @classmethod
    def load(cls, path: str | Path) -> MaskPredictor:
        """Read what `save` wrote; InputError if the file is anything else."""
        tensors, about = read_tensors(path, KIND)

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(name): t for key, t in tensors.items() if key.startswith(name)}

        lora = GatedLoRA.from_tensors(part("lora."), about["alpha"])
        sampler = None
        if weights := part("sampler."):
            sampler = MTPSampler(tensors["masks"].shape[1])
            sampler.load_state_dict(weights)
        return cls(tensors["masks"], lora, sampler)


class MTPSampler(nn.Module):
    """(mask's state z [n, d], embedding of the token before [n, d]) -> h [n, d]."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(2 * width, width), nn.Linear(width, width)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, states: Tensor, previous: Tensor) -> Tensor:
        both = torch.cat([states, previous.to(states.dtype)], dim=-1)
        h = self.first_norm(silu(self.first(both.to(self.first.weight.dtype))))
        return self.second_norm(silu(self.second(h)))
