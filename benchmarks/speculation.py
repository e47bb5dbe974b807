"""Decoding with recycled drafts against plain greedy decoding and prompt lookup.

    python benchmarks/speculation.py [--json] [--model smollm2] [--max-new-tokens 64] [--runs 3]

On prompts of four kinds, three ways in turn, repeatedly: `model.generate`, greedy; the same with
`prompt_lookup_num_tokens=10`; and `generate_with_drafter` with `TokenRecycling`. Every repetition
starts cold: the drafter knows nothing but the machine's latency curve, which is measured before the
clock starts (once per process; its time is printed). The texts must be the same.
"""

import statistics
import sys
import time
from typing import Any

from side_by_side import Row, arguments, compare, report

PROMPTS = {
    "code": "Write a Python class Matrix with methods add, subtract, multiply and transpose.",
    "summary": "Summarise in three sentences:\nThe Industrial Revolution was the transition to new "
    "manufacturing processes in Great Britain, continental Europe, and the United States, from "
    "1760 to about 1840. It included going from hand production methods to machines, new chemical "
    "manufacturing and iron production processes, the increasing use of steam power and water "
    "power, the development of machine tools and the rise of the mechanised factory system.",
    "rewriting to JSON": "Rewrite as a JSON list of objects with the keys name, age and city:\n"
    "Anna Keller is 31 years old and lives in Paris. Robert Moore is 45 years old and lives in "
    "Rome. Clara Novak is 28 years old and lives in Madrid. David Chen is 52 and lives in Oslo.",
    "open question": "What makes a good friend?",
}


PEERS = ("greedy", "prompt lookup")


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="name, hub id or folder")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="tokens per prompt")
    parser.add_argument("--runs", type=int, default=3, help="rounds; medians are reported")
    chosen = parser.parse_args()

    import tokenry
    from tokenry.decode.speculation.speculate import latency_curve

    loaded = tokenry.load(chosen.model)
    started = time.perf_counter()
    curve = latency_curve(loaded.model)
    passes = ", ".join(f"{size}: {seconds * 1e3:.0f}" for size, seconds in curve.items())
    print(
        f"ms per pass by its tokens: {passes} (measured in {time.perf_counter() - started:.1f} s)",
        file=sys.stderr,
    )
    rows, differing = [], []
    for kind, prompt in PROMPTS.items():
        found, same = measure(loaded, kind, prompt, chosen.max_new_tokens, chosen.runs)
        rows += found
        if not same:
            differing.append(kind)
    for peer in PEERS:
        ratios = [row.ratio for row in rows if row.unit == "tokens/s" and row.name.endswith(peer)]
        mean = statistics.geometric_mean([ratio for ratio in ratios if ratio])
        rows.append(Row(f"speed, geometric mean of the kinds, vs {peer}", mean, 1.0, mean, "x"))
    report(rows, chosen.json, f"Token recycling, cold start, {chosen.model}")
    if differing:
        sys.exit(f"the texts differ on: {', '.join(differing)}")
    print("the texts are identical", file=sys.stderr)


def measure(loaded: Any, kind: str, prompt: str, count: int, runs: int) -> tuple[list[Row], bool]:
    """One prompt, every way in turn, `runs` times: the figures, and whether the texts agree."""
    import torch

    from tokenry.decode.speculation.recycling import TokenRecycling
    from tokenry.decode.speculation.speculate import generate_with_drafter

    model, tokenizer = loaded
    ids = encode(tokenizer, prompt)
    calls = 0

    def count_call(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def generate(**options: Any) -> list[int]:
        with torch.inference_mode():
            text = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                **options,
            )
        return text[0, ids.shape[1] :].tolist()

    ways = {
        "recycling": lambda: generate_with_drafter(model, ids, TokenRecycling(), count).new_ids,
        "greedy": generate,
        "prompt lookup": lambda: generate(prompt_lookup_num_tokens=10),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts, per_pass = {}, {}
    model.generate(ids, max_new_tokens=3, do_sample=False)  # the first passes are slow
    hook = model.register_forward_pre_hook(count_call)
    try:
        for _ in range(runs):
            for name, way in ways.items():
                calls, started = 0, time.perf_counter()
                texts[name] = way()
                seconds[name].append(time.perf_counter() - started)
                per_pass[name] = len(texts[name]) / calls
    finally:
        hook.remove()
    speed = {name: len(texts[name]) / statistics.median(seconds[name]) for name in ways}
    rows = [
        compare(f"{kind} vs {peer}", figures["recycling"], figures[peer], unit)
        for unit, figures in (("tokens/s", speed), ("tokens/pass", per_pass))
        for peer in PEERS
    ]
    return rows, texts["recycling"] == texts["greedy"] == texts["prompt lookup"]


def encode(tokenizer: Any, prompt: str) -> Any:
    if tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt")["input_ids"]
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]


if __name__ == "__main__":
    main()
