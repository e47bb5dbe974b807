"""TokenSelect at laptop scale: SmolLM2 recalls a pass key from a long prompt through a small view.

A pass key of five digits stands at some depth of a prompt of filler; the prompt is read with full
attention, and the key's digits are scored, teacher-forced, while each policy lets a query see the
same number of tokens: first and latest ones and a selection (TokenSelect), first and latest ones
alone, H2O's heavy hitters, or random ones, which are kept or lost for good when the prompt ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.prompt_policies import prefilled
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.tokenselect import TokenSelect
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.pass_keys import pass_key, pass_key_prompts

DEPTHS = (0.1, 0.35, 0.6, 0.85)
SINKS, LOCAL, JUDGED = 8, 64, 64
REUSE = {"": 0.9, ", selecting always": 2.0}  # the paper's threshold, and one that none reaches
RIVALS = ("first and latest", "h2o", "random")


def bytes_read(k: int, served: float, tokens: int) -> float:
    """Of keys and values per step, relative to full attention: all keys to select, then the view,
    which a new selection also has to copy (read, and written)."""
    view = SINKS + LOCAL + k
    return (2 * view + (1 - served) * (tokens + 4 * view)) / (2 * tokens)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    keys, tokens, selected = at(scale, full=(2, 700, (32, 64, 128)), smoke=(1, 120, (16, 64)))
    model, tokenizer = language_model(scale)
    generator, table = torch.Generator().manual_seed(seed), Table()
    losses: dict[str, list[Tensor]] = {}  # [depths], one of each key
    rates: dict[str, float] = {}
    for _ in range(keys):
        prompts, answer = pass_key_prompts(tokenizer, pass_key(generator), DEPTHS, tokens)
        with prefilled(model, prompts) as read:
            behind = {"full cache": read.under(answer, H2O(heavy=0, recent=2 * tokens))}
            for k in selected:
                heavy, first = H2O(SINKS + k, LOCAL), H2O(SINKS, LOCAL + k)
                behind[f"h2o, k = {k}"] = read.under(answer, heavy)
                behind[f"random, k = {k}"] = read.under(answer, heavy, "random", seed)
                behind[f"first and latest, k = {k}"] = read.under(answer, first, "earliest")
                for how, reuse in REUSE.items():
                    policy = TokenSelect(n_init=SINKS, k=k, n_local=LOCAL, reuse=reuse)
                    name = f"k = {k}{how}"
                    behind[f"tokenselect, {name}"], served = read.selecting(answer, policy)
                    rates[name] = rates.get(name, 0.0) + served / keys
        for name, loss in behind.items():
            losses.setdefault(name, []).append(loss.mean(1))
    loss = {name: torch.cat(parts) for name, parts in losses.items()}
    table.add_all({name: float(one.mean()) for name, one in loss.items()}, "nats per digit", seed)
    for name, served in rates.items():
        table.add(f"selections used again, {name}", served, "share", seed)
        share = bytes_read(int(name.split()[2].strip(",")), served, tokens)
        table.add(f"bytes read, {name}", share, "of full attention's", seed)
    lines = {
        name: [(SINKS + LOCAL + k, float(loss[f"{name}, k = {k}"].mean())) for k in selected]
        for name in ("tokenselect", *RIVALS)
    }
    ours = loss[f"tokenselect, k = {JUDGED}"]
    return verdict(
        table,
        {
            f"at k = {JUDGED} it loses less than {name}": paired(
                loss[f"{name}, k = {JUDGED}"], ours
            )
            for name in RIVALS
        },
        plots=[curves(lines, f"tokens seen, of {tokens}", "loss of the key (nats per digit)")],
    )


PAPER = Paper(
    number=149,
    key="tokenselect",
    title="TokenSelect: Efficient Long-Context Inference and Length Extrapolation via "
    "Dynamic Token-Level KV Cache Selection",
    arxiv="2411.02886",
    role="cache policy",
    family="efficiency",
    claim="Attending to a few tokens that all heads vote for, query by query, recalls what windows "
    "and evicting caches of the same size have lost.",
    reproduce=reproduce,
    threads=1,
)
