"""The recurrent form of STILL: what one layer keeps of a text while it goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenry.core.errors import ModelError
from tokenry.model.attention.columns import compress
from tokenry.model.attention.hybrid import LINEAR_FLOOR, far_keys, route, saliency
from tokenry.model.attention.observed_layer import ObservedLayer
from tokenry.model.memory.still_attention import StillAttention


class StillLayer(ObservedLayer):
    """Two chunks of keys and values in a ring, the salient ones, and the state of all others.

    Token t is in slot t mod 2l. When token t = cl arrives, chunk c - 2 leaves: its best tokens
    join the salient ones, the rest the state.
    """

    keys: Any
    values: Any
    # length [B]: tokens read; token [B, 2l]: the one in each slot, -1: none; score [B, H, 2l];
    # keys, values [B, H, 2l, D]; salient_keys, salient_values [B, H, S, D], of which a row holds
    # its first `kept` [B]; state [B, H, 2D, D]; mass [B, H, 2D]
    rows = ("length", "token", "score", "keys", "values")
    rows += ("salient_keys", "salient_values", "kept", "state", "mass")

    def __init__(self, still: StillAttention):
        super().__init__()
        self.still = still
        self._forget()

    @property
    def started(self) -> bool:
        return self.length is not None

    def store(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """The new tokens' alone: the former ones are read in another form."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        return key_states, value_states

    def attend(self, *_: Any, **__: Any) -> Tensor:
        raise ModelError(
            f"layer {self.still.attention.layer_idx}: this cache is for a model with hybrid "
            "attention; its attention function was changed after Still().convert(model)"
        )

    def read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor,
        real: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """y [B, H, q, D] of the next tokens; the first call may have padding, on either side."""
        if not self.started:
            output, scores, order = self.still.read_text(query, key, value, gate, real, scaling)
            if order is not None:
                key, value = compress(key, order), compress(value, order)
            length = torch.full(key.shape[:1], key.shape[2], device=key.device)
            self._fill(key, value, scores, length if real is None else real.sum(-1))
            return output
        if real is not None:
            raise ModelError("a text that was begun cannot be continued by padding")
        steps = [
            self._step(query[:, :, t], key[:, :, t], value[:, :, t], gate[:, :, t], scaling)
            for t in range(query.shape[2])
        ]
        return torch.stack(steps, dim=2)

    @torch.no_grad()
    def _fill(self, key: Tensor, value: Tensor, scores: Tensor, length: Tensor) -> None:
        chunk, topk = self.still.chunk, self.still.topk
        B, H, L, D = key.shape
        routed = ((length - 1) // chunk - 1).clamp_min(0)  # chunks that left the window
        slots = torch.arange(2 * chunk, device=key.device)
        token = length[:, None] - 1 - (length[:, None] - 1 - slots) % (2 * chunk)
        recent = token >= routed[:, None] * chunk
        self.length, self.token = length, token.masked_fill(~recent, -1)
        at = token.clamp_min(0)[:, None].expand(B, H, -1)
        self.keys, self.values = compress(key, at), compress(value, at)
        self.score = scores.gather(2, at)

        most = int(routed.max())
        self.kept = routed * topk
        if most:
            salient = route(scores, chunk, topk)
            left = torch.arange(L, device=key.device) < routed[:, None] * chunk
            index, _ = far_keys(salient, chunk, most)
            index = (index + torch.arange(most, device=key.device)[:, None] * chunk).flatten(2)
            features = self.still.key_map(key) * (left[:, None] & ~salient).unsqueeze(-1)
            self.salient_keys, self.salient_values = compress(key, index), compress(value, index)
            self.state = features.transpose(-1, -2) @ value.float()
            self.mass = features.sum(2)
        else:
            self.salient_keys, self.salient_values = key[:, :, :0], value[:, :, :0]
            self.state = torch.zeros(B, H, 2 * D, D, device=key.device)
            self.mass = torch.zeros(B, H, 2 * D, device=key.device)

    def _step(
        self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, scaling: float
    ) -> Tensor:
        """One token for every row, all [B, H, D]."""
        chunk = self.still.chunk
        leaving = (self.length % chunk == 0) & (self.length >= 2 * chunk)
        if bool(leaving.any()):
            self._leave(leaving)
        row = torch.arange(len(key), device=key.device)
        slot = self.length % (2 * chunk)
        self.token = self.token.index_put((row, slot), self.length)
        # copies: a copied layer shares these tensors
        self.keys, self.values, self.score = (
            states.clone() for states in (self.keys, self.values, self.score)
        )
        self.keys[row, :, slot], self.values[row, :, slot] = key, value

        features = self.still.query_map(query.unsqueeze(2)).squeeze(2)  # [B, H, 2D]
        query = query.float() * scaling
        near = torch.einsum("bhd,bhsd->bhs", query, self.keys.float())
        distance = self.length[:, None] - self.token  # of the token in each slot
        here = self.token >= 0
        window = here & (distance < chunk)
        local = near.masked_fill(~window[:, None], -torch.inf)
        score = saliency(local, slot[:, None].expand(-1, key.shape[1]))
        score = score.masked_fill((self.length == 0)[:, None], torch.inf)
        self.score[row, :, slot] = score

        near = near.masked_fill(~here[:, None], -torch.inf)
        far = torch.einsum("bhd,bhsd->bhs", query, self.salient_keys.float())
        known = torch.arange(far.shape[-1], device=far.device) < self.kept[:, None]
        far = far.masked_fill(~known[:, None], -torch.inf)
        weight = torch.cat([near, far], dim=-1)
        weight = (weight - weight.amax(-1, keepdim=True)).exp()
        values = torch.cat([self.values, self.salient_values], dim=2).float()
        numerator = torch.einsum("bhs,bhsd->bhd", weight, values)
        numerator = numerator + gate * torch.einsum("bhf,bhfd->bhd", features, self.state)
        share = (features * self.mass).sum(-1)
        self.length = self.length + 1
        return numerator / (weight.sum(-1) + share + LINEAR_FLOOR).unsqueeze(-1)

    @torch.no_grad()
    def _leave(self, leaving: Tensor) -> None:
        """Route the chunk in the slots that the next token's chunk will take, in these rows."""
        chunk, topk = self.still.chunk, self.still.topk
        B, H, _, D = self.keys.shape
        begin = self.length // chunk % 2 * chunk
        slots = begin[:, None] + torch.arange(chunk, device=begin.device)  # [B, l]
        at = slots[:, None].expand(B, H, chunk)
        key, value = compress(self.keys, at), compress(self.values, at)
        best = self.score.gather(2, at).topk(topk, dim=-1).indices  # [B, H, topk]
        salient = torch.zeros(B, H, chunk, dtype=torch.bool, device=key.device)
        salient = salient.scatter_(2, best, True)
        folded = leaving[:, None, None] & ~salient
        features = self.still.key_map(key) * folded.unsqueeze(-1)
        self.state = self.state + features.transpose(-1, -2) @ value.float()
        self.mass = self.mass + features.sum(2)
        emptied = self.token.scatter(1, slots, -1)
        self.token = torch.where(leaving[:, None], emptied, self.token)

        # rows that route nothing write their candidates beyond what they hold, unseen
        end = self.kept[:, None] + torch.arange(topk, device=begin.device)
        size = max(self.salient_keys.shape[2], int(self.kept.max()) + topk)
        to = end[:, None, :, None].expand(B, H, topk, D)
        extended = []
        for old, new in ((self.salient_keys, key), (self.salient_values, value)):
            wide = pad(old, (0, 0, 0, size - old.shape[2]))
            extended.append(wide.scatter(2, to, compress(new, best)))
        self.salient_keys, self.salient_values = extended
        self.kept = self.kept + topk * leaving

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0  # layers that were not converted share the mask

    def _forget(self) -> None:
        for name in self.rows:
            setattr(self, name, None)

    def reset(self) -> None:
        super().reset()
        self._forget()
