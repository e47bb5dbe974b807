"""FiberPO: a token is bounded by how far it leaves its completion, not by a drift that all share.

With x_t the T log-ratios of a completion and l_t = 1 where x_t >= 0, else -1:

    S+ = mean max(x, 0),   S- = mean max(-x, 0)
    g(s, C, T) = s                    where |s| <= C                    passes
                 sign(s)(T+1) C - T s where C < |s| < (1 + 1/T) C       falls back, slope -T
                 0                    beyond
    log w   = g(S+, C+, T) - g(S-, C-, T)
    log r_t = clip(x_t - l_t S_same, eps) - clip(-l_t S_opposite, eps)
    u_t     = exp( log w + log r_t ),        maximise mean over completions of mean_t u_t A

S_same is the aggregate of l_t's sign, clip(., eps) is to [-eps, eps]. Inside all budgets u_t is the
token's ratio; there is no minimum and no KL. Gradients also flow through S.

In the hierarchy a group, and a domain (the column "domain") around groups, have an aggregate of
their tokens and a budget of their own: from the coarsest level down each one's log w is added and
its mean x taken off, and what is left is gated by the finer ones.

Source: Fibration Policy Optimization (arXiv 2603.08239), as JoyAI-LLM Flash (arXiv 2604.03044)
states it. Reconstructed: the default budgets (to be fitted to the drift at hand) and how the levels
of the hierarchy compose; the papers give no numbers for either.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenry.core.checks import within
from tokenry.learn.objective import Example, objective
from tokenry.learn.policy.fiber_gate import Budgets, fiber_gate, sign_aggregates
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import Clip


@dataclass(frozen=True)
class FiberGate:
    """The axis: `fiber_gate`, with the budgets of the group and of the domain where given."""

    budgets: Budgets
    eps: float
    group: Budgets | None = None
    domain: Budgets | None = None

    @property
    def separable(self) -> bool:
        return self.group is None and self.domain is None

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.domain is None else ("row.domain",)

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        above = []
        if self.domain is not None:
            above.append((rollouts.batch.column("domain"), self.domain))
        if self.group is not None:
            above.append((rollouts.group, self.group))
        mask = rollouts.mask
        positive, negative, length = sign_aggregates(log_ratio.detach(), mask)
        for name, value, budget in (
            ("rise", positive, self.budgets[0]),
            ("fall", negative, self.budgets[1]),
        ):
            over, zero = value > budget, value >= (1 + 1 / length) * budget
            for regime, rows in (("back", over & ~zero), ("zero", zero)):
                rollouts.report(
                    f"{name}/{regime}", rows.to(value.dtype)[:, None].expand(mask.shape)
                )
        return fiber_gate(log_ratio, mask, self.budgets, self.eps, above)


def _examples() -> list[Example]:
    return [Example(FiberPO()), Example(FiberPO(group_budget=0.3))]


@objective("fiberpo", paper=128, examples=_examples)
@dataclass(frozen=True)
class FiberPO(Preset):
    """Fibration Policy Optimization: budgets in nats of mean log-ratio, > 0.

    Args:
        rise: C+ and C- of a completion, in (0, inf); C- is the smaller one.
        fall: see `rise`, in (0, inf).
        eps: of a token against its completion, in (0, inf), far smaller than C+ + C-.
        group_budget: C+ + C- of these levels, parted like the completion's, in
            (0, inf); None: no such level. With one, a batch is not the mean of its parts.
        domain_budget: see `group_budget`, in (0, inf).
    """

    rise: float = 0.12
    fall: float = 0.08
    eps: float = 0.05
    group_budget: float | None = None
    domain_budget: float | None = None

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "rise", "fall", "eps")
        within(self, "(0, inf)", "group_budget", "domain_budget", optional=True)

    def composed(self) -> PolicyGradient:
        share = self.rise / (self.rise + self.fall)
        group, domain = (
            None if total is None else (share * total, (1 - share) * total)
            for total in (self.group_budget, self.domain_budget)
        )
        return PolicyGradient(
            GroupAdvantage(),
            clip=Clip(None, None),
            gate=FiberGate((self.rise, self.fall), self.eps, group, domain),
            aggregation="sequence-mean",
        )
