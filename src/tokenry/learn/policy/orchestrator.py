"""The preference orchestrator: which reward a prompt is about, learnt from preferred responses.

    r~_ik = (r_k(x_i, y_i) - mean_k) / std_k              z-scores over the data set
    w*_i  = softmax( r~_i / tau )                         target weights of the K rewards
    w(x)  = softmax( mlp(state of x) ),     loss = mean_i KL( w*_i || w(x_i) )

y_i is the preferred response to prompt x_i, r_k the K rewards. A response was preferred for what it
is good at, so its profile of scores says which rewards mattered for its prompt. The network reads
the prompt alone: the frozen language model's state after the prompt's last token.

Known limit: a score's size is read as its importance. A reward on which the preferred response
happens to be poor gets little weight for such prompts, even if it mattered.

Source: Preference Orchestrator: Prompt-Aware Multi-Objective Alignment (arXiv 2511.10656), eq. 7.
Reconstructed: z-scores as the normalisation, tau = 1, and a causal model's own state in place of a
separate encoder. `entropy_bonus` is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.files import replacing
from tokenry.core.scores import Scores
from tokenry.learn.fit import fit


class RewardStats(NamedTuple):
    """Mean and standard deviation of each reward over a data set, [K] each."""

    mean: Tensor
    std: Tensor

    def normalise(self, rewards: Tensor) -> Tensor:
        """z-scores of [..., K]; a reward that never varied has z-score 0."""
        varies = self.std > 0
        return torch.where(varies, (rewards - self.mean) / self.std.where(varies, 1.0), 0.0)


class PreferenceOrchestrator(nn.Module):
    """Prompt states [B, D] -> weights [B, K] on the simplex, every one positive.

    Also keeps the reward statistics (`stats`) and those of the states that it was fitted with.
    """

    state_mean: Tensor
    state_std: Tensor
    reward_mean: Tensor
    reward_std: Tensor

    def __init__(self, width: int, objectives: int, hidden: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, objectives)
        )
        self.register_buffer("state_mean", torch.zeros(width))
        self.register_buffer("state_std", torch.ones(width))
        self.register_buffer("reward_mean", torch.zeros(objectives))
        self.register_buffer("reward_std", torch.ones(objectives))

    def forward(self, states: Tensor) -> Tensor:
        return self.logits(states).softmax(-1)

    def logits(self, states: Tensor) -> Tensor:
        return self.layers((states.float() - self.state_mean) / self.state_std)

    @property
    def stats(self) -> RewardStats:
        return RewardStats(self.reward_mean, self.reward_std)

    def save(self, path: str | Path) -> None:
        """Write the network and its statistics as safetensors."""
        with replacing(Path(path)) as temporary:
            save_file(dict(self.state_dict()), temporary)

    @classmethod
    def load(cls, path: str | Path) -> PreferenceOrchestrator:
        """A frozen orchestrator that `save` wrote."""
        if not Path(path).is_file():
            raise InputError(f"no orchestrator at {path}: fit one and .save() it there")
        state = load_file(path)
        if "layers.0.weight" not in state or "layers.2.weight" not in state:
            raise InputError(f"{path} does not hold a preference orchestrator")
        hidden, width = state["layers.0.weight"].shape
        made = cls(width, len(state["layers.2.weight"]), hidden)
        made.load_state_dict(state)
        return made.requires_grad_(False)


def reward_profile_targets(
    scores: Tensor, tau: float = 1.0, stats: RewardStats | None = None
) -> tuple[Tensor, RewardStats]:
    """Target weights [N, K] of the preferred responses' scores [N, K], and the statistics.

    tau: temperature, in (0, inf); towards 0 only the best score counts, for large tau all count
        equally.
    stats: of another data set; None takes those of these scores.
    """
    if scores.ndim != 2:
        raise ShapeError(f"scores must be [N, K], one per reward; got {[*scores.shape]}")
    in_range("tau", tau, "(0, inf)")
    scores = full_precision(scores)
    if stats is None:
        stats = RewardStats(scores.mean(0), scores.std(0, correction=0))
    return (stats.normalise(scores) / tau).softmax(-1), stats


def orchestrator_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean KL(targets || softmax(logits)) over the rows of [N, K]; 0 when they agree."""
    logprob, targets = full_precision(logits).log_softmax(-1), full_precision(targets)
    return (torch.special.xlogy(targets, targets) - targets * logprob).sum(-1).mean()


def fit_orchestrator(
    states: Tensor,
    scores: Tensor,
    *,
    tau: float = 1.0,
    hidden: int = 64,
    steps: int = 200,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    entropy_bonus: float = 0.0,
    seed: int = 0,
) -> PreferenceOrchestrator:
    """A frozen orchestrator fitted to prompt states [N, D] and preferred responses' scores [N, K].

    entropy_bonus: weight of a reward for spread-out weights; 0 is the paper's loss.
    """
    if len(states) != len(scores):
        raise ShapeError(f"{len(states)} prompts but scores of {len(scores)} responses")
    targets, stats = reward_profile_targets(scores.float(), tau)
    states = states.detach().float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch initialises layers from the global generator
        made = PreferenceOrchestrator(states.shape[1], scores.shape[1], hidden)
    made.state_mean.copy_(states.mean(0))
    made.state_std.copy_(states.std(0, correction=0).clamp_min(1e-3))
    made.reward_mean.copy_(stats.mean)
    made.reward_std.copy_(stats.std)
    made.to(states.device)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(states), (batch_size,), generator=generator).to(states.device)
        logits = made.logits(states[rows])
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1).mean()
        return orchestrator_loss(logits, targets[rows]) - entropy_bonus * entropy

    fit(
        loss,
        made,
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=1e-2,
        clip=None,
        seed=seed,
    )
    return made.requires_grad_(False)


def prompt_states(batch: TokenBatch, scores: Scores) -> Tensor:
    """The state after each row's prompt, [B, D]: the one that predicts its first target token.

    In a causal model it knows the prompt and nothing of the response.
    """
    empty = ~batch.target.any(-1)
    if empty.any():
        raise InputError(f"row {int(empty.nonzero()[0])} has no response, so no end of its prompt")
    first = batch.target.int().argmax(-1)
    rows = torch.arange(len(first), device=first.device)
    return scores.need("hidden")[rows, first]


def weights_prefix(weights: Tensor | Sequence[float], names: Sequence[str]) -> str:
    """Weights as text in front of a prompt, for policies that are conditioned on them in words."""
    if len(weights) != len(names):
        raise ShapeError(f"{len(weights)} weights for the {len(names)} names {', '.join(names)}")
    pairs = zip(names, weights, strict=True)
    return "".join(f"<{name}: {float(weight):.2f}>" for name, weight in pairs) + " "
