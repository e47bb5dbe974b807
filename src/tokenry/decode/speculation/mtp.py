"""MTP: multi-token prediction from masks, verified by the unchanged model in the same pass.

Each pass reads the last token and a chain of drafts, and behind them k masks whose states give the
next drafts (`tokenry.model.heads.mtp`): y_1 is the token that the model chose, and

    y_{j+1} ~ softmax(U h_j),     h_j = MLP([z_j ; E(y_j)])         z_j: the state of mask j

    linear     k masks behind the last draft: they serve if all drafts are accepted; otherwise a
               pass without drafts follows. At most 1 + 2k tokens a pass.
    quadratic  k masks behind every token of the chain: whatever length is accepted, the next
               drafts are there. At most (k + 1)^2 tokens a pass.

The masks are nodes of the pass's tree, below the token that they follow; nobody else sees them, and
their columns leave the cache with the rejected drafts.

Source: Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential (arXiv
2507.11851). The layout of the quadratic pass is reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted
from tokenry.model import compat
from tokenry.model.decoding import DecodingState
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.model.output import last_hidden

STREAM = 0x2545F491  # keeps the drafts' draws apart from a verification with the same seed


@drafter("mtp", paper=102)
@dataclass(frozen=True)
class MTP:
    """Drafts by the model itself, from masks; needs a trained predictor (`train_mtp`).

    Args:
        predictor: the trained masks, adapter and sampler; None makes an untrained one, whose drafts
            are as good as none.
        k: masks used, at most the predictor's; None takes all (an untrained one has 8, as in the
            paper).
        mode: see the module's text.
        temperature: 0 drafts the likeliest tokens; above 0 draws them, and the tree carries the
            distributions that they were drawn from, which pays when the text is sampled too.
        seed: of these draws.

    Attributes:
        reads_prompt: always False.
    """

    predictor: MaskPredictor | None = field(default=None, compare=False)
    k: int | None = None
    mode: Literal["linear", "quadratic"] = "quadratic"
    temperature: float = 0.0
    seed: int = 0
    reads_prompt: bool = field(default=False, init=False)
    generator: torch.Generator = field(init=False, repr=False, compare=False)
    untrained: WeakKeyDictionary[Any, MaskPredictor] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        one_of("MTP.mode", self.mode, ("linear", "quadratic"))
        most = "inf)" if self.predictor is None else f"{self.predictor.k}]"
        within(self, f"[1, {most}", "k", integer=True, optional=True)
        within(self, "[0, inf)", "temperature")
        within(self, "[0, inf)", "seed", integer=True)
        object.__setattr__(self, "generator", draft_generator(self.seed))

    def begin(self, model: Any, prompt: Sequence[int]) -> MaskDraft:
        predictor = self.predictor
        if predictor is None:
            if model not in self.untrained:
                self.untrained[model] = MaskPredictor.of(model, self.k or 8, rank=1)
            predictor = self.untrained[model]
        predictor.check(model)
        return MaskDraft(self, predictor, model)


class MaskDraft:
    """One text: what the masks behind the last accepted token said."""

    def __init__(self, settings: MTP, predictor: MaskPredictor, model: Any):
        self.settings, self.predictor, self.model = settings, predictor, model
        self.k = settings.k or predictor.k
        self.behind: dict[int, Tensor] = {}  # node of the tree in hand -> its masks' states [k, d]
        self.states: Tensor | None = None  # [k, d], those of the last accepted token

    @torch.inference_mode()
    def draft(self, last_token: int, budget: int) -> TokenTree:
        """A chain: the masks' tokens, each told the one before it."""
        tokens, proposals = [last_token], []
        for state in () if self.states is None else self.states[:budget]:
            logits = self.predictor.logits(self.model, state[None], torch.tensor(tokens[-1:]))[0]
            if self.settings.temperature:
                probs = (logits / self.settings.temperature).softmax(-1).cpu()
                tokens.append(int(torch.multinomial(probs, 1, generator=self.settings.generator)))
                proposals.append(probs)
            else:
                tokens.append(int(logits.argmax()))
        parents = tuple(range(-1, len(tokens) - 1))
        if not proposals:
            return TokenTree(tuple(tokens), parents)
        rows = torch.stack([torch.zeros_like(proposals[0]), *proposals])
        return TokenTree(tuple(tokens), parents, proposals=rows)

    @torch.inference_mode()
    def read(self, state: DecodingState, tree: TokenTree) -> Tensor:
        """The pass over the tree and the masks behind it; logits of the tree's nodes, [M, V]."""
        device = state.attention.device
        M = len(tree)
        bearers = range(M) if self.settings.mode == "quadratic" else range(M - 1, M)
        k = min(self.k, self._positions_left(state, tree))
        tokens, parents, which = list(tree.tokens), list(tree.parents), [0] * M
        for node in bearers:
            for j in range(1, k + 1):
                parents.append(node if j == 1 else len(parents) - 1)
                tokens.append(0)
                which.append(j)
        ids, masks = torch.tensor([tokens], device=device), torch.tensor([which], device=device)
        gate = self.predictor.lora.gate(self.model, masks > 0)
        with gate, last_hidden(self.model) as caught:
            logits = state.tree(
                ids[0],
                torch.tensor(parents, device=device),
                inputs_embeds=self.predictor.embed(self.model, ids, masks),
            )
        hidden = caught[-1][0, M:].unflatten(0, (len(bearers), k))
        self.behind = dict(zip(bearers, hidden, strict=True)) if k else {}
        return logits[:M]

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        self.states = self.behind.get(accepted.path[-1])
        self.behind = {}

    def _positions_left(self, state: DecodingState, tree: TokenTree) -> int:
        """Masks that fit behind the deepest node: learned position tables end."""
        window = compat.window(self.model)
        if window is None:
            return self.k
        used = int(state.attention.sum()) + max(tree.depths) + 1
        return max(0, window - used)


def draft_generator(seed: int) -> torch.Generator:
    """For drafts that are drawn. It must run on from text to text: a text has the model's
    distribution over all the drafts that might have been drawn for it, not given one of them."""
    return torch.Generator().manual_seed(STREAM + seed)
