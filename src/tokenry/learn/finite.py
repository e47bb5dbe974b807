"""Training that stops at the first number that is not finite.

transformers' Trainer logs a NaN loss as the mean of the losses so far and goes on; every weight is
NaN one step later. Here each loss, gradient norm, metric and saved weight is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokenry.core.errors import NonFiniteError
from tokenry.learn.checkpoints import WholeCheckpoints, last_checkpoint


class FiniteTrainer(WholeCheckpoints):
    """A Trainer that raises NonFiniteError instead of making a step with a NaN."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # float16's scaler skips such steps by itself
            self._check_finite({"the gradient's norm": norm})
        return norm

    def _check_finite(self, values: Mapping[str, Any], evaluating: bool = False) -> None:
        """Raise NonFiniteError for the first number that is none; one look at the device for all.

        The weights of step s gave it, so the last good checkpoint is of an earlier step.
        """
        tensors = {name: torch.as_tensor(value) for name, value in values.items()}
        device = self.args.device
        good = torch.stack([value.isfinite().all().to(device) for value in tensors.values()])
        if bool(good.all()):
            return
        name = list(tensors)[good.tolist().index(False)]
        value = tensors[name].detach().flatten()
        step = self.state.global_step
        raise NonFiniteError(
            name,
            float(value[~value.isfinite()][0]),
            step if evaluating else step + 1,
            evaluating=evaluating,
            checkpoint=last_checkpoint(Path(str(self.args.output_dir)), before=step),
        )

    def _check_weights(self, modules: Any = None) -> None:
        """The same for weights that are trained: the model's and an objective's own."""
        owners = {"": self.model, "objective's own ": modules}
        weights = {
            f"the {whose}weight {name}": weight
            for whose, owner in owners.items()
            if owner is not None
            for name, weight in owner.named_parameters()
            if weight.requires_grad and weight.numel()
        }
        if weights:
            self._check_finite(weights, evaluating=True)
