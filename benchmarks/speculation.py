"""Drafts against plain greedy decoding and transformers' prompt lookup, in time and in passes.

    python benchmarks/speculation.py [--json] [--model smollm2] [--prompts FILE] [--runs 5]
                                     [--max-new-tokens 128] [--only NAME ...] [--warm]

On 24 prompts of four kinds (`prompts.json`), in turn, so many rounds: `model.generate`, greedy; the
same with `prompt_lookup_num_tokens=10`; and every drafter of the library that needs no training
(`--only "no draft"` is what our kernels and our loop do without one, `--only goose+lookahead` a
mixture). Every text starts cold: a drafter knows nothing but the machine's latency curve, which is
measured before the clock starts (its time is printed). With `--warm` it knows the texts before this
one too, each of them once: every round begins with a new drafter. A prompt's time is the median of
its rounds, a kind's ratio the geometric mean over its prompts. The texts must be the same
everywhere. FLOPs are those of the model's passes, 2 per weight and token read.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from side_by_side import Row, arguments, compare, report

PEERS = ("greedy", "prompt lookup")
NO_DRAFT = "no draft"
DRAFTS = ("goose", "context", "recycling", "lookahead")


@dataclass
class Measured:
    """One way on one prompt: its text, passes, tokens read by them, and seconds per round."""

    text: list[int] = field(default_factory=list)
    passes: int = 0
    read: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Found = dict[str, list[dict[str, Measured]]]
"""kind -> per prompt, way -> what was measured."""


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="name, hub id or folder")
    parser.add_argument("--prompts", type=Path, default=Path(__file__).with_name("prompts.json"))
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens per prompt")
    parser.add_argument("--runs", type=int, default=5, help="rounds; medians are reported")
    parser.add_argument("--only", nargs="*", default=DRAFTS, help="drafters to measure")
    parser.add_argument("--warm", action="store_true", help="keep a drafter for all prompts")
    chosen = parser.parse_args()

    import tokenry
    from tokenry.decode.speculation.latency import latency_curve
    from tokenry.model.kernels.packed import packed

    loaded = tokenry.load(chosen.model)
    started = time.perf_counter()
    plain = latency_curve(loaded.model)
    with packed(loaded.model):
        few = latency_curve(loaded.model)
    print(f"ms per pass by its tokens, plain kernels: {shown(plain)}", file=sys.stderr)
    print(f"ms per pass by its tokens, packed kernels: {shown(few)}", file=sys.stderr)
    print(f"(measured in {time.perf_counter() - started:.1f} s)", file=sys.stderr)
    prompts = json.loads(chosen.prompts.read_text(encoding="utf-8"))
    ids = {
        kind: [encode(loaded.tokenizer, text) for text in texts] for kind, texts in prompts.items()
    }
    drafts, count = chosen.only, chosen.max_new_tokens
    found = measure(loaded.model, ids, drafts, count, chosen.runs, chosen.warm)
    weights = sum(weight.numel() for weight in loaded.model.parameters())
    rows = [
        compare(f"a pass over {n} tokens, packed vs plain", few[n] * 1e3, plain[n] * 1e3, "ms")
        for n in plain
    ]
    rows += [row for draft in chosen.only for row in compared(found, draft, 2 * weights)]
    start = "drafters kept" if chosen.warm else "cold start"
    report(rows, chosen.json, f"Drafts, {start}, {chosen.model}, {count} tokens")
    if wrong := differing(found):
        sys.exit(f"the texts differ: {', '.join(wrong)}")
    print("the texts are identical", file=sys.stderr)


def measure(
    model: Any,
    prompts: dict[str, list[Any]],
    drafts: tuple[str, ...],
    count: int,
    runs: int,
    warm: bool,
) -> Found:
    """Every way on every prompt, in turn, `runs` times."""
    found: Found = {kind: [{} for _ in texts] for kind, texts in prompts.items()}
    first = next(iter(prompts.values()))[0]
    for way in ways_of(model, drafts, count, warm).values():
        way(first, Measured())  # the first passes are slow, and kernels are packed once
    for run in range(runs):
        ways = ways_of(model, drafts, count, warm)
        for kind, texts in prompts.items():
            print(f"round {run + 1} of {runs}: {kind}", file=sys.stderr, flush=True)
            for ids, measured in zip(texts, found[kind], strict=True):
                for name, way in ways.items():
                    into = measured.setdefault(name, Measured())
                    into.passes = into.read = 0
                    started = time.perf_counter()
                    way(ids, into)
                    into.seconds.append(time.perf_counter() - started)
    return found


def ways_of(
    model: Any, drafts: tuple[str, ...], count: int, warm: bool
) -> dict[str, Callable[[Any, Measured], None]]:
    """name -> a function that writes the text of a prompt, and what it took."""
    import torch

    from tokenry.app.choices import drafter_of
    from tokenry.decode.speculation.baselines import NoDraft
    from tokenry.decode.speculation.speculate import generate_with_drafter

    def peer(**options: Any) -> Callable[[Any, Measured], None]:
        def write(ids: Any, into: Measured) -> None:
            def count_pass(_: Any, __: Any, inputs: dict[str, Any]) -> None:
                into.passes += 1
                into.read += inputs["input_ids"].shape[1]

            hook = model.register_forward_pre_hook(count_pass, with_kwargs=True)
            try:
                with torch.inference_mode():
                    mask = torch.ones_like(ids)
                    text = model.generate(
                        ids, attention_mask=mask, max_new_tokens=count, do_sample=False, **options
                    )
            finally:
                hook.remove()
            into.text = text[0, ids.shape[1] :].tolist()

        return write

    def ours(name: str) -> Callable[[Any, Measured], None]:
        def make() -> Any:
            return NoDraft() if name == NO_DRAFT else drafter_of(name, None)

        kept = make() if warm else None

        def write(ids: Any, into: Measured) -> None:
            text = generate_with_drafter(model, ids, kept or make(), count)
            into.text, into.passes = text.new_ids, text.forward_calls
            into.read = ids.shape[1] + sum(text.nodes)

        return write

    return {
        "greedy": peer(),
        "prompt lookup": peer(prompt_lookup_num_tokens=10),
        **{name: ours(name) for name in drafts},
    }


def compared(found: Found, draft: str, flops: float) -> list[Row]:
    """The rows of one drafter: per kind and over all prompts."""
    rows = []
    for peer in PEERS:
        kinds = {kind: [ratio(one, draft, peer) for one in ones] for kind, ones in found.items()}
        everything = [value for values in kinds.values() for value in values]
        for name, values in [*kinds.items(), ("all prompts", everything)]:
            mean = statistics.geometric_mean(values)
            rows.append(Row(f"{draft}: {name} vs {peer}", mean, 1.0, mean, "x speed"))
    for kind, ones in found.items():
        per_pass = {
            way: sum(len(one[way].text) for one in ones) / sum(one[way].passes for one in ones)
            for way in (draft, "prompt lookup")
        }
        rows.append(compare(f"{draft}: {kind} vs prompt lookup", *per_pass.values(), "tokens/pass"))
    read = {
        way: sum(one[way].read for ones in found.values() for one in ones) * flops / 1e9
        for way in (draft, "greedy")
    }
    rows.append(compare(f"{draft}: all prompts vs greedy", *read.values(), "GFLOP"))
    return rows


def ratio(one: dict[str, Measured], draft: str, peer: str) -> float:
    return one[peer].median / one[draft].median


def differing(found: Found) -> list[str]:
    """Ways whose text is not that of greedy decoding, with the prompt."""
    return [
        f"{way} on {kind} {number}"
        for kind, ones in found.items()
        for number, one in enumerate(ones)
        for way, measured in one.items()
        if measured.text != one["greedy"].text
    ]


def shown(curve: dict[int, float]) -> str:
    return ", ".join(f"{size}: {seconds * 1e3:.0f}" for size, seconds in curve.items())


def encode(tokenizer: Any, prompt: str) -> Any:
    if tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt")["input_ids"]
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]


if __name__ == "__main__":
    main()
