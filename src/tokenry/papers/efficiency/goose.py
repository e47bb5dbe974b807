"""Goose at laptop scale: one uneven tree against its sources and an even tree of the same size.

SmolLM2 rewrites, quotes and documents small functions of the standard library, greedily. Four ways
to spend 60 nodes a pass: the chain copied from the context alone; recycled successors alone; a
balanced tree, in which every node gets the same number of children from both sources, level by
level; and Goose's spine with branches. All learn from their own passes, from nothing.

The second part needs no model: with a spine whose tokens are right with probability .6 and branches
right with .1, the expected accepted length of 60 nodes is exact.
"""

import inspect
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from tokenry.decode.speculation.baselines import NoDraft
from tokenry.decode.speculation.goose import Goose, GooseDraft, spine_tree
from tokenry.decode.speculation.speculate import Speculation, generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree, path_probabilities
from tokenry.decode.speculation.verify import Accepted
from tokenry.papers.base import Measurement, Outcome, Paper

NODES, NEW, PROMPTS = 60, 48, 4
FUNCTIONS = ("textwrap.shorten", "textwrap.indent", "statistics.median_low", "heapq.nsmallest")
FUNCTIONS += ("shutil.copymode", "calendar.weekday", "fnmatch.filter", "colorsys.rgb_to_yiq")
FUNCTIONS += ("string.capwords", "textwrap.dedent", "shlex.join", "colorsys.hls_to_rgb")
TASKS = (
    "Print this function again with a docstring:\n\n{code}",
    "Rename its arguments to one letter each and print the whole function:\n\n{code}",
    "Explain this function line by line, quoting every line:\n\n{code}",
)
SPINE, BRANCH = 0.6, 0.1


def reproduce(seed: int) -> Outcome:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    prompts = chosen(tokenizer, seed)
    ways = {"goose": GooseDraft, "chain alone": ChainAlone, "successors alone": SuccessorsAlone}
    ways["balanced tree"] = Balanced
    found, hits = {}, {"spine": [0, 0], "branch": [0, 0]}
    for name, shape in ways.items():
        count = hits if name == "goose" else {"spine": [0, 0], "branch": [0, 0]}
        drafter = Shaped(shape)
        found[name] = [
            generate_with_drafter(
                model, ids, drafter, NEW, on_step=lambda t, a, count=count: tally(t, a, count)
            )
            for ids in prompts
        ]
    plain = [generate_with_drafter(model, ids, NoDraft(), NEW) for ids in prompts]
    same = all(
        mine.ids == theirs.ids
        for texts in found.values()
        for mine, theirs in zip(texts, plain, strict=True)
    )
    rate = {note: right / max(tried, 1) for note, (right, tried) in hits.items()}
    per_pass = {name: tokens_per_pass(texts) for name, texts in found.items()}
    exact = expectations()
    measurements = [
        *(Measurement(name, value, "tokens per pass", seed) for name, value in per_pass.items()),
        *(Measurement(f"{note} guesses right", share, "", seed) for note, share in rate.items()),
        *(
            Measurement(f"exact, {name}", value, "accepted tokens", seed)
            for name, value in exact.items()
        ),
        Measurement("texts equal to plain decoding", float(same), "", seed),
    ]
    best_other = max(value for name, value in per_pass.items() if name != "goose")
    held = (
        same
        and per_pass["goose"] >= best_other
        and rate["spine"] > 2 * rate["branch"]
        and exact["goose"] >= max(exact.values())
    )
    return Outcome(
        held=held,
        needs="same texts; tokens per pass: goose >= each source alone and >= the balanced tree; "
        "spine right more than twice as often as branches; the same in exact expectation",
        measurements=measurements,
        reason=(
            f"Goose gives {per_pass['goose']:.2f} tokens per pass, the best of the others "
            f"{best_other:.2f}. A guess of the spine whose parent was right is right in "
            f"{rate['spine']:.0%} of cases, one of a branch in {rate['branch']:.0%}."
        ),
        figure=lambda figure: draw(figure, per_pass, rate),
    )


class Shaped(Goose):
    """Goose with another draft: its tree, or a rival's."""

    def __init__(self, draft: type[GooseDraft]):
        super().__init__(nodes=NODES)
        object.__setattr__(self, "kind", draft)

    def begin(self, model: Any, prompt: Sequence[int]) -> GooseDraft:
        super().begin(model, prompt)  # makes the table
        return self.kind(self, prompt, {})  # pyright: ignore[reportAttributeAccessIssue]


class ChainAlone(GooseDraft):
    def shape(self, chain: Sequence[int], confidence: float) -> TokenTree:
        return TokenTree.chain([self.text[-1], *chain[: NODES - 1]])

    def update(self, tree: TokenTree, logits: Any, accepted: Accepted) -> None:
        super().update(noted(tree, "spine"), logits, accepted)


