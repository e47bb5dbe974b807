"""MEET: soft prompts that mean "good" and "bad", learned before the model and then with it.

    stage 1   min over phi         of  - mean log pi_{theta, phi_c}(y_t | s_t)      theta frozen
    stage 2   min over theta, phi  of the same, from where stage 1 ended

(x, y, c) are prompts x with completions y of class c (chosen: good, rejected: bad), pi_theta the
language model, phi_c the control of class c: n embeddings [n, D] before the prompt. Trained in one
stage the large model absorbs the signal and the controls stay uninformative; after stage 1 they
carry it. At inference the control "good" is switched on (`decode.controls`), or a mixture of both.

Source: Parameter-Efficient Tuning Helps Language Model Alignment (arXiv 2310.00819). Reconstructed:
sizes, initialisation from embeddings of tokens, learning rates (1e-3 to 1e-2 in stage 1, about 1e-5
in stage 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import full_precision, masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import PAIR, Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import blocks, check_blocks


class ControlPrompts(nn.Module):
    """One soft prompt for each class: `weight` [classes, n, D]."""

    def __init__(self, start: Tensor):
        super().__init__()
        if start.ndim != 3:
            raise ShapeError(f"controls are [classes, n, D], got {list(start.shape)}")
        self.weight = nn.Parameter(start.detach().clone())

    @classmethod
    def of(
        cls,
        model: Any,
        classes: int,
        length: int,
        start_ids: Sequence[Sequence[int]] = (),
        seed: int = 0,
    ) -> ControlPrompts:
        """From embeddings of the model: of the tokens of each class's text in `start_ids`, repeated
        or cut to `length`, or of random tokens."""
        table = model.get_input_embeddings()
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(table.num_embeddings, (classes, length), generator=generator)
        if start_ids:
            if len(start_ids) != classes or not all(start_ids):
                raise InputError(
                    f"{classes} classes need as many non-empty texts, got "
                    f"{[len(text) for text in start_ids]} tokens"
                )
            ids = torch.tensor([[text[n % len(text)] for n in range(length)] for text in start_ids])
        with torch.no_grad():
            return cls(table(ids.to(table.weight.device)))  # not table.weight: it may scale

    def forward(self, classes: Tensor) -> Tensor:
        """[B] class numbers -> [B, n, D]."""
        return self.weight[classes]

    def mixture(self, shares: Sequence[float]) -> Tensor:
        """sum_c share_c E_c, [n, D]: (mu, 1 - mu) leads from bad to good; may go beyond both."""
        if len(shares) != len(self.weight):
            raise InputError(f"{len(self.weight)} classes need as many shares, got {len(shares)}")
        return torch.einsum("c,cnd->nd", self.weight.new_tensor(shares), self.weight)


@objective("meet", paper=133)
@dataclass(frozen=True)
class MEET(Objective):
    """Conditional likelihood with control prompts; run stage 1, then stage 2 from its controls.

    stage: whole, in [1, 2]: 1 trains the controls alone, 2 trains model and controls.
    length: n, soft-prompt tokens of each class, whole, in [0, inf); 10 to 100 in the paper, at
        least 1 in stage 1.
    start_ids: token ids of one text for each class ("A good answer is:", ...) whose embeddings the
        controls start from; by default those of random tokens.
    controls: a folder (or file) of a former run, whose controls are taken over: stage 2 needs it.
    seed: of random controls, whole, in [0, 9e18].
    completions: the columns whose completions are trained on; each is one class.
    """

    stage: int = 1
    length: int = 10
    start_ids: tuple[tuple[int, ...], ...] = ()
    controls: str | None = None
    seed: int = 0
    completions: tuple[str, ...] = PAIR

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)
    unit: ClassVar[Unit] = "token"

    def __post_init__(self) -> None:
        within(self, "[1, 2]", "stage", integer=True)
        within(self, "[0, inf)", "length", integer=True)
        within(self, "[0, 9e18]", "seed", integer=True)
        if self.stage == 1 and not self.length:
            raise InputError(
                "length=0: stage 1 trains the soft prompts alone, and there would be none; give "
                "length >= 1 (stage 2 without soft prompts is plain likelihood training)"
            )
        if len(self.completions) < 1:
            raise InputError("completions is empty: name the completions that are trained on")

    @property
    def trains_policy(self) -> bool:
        return self.stage == 2

    def modules(self, model: Any) -> ControlPrompts:
        made = ControlPrompts.of(
            model, len(self.completions), self.length, self.start_ids, self.seed
        )
        return made if self.controls is None else load_controls(made, self.controls)

    def prefix(self, batch: TokenBatch, modules: ControlPrompts) -> Tensor:
        """Each row's control: its block of the batch is its class.

        Raises ShapeError for rows in another order, which would get another class's control.
        """
        check_blocks(batch, len(self.completions))
        rows = torch.arange(len(batch.ids), device=modules.weight.device)
        classes = torch.empty_like(rows)
        for number, block in enumerate(blocks(rows, len(self.completions))):
            classes[block] = number
        return modules(classes)

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None = None, **_: object
    ) -> Loss:
        surprise = -full_precision(policy.need("logprob"))
        metrics, counts = {"loss": surprise[batch.target].detach()}, {}
        for side, values, target in zip(
            self.completions,
            blocks(surprise, len(self.completions)),
            blocks(batch.target, len(self.completions)),
            strict=True,
        ):
            metrics[f"nll/{side}"] = masked_mean(values.detach(), target)
            counts[f"nll/{side}"] = target.sum()
        return Loss(masked_mean(surprise, batch.target), metrics, counts)


def load_controls(controls: ControlPrompts, source: str | Path) -> ControlPrompts:
    """The controls with the values of a saved run (a folder, or the file of its modules)."""
    from safetensors.torch import load_file

    from tokenry.learn.trainer import MODULES_FILE

    path = Path(source)
    path = path / MODULES_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no controls at {path}: give the output folder of a stage 1 run")
    weight = load_file(path).get("weight")
    if weight is None or weight.shape != controls.weight.shape:
        raise ShapeError(
            f"{path} holds controls {None if weight is None else list(weight.shape)}, this run has "
            f"{list(controls.weight.shape)} (classes, tokens, width)"
        )
    with torch.no_grad():
        controls.weight.copy_(weight)
    return controls
