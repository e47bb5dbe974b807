"""Delegating: an objective that is another one in everything that it does not say itself."""

from __future__ import annotations

from typing import Any

from tokenry.learn.objective import HOOKS, Loss, Objective

OWN = ("prepare",)  # having it is what makes an objective on-policy: that is the class's to say


class Delegating(Objective):
    """Every hook of the role is that of `delegate`, and so is the loss."""

    @property
    def delegate(self) -> Objective:
        raise NotImplementedError(f"{type(self).__name__} does not say what it stands for")

    def __call__(self, *given: Any, **others: Any) -> Loss:
        return self.delegate(*given, **others)


def _passed_on(name: str) -> property:
    return property(lambda self: getattr(self.delegate, name))


for _hook in sorted(HOOKS - {*OWN}):
    setattr(Delegating, _hook, _passed_on(_hook))