class SuccessorsAlone(GooseDraft):
    def shape(self, chain: Sequence[int], confidence: float) -> TokenTree:
        return super().shape([], 0.0)


class Balanced(GooseDraft):
    """Three children for every node, level by level; the copied token, if there is one, first."""

    def shape(self, chain: Sequence[int], confidence: float) -> TokenTree:
        tokens, parents = [self.text[-1]], [-1]
        before = self.text[-2] if len(self.text) > 1 else -1
        waiting = deque([(0, before, 0)])  # node, token before it, depth along the chain or -1
        while waiting and len(tokens) < NODES:
            node, previous, along = waiting.popleft()
            copied = [chain[along]] if 0 <= along < len(chain) else []
            known = [token for token, _ in self.memory.successors(previous, tokens[node])[1]]
            for rank, token in enumerate(dict.fromkeys([*copied, *known])):
                if rank == 3 or len(tokens) == NODES:
                    break
                tokens.append(token)
                parents.append(node)
                deeper = along + 1 if copied and rank == 0 else -1
                waiting.append((len(tokens) - 1, tokens[node], deeper))
        return noted(TokenTree(tuple(tokens), tuple(parents)), "branch")


def noted(tree: TokenTree, note: str) -> TokenTree:
    notes = ("root", *[note] * (len(tree) - 1))
    return TokenTree(tree.tokens, tree.parents, notes)


def tally(tree: TokenTree, accepted: Accepted, count: dict[str, list[int]]) -> None:
    """Count the guesses whose parent was right, by what they are."""
    if tree.notes:
        for node in range(1, len(tree)):
            if tree.parents[node] in accepted.path:
                count[tree.notes[node]][0] += node in accepted.path
                count[tree.notes[node]][1] += 1


def expectations() -> dict[str, float]:
    """Expected accepted tokens of 60 nodes: the sum over nodes of the probability of their path. A
    token has one copied successor, right with SPINE, and four recycled ones, each with BRANCH."""
    recycled = [(token, BRANCH) for token in range(1000, 1004)]
    spine = list(range(1, NODES))
    tokens, parents, depth = [0], [-1], [0]
    for node in range(NODES):  # three children each, the first of them copied where it can be
        for child in range(3):
            if len(tokens) < NODES:
                copied = child == 0 and tokens[node] == depth[node]
                tokens.append(depth[node] + 1 if copied else 1000 + child)
                parents.append(node)
                depth.append(depth[node] + 1)
    trees = {
        "goose": spine_tree([0], spine, 0.3, 0.3, NODES, lambda *_: recycled),
        "chain alone": TokenTree.chain([0, *spine]),
        "successors alone": spine_tree([0], [], 0.0, 0.3, NODES, lambda *_: recycled),
        "balanced tree": TokenTree(tuple(tokens), tuple(parents)),
    }
    return {name: expected(tree) for name, tree in trees.items()}


def expected(tree: TokenTree) -> float:
    rates = [SPINE if 0 < token < 1000 else BRANCH for token in tree.tokens]
    return sum(path_probabilities(tree.parents, rates)[1:])


def chosen(tokenizer: Any, seed: int) -> list[torch.Tensor]:
    """Prompts on functions of the standard library."""
    import importlib

    order = torch.randperm(len(FUNCTIONS), generator=torch.Generator().manual_seed(seed)).tolist()
    prompts = []
    for index in order[:PROMPTS]:
        module, _, name = FUNCTIONS[index].rpartition(".")
        code = inspect.getsource(getattr(importlib.import_module(module), name))
        lines = inspect.cleandoc(code).splitlines()[:24]
        task = TASKS[index % len(TASKS)].format(code="\n".join(lines))
        messages = [{"role": "user", "content": task}]
        prompts.append(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )["input_ids"]
        )
    return prompts


def tokens_per_pass(texts: Sequence[Speculation]) -> float:
    return sum(len(one.new_ids) for one in texts) / sum(one.forward_calls for one in texts)


def draw(figure: Any, per_pass: dict[str, float], rate: dict[str, float]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.barh(list(per_pass), list(per_pass.values()))
    left.set(xlabel="tokens per pass")
    left.axvline(1, color="grey", linewidth=0.8)
    right.bar(list(rate), list(rate.values()))
    right.set(ylabel="right, where the parent was")


PAPER = Paper(
    number=180,
    key="goose",
    title="Goose: Anisotropic Speculation Trees for Training-Free Speculative Decoding",
    arxiv="2604.02047",
    role="drafter",
    family="efficiency",
    claim="A deep spine copied from the context with shallow recycled branches accepts more per "
    "pass than either source alone or a balanced tree of the same size.",
    reproduce=reproduce,
    threads=1,
)
