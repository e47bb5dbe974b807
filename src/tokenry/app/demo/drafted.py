"""The demo's third part: four prompts decoded with a drafter, and the tree of every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenry.app.demo.page import ACCENT, FAINT, INK, Section, inline_svg, new_axes, new_figure
from tokenry.decode.generate import ends, prompt_ids
from tokenry.decode.speculation.latency import latency_curve, quick_kernels
from tokenry.decode.speculation.speculate import drafter as drafters
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted

PROMPTS = {
    "code": "Write a Python class Stack with the methods push, pop, peek and is_empty.",
    "summary": "Summarise in two sentences: The honey bee lives in colonies of up to fifty "
    "thousand workers and one queen. Workers collect nectar, which they turn into honey, and "
    "pollen, which feeds the larvae. A colony survives the winter by clustering around the queen "
    "and eating the stored honey.",
    "rewriting": "Rewrite as a JSON list with the keys name, age and city: Anna is 31 and lives "
    "in Oslo. Ben is 45 and lives in Rome. Carla is 27 and lives in Lima. David is 60 and lives "
    "in Cairo.",
    "question": "Why is the sky blue during the day and red in the evening?",
}
CODE = """\
drafter = Goose()  # nodes=16 for a tree of that size on any machine
result = generate_with_drafter(model, prompt_ids, drafter, max_new_tokens=64)
result.new_ids          # what greedy decoding gives
result.tokens_per_pass  # 1.0 without a draft"""
TOTALS = ("tokens", "passes", "fitted_passes", "plain_seconds", "fitted_seconds")
NODE, ROW = 11, 7  # pixels between the depths and the rows of a drawn tree


def section(
    loaded: Any,
    prompts: Mapping[str, str] = PROMPTS,
    max_new_tokens: int = 64,
    nodes: int = 16,
    tick: Callable[[str], None] = lambda what: None,
) -> Section:
    """Every prompt three times: one token per pass, and with Goose's two trees."""
    model, tokenizer = loaded
    fitted, wide = drafters["goose"](), drafters["goose"](nodes=nodes)
    runs = []
    tick("measuring the machine")
    started = time.perf_counter()
    with quick_kernels(model):
        curve = latency_curve(model)  # once; or the first prompt would pay for it
    measuring = time.perf_counter() - started
    options = {"max_new_tokens": max_new_tokens, "eos_token_id": ends(*loaded)}
    for kind, text in prompts.items():
        ids = prompt_ids(tokenizer, [{"role": "user", "content": text}])
        tick(f"{kind}, plain")
        plain, plain_seconds = greedy(loaded, ids, max_new_tokens)
        tick(f"{kind}, tree fitted to the machine")
        quick = generate_with_drafter(model, ids, fitted, **options)
        tick(f"{kind}, {nodes} guesses")
        steps: list[dict[str, Any]] = []

        def keep(tree: TokenTree, accepted: Accepted, steps: list[dict[str, Any]] = steps) -> None:
            steps.append(step(tokenizer, tree, accepted))

        result = generate_with_drafter(model, ids, wide, on_step=keep, **options)
        runs.append(
            {
                "kind": kind,
                "prompt": text,
                "text": tokenizer.decode(result.new_ids, skip_special_tokens=True),
                "first": tokenizer.decode(result.new_ids[:1]),
                "identical": result.new_ids == plain == quick.new_ids,
                "tokens": len(result.new_ids),
                "passes": result.forward_calls,
                "per_pass": result.tokens_per_pass,
                "seconds": result.seconds,
                "fitted_passes": quick.forward_calls,
                "fitted_per_pass": quick.tokens_per_pass,
                "fitted_seconds": quick.seconds,
                "plain_seconds": plain_seconds,
                "steps": steps,
            }
        )
    total = {name: sum(run[name] for run in runs) for name in TOTALS}
    identical = sum(run["identical"] for run in runs)
    return Section(
        key="drafted",
        title="Accelerated",
        about="Goose copies what followed the same words before, and remembers which tokens were "
        "likely the last time. The model reads the tree of these guesses in one pass and keeps the "
        "path it would have written itself. No second model is needed, and the text is that of "
        "greedy decoding.",
        code=CODE,
        numbers=[
            ("identical to greedy decoding", f"{identical} of {len(runs)}"),
            ("tokens per pass, fitted tree", f"{total['tokens'] / total['fitted_passes']:.2f}"),
            (f"tokens per pass, {nodes} guesses", f"{total['tokens'] / total['passes']:.2f}"),
            (
                "time of plain decoding ÷ fitted",
                f"{total['plain_seconds'] / total['fitted_seconds']:.2f}×",
            ),
        ],
        content={
            "runs": runs,
            "figure": inline_svg(draw(runs), "Tokens added by each step"),
            "measuring": measuring,
            "nodes": nodes,
            "latency": ", ".join(f"{size}: {1000 * curve[size]:.0f} ms" for size in curve),
        },
    )


