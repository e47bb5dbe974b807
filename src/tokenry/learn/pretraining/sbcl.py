"""SBCL: head classes cut into clusters of the tail's size, contrasted on clusters and on classes.

    L_i = contrast_tau1(P_c(i), A(i)) + gamma contrast_tau2(y_i)(Q(i), R(i))

`contrast` is the mean over the first set of - log softmax over the second, at a temperature
(`contrastive`); clusters and tau2 are those of `subclasses`. A are all other views, P_c those of
the anchor's subclass.

    "rank"  Q  the views of its class outside its subclass, and the other views of its sample
            R  all views outside its subclass, and the other views of its sample
    "ccl"   Q  all other views of its class;  R = A;  tau1 in place of tau2

The first `warmup` epochs contrast on classes alone; then classes are split anew every `every`.

Source: Subclass-balancing Contrastive Learning for Long-tailed Recognition (arXiv 2306.15925). The
released code's factor tau1 / 0.07 of the first term is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.learn.pretraining.contrastive import contrast, of_views, sup_con_loss, view_cosines
from tokenry.learn.pretraining.subclasses import Subclasses, split_classes

Variant = Literal["rank", "ccl"]


@dataclass(frozen=True)
class SBCL:
    """Subclass-balancing contrastive learning of an encoder.

    Args:
        tau1: temperature, in (0, inf); default 0.1.
        gamma: weight of the second term, in [0, inf); default 0.25.
        delta: smallest size of a subclass, >= 1; default 10.
        warmup: epochs on classes alone, >= 0; default 10.
        every: epochs from one clustering to the next, >= 1; default 10.
        variant: of the second term: "rank" (default) or "ccl".

    Raises:
        InputError: a setting out of range.
    """

    tau1: float = 0.1
    gamma: float = 0.25
    delta: int = 10
    warmup: int = 10
    every: int = 10
    variant: Variant = "rank"

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "tau1")
        within(self, "[0, inf)", "gamma")
        within(self, "[0, inf)", "warmup", integer=True)
        within(self, "[1, inf)", "delta", "every", integer=True)
        one_of("SBCL.variant", self.variant, get_args(Variant))

    def splits_before(self, epoch: int) -> bool:
        """Whether classes are split anew before this epoch, counted from 0."""
        return epoch >= self.warmup and (epoch - self.warmup) % self.every == 0

    def split(
        self, features: Tensor, classes: Tensor, generator: torch.Generator | None = None
    ) -> Subclasses:
        """The subclasses of all samples, features [N, D] and classes [N]; see `split_classes`."""
        return split_classes(features, classes, self.delta, self.tau1, generator)

    def __call__(
        self, features: Tensor, classes: Tensor, subclasses: Subclasses | None = None
    ) -> Tensor:
        """The loss of a batch, features [B, V, D] and classes [B]; `subclasses` with the ids of its
        samples, [B]. None in the warm-up: classes alone."""
        if subclasses is None:
            return sup_con_loss(features, classes, self.tau1)
        ids, tau2 = subclasses
        return sbcl_loss(features, classes, ids, tau2, self.tau1, self.gamma, self.variant)


def sbcl_loss(
    features: Tensor,
    classes: Tensor,
    subclasses: Tensor,
    tau2: Tensor,
    tau1: float = 0.1,
    gamma: float = 0.25,
    variant: Variant = "rank",
) -> Tensor:
    """The mean of L over all views.

    Args:
        features: [B, V, D], V >= 2 views of each sample; they are brought to length 1.
        classes: [B]; no subclass has samples of two classes.
        subclasses: see `classes`.
        tau2: [C], the temperature of each class.
        tau1: see `SBCL`.
        gamma: see `tau1`.
        variant: see `tau1`.

    Raises:
        ShapeError: other shapes.
    """
    cosines, twins = view_cosines(features)
    label, part = of_views(classes, features), of_views(subclasses, features)
    others = ~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    same, close = label[:, None] == label, part[:, None] == part
    first = contrast(cosines / tau1, close & others, others)
    if variant == "ccl":
        second = contrast(cosines / tau1, same & others, others)
    else:
        logits = cosines / tau2.to(cosines)[label][:, None]
        second = contrast(logits, same & ~close | twins, ~close | twins)
    return (first + gamma * second).mean()