def greedy(loaded: Any, ids: list[int], max_new_tokens: int) -> tuple[list[int], float]:
    """Plain greedy decoding by transformers, one token per pass: new ids and seconds."""
    model, tokenizer = loaded
    prompt = torch.tensor([ids], device=next(model.parameters()).device)
    started = time.perf_counter()
    with torch.inference_mode():
        output: Tensor = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends(*loaded),
            pad_token_id=tokenizer.pad_token_id or ends(*loaded)[0],
        )
    return output[0, len(ids) :].tolist(), time.perf_counter() - started


def step(tokenizer: Any, tree: TokenTree, accepted: Accepted) -> dict[str, Any]:
    """One step: how many guesses were read, the tokens they gave, and the tree as a drawing."""
    tokens = [tokenizer.decode([token]) for token in accepted.tokens]
    return {
        "guesses": len(tree) - 1,
        "accepted": tokens[: len(accepted.path) - 1],
        "bonus": tokens[len(accepted.path) - 1 :],
        "added": len(tokens),
        "drawing": drawing(tree, accepted.path),
    }


def drawing(tree: TokenTree, path: list[int]) -> dict[str, Any]:
    """Places of nodes and lines: depth to the right, leaves from top to bottom."""
    rows: dict[int, float] = {}
    below: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents[1:], start=1):
        below.setdefault(parent, []).append(node)
    leaves = 0
    kept = set(path)

    def lay_out(node: int) -> float:
        nonlocal leaves
        # the accepted path is drawn as the top row of the tree
        following = sorted(below.get(node, []), key=lambda child: child not in kept)
        if following:
            rows[node] = min([lay_out(child) for child in following])
        else:
            rows[node] = leaves
            leaves += 1
        return rows[node]

    lay_out(0)
    points = [(6 + NODE * tree.depths[n], 6 + ROW * rows[n]) for n in range(len(tree))]
    lines: dict[bool, list[str]] = {True: [], False: []}
    dots: dict[bool, list[str]] = {True: [], False: []}
    for node, (x, y) in enumerate(points):
        dots[node in kept].append(f"M{x} {y:g}h0")
        if node:
            x0, y0 = points[tree.parents[node]]
            lines[node in kept].append(f"M{x0} {y0:g}L{x} {y:g}")
    return {
        "width": 12 + NODE * max(tree.depths),
        "height": 12 + ROW * max(leaves - 1, 0),
        "lines": "".join(lines[False]),
        "dots": "".join(dots[False]),
        "kept_lines": "".join(lines[True]),
        "kept_dots": "".join(dots[True]),
    }


def draw(runs: list[dict[str, Any]]) -> Any:
    """For each prompt, the tokens that each step added, in order."""
    figure = new_figure(height=0.55 + 0.52 * len(runs))
    axes = new_axes(figure, len(runs), 1, sharex=True, sharey=True)[:, 0]
    most = max((step["added"] for run in runs for step in run["steps"]), default=1)
    for axis, run in zip(axes, runs, strict=True):
        added = [step["added"] for step in run["steps"]]
        axis.bar(range(1, len(added) + 1), added, color=ACCENT, width=0.7)
        axis.axhline(1, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)))
        axis.set_ylim(0, most + 0.5)
        axis.set_yticks([1, most] if most > 1 else [1])
        axis.set_title(
            f"{run['kind']}: {run['per_pass']:.2f} tokens per pass",
            loc="left",
            pad=2,
            fontsize=8.5,
            color=INK,
        )
    axes[-1].set_xlabel("step (dashed: one token per pass)")
    return figure
