"""Key-value caches: decoding speed, quality and memory, against full attention and kvpress.

    python benchmarks/cache.py decode    [--length 16384] [--size 2048] [--runs 7] [--json]
    python benchmarks/cache.py quality   [--length 8192] [--size 2048] [--prompts 4] [--json]
    python benchmarks/cache.py budgets   [--peer-python PATH] [--passages 4] [--json]

decode: one layer's attention of one new token, the update of the cache included, at the shapes of
SmolLM2. TokenSelect selects at every step here (reuse=2), the slowest case, whose time does not
depend on what the keys are. Four ways take turns: it; transformers' DynamicCache with SDPA, which
copies all keys and values at each step; the same SDPA on keys that need no copy; and `Full`.
quality: what that TokenSelect loses on the default model, with the same settings: perplexity of the
text after a long prompt, and pass keys hidden in such prompts.
budgets: quality and bytes held at equal numbers of keys, H2O (also evicting after the prompt alone,
as presses do) and TokenSelect against the presses of kvpress (0.5.5 wants transformers < 5.3, so it
has an interpreter of its own: a virtual environment with `pip install kvpress==0.5.5 gguf`, named
by --peer-python or TOKENRY_PEER_PYTHON).
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from side_by_side import Row, arguments, compare, has_peer, peak_extra_memory, report, run_apart

HEADS, KEY_HEADS, SIZE, LAYERS = 9, 3, 64, 6  # SmolLM2-135M; layers enough to leave the L3 cache
PRESSES = ("ObservedAttention", "SnapKV", "TOVA", "StreamingLLM")
PROMPT, SCORED = 384, 32
SHARES = (0.2, 0.4)
REUSE = (2.0, 0.98, 0.95, 0.9)  # 2: at every step
LONG = 2048


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("decode", "quality", "budgets", "worker"))
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)  # what a worker is to do
    parser.add_argument("--length", type=int, help="keys in the cache")
    parser.add_argument("--size", type=int, default=2048, help="keys that TokenSelect attends to")
    parser.add_argument("--runs", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--prompts", type=int, default=4, help="pass keys to recall")
    parser.add_argument(
        "--reuse", type=float, nargs="*", default=REUSE, help="cosines that a selection serves for"
    )
    parser.add_argument("--passages", type=int, default=4, help="texts of 512 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer-python", default=os.environ.get("TOKENRY_PEER_PYTHON"))
    chosen = parser.parse_args()
    if chosen.what == "worker":
        WORKERS[chosen.words[0]](*chosen.words[1:])
    elif chosen.what == "decode":
        length = chosen.length or 16384
        rows = decode(length, chosen.size, chosen.runs)
        report(rows, chosen.json, f"Decode attention on {length} keys, {chosen.size} selected")
    elif chosen.what == "quality":
        length = chosen.length or 8192
        rows = quality(length, chosen.size, chosen.reuse, chosen.prompts, chosen.seed)
        report(rows, chosen.json, f"TokenSelect of {chosen.size}, prompts of {length} tokens")
    else:
        rows = budgets(chosen.peer_python, chosen.passages, chosen.seed)
        report(rows, chosen.json, "Equal budgets: ours against kvpress")


def decode(length: int, size: int, runs: int, steps: int = 4) -> list[Row]:
    import torch
    from transformers import DynamicLayer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from tokenry.model.attention.masks import GivenMask
    from tokenry.model.cache.full import Full
    from tokenry.model.cache.tokenselect import TokenSelect

    shape = TokenSelect.of_size(size)
    policy = TokenSelect(n_init=shape.n_init, k=shape.k, n_local=shape.n_local, reuse=2.0)
    module = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int, heads: int) -> Any:
        return torch.randn(1, heads, count, SIZE, generator=generator)

    def filled(make: Any) -> list[Any]:
        layers = [make() for _ in range(LAYERS)]
        for layer in layers:
            layer.update(drawn(length, KEY_HEADS), drawn(length, KEY_HEADS))
            layer.waiting = False
        return layers

    def transformers_step(layer: Any, query: Any, key: Any, value: Any) -> Any:
        keys, values = layer.update(key, value)
        return sdpa_attention_forward(module, query, keys, values, None, scaling=SIZE**-0.5)

    def without_copy(layer: Any, query: Any, key: Any, value: Any) -> Any:
        return sdpa_attention_forward(
            module, query, layer.keys, layer.values, None, scaling=SIZE**-0.5
        )

    def own_step(layer: Any, query: Any, key: Any, value: Any) -> Any:
        keys, values = layer.update(key, value)
        mask = GivenMask(None, query)
        output = layer.attend(query, keys, values, mask, scaling=SIZE**-0.5, softcap=None)
        layer.waiting = False
        return output

    ways = {
        "tokenselect": (filled(policy.layer), own_step),
        "DynamicCache + SDPA": (filled(DynamicLayer), transformers_step),
        "SDPA alone": (filled(DynamicLayer), without_copy),
        "Full": (filled(Full().layer), own_step),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for turn in range(runs + 1):
            for name, (layers, step) in ways.items():
                tokens = [
                    (drawn(1, HEADS), drawn(1, KEY_HEADS), drawn(1, KEY_HEADS))
                    for _ in range(steps)
                ]
                started = time.perf_counter()
                for token in tokens:
                    for layer in layers:
                        step(layer, *token)
                if turn:  # the first round warms up
                    seconds[name].append((time.perf_counter() - started) / steps / LAYERS)
    ms = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    column = KEY_HEADS * SIZE * 4  # bytes of one token's key
    seen = sum((policy.n_init, policy.k, policy.n_local))  # type: ignore[type-var]
    traffic = {
        "tokenselect": column * (length + seen),
        "DynamicCache + SDPA": column * 6 * length,
        "SDPA alone": column * 2 * length,
        "Full": column * 2 * length,
    }
    flops = dict.fromkeys(ways, 4 * HEADS * SIZE * length)
    flops["tokenselect"] = 2 * HEADS * SIZE * (length + seen)
    rows = []
    for name in list(ways)[1:]:
        rows.append(compare(f"time vs {name}", ms["tokenselect"], ms[name], "ms per layer"))
        rows.append(speedup(f"speed vs {name}", ms["tokenselect"], ms[name]))
        for what, counts, unit in (("memory traffic", traffic, "MB"), ("work", flops, "MFLOP")):
            ours, peer = counts["tokenselect"] / 1e6, counts[name] / 1e6
            rows.append(compare(f"{what} vs {name}", ours, peer, f"{unit} per layer"))
    rows.append(
        speedup("speed of Full vs DynamicCache + SDPA", ms["Full"], ms["DynamicCache + SDPA"])
    )
    return rows


def speedup(name: str, ours: float, peer: float) -> Row:
    return Row(name, peer / ours, 1.0, peer / ours, "x")


def quality(
    length: int, size: int, reuse: Sequence[float], prompts: int, seed: int, scored: int = 128
) -> list[Row]:
    """Full attention reads each prompt; then it and TokenSelect go on, token by token."""
    import torch

    import tokenry
    from tokenry.model.cache.full import Full
    from tokenry.model.cache.policy import PolicyCache
    from tokenry.model.cache.tokenselect import TokenSelect

    model, tokenizer = tokenry.load("smollm2")
    shape = TokenSelect.of_size(size)
    policies = {f"reuse={cosine:g}": replace(shape, reuse=cosine) for cosine in reuse}
    again: dict[str, float] = {}

    @torch.inference_mode()
    def losses(ids: Any, answer: Any) -> dict[str, tuple[float, bool]]:
        """Of the answer, per way: loss per token, and whether each of them came first."""
        prompt = Full().cache(model)
        first = model(ids[None], past_key_values=prompt, logits_to_keep=1).logits
        found = {}
        for name, policy in {"full": Full(), **policies}.items():
            cache = PolicyCache(model.config, lambda number, policy=policy: policy.layer())
            for layer, read in zip(cache.layers, prompt.layers, strict=True):
                layer.update(read.keys, read.values)
                layer.waiting = False
            logits = [first]
            for token in answer[:-1]:
                logits.append(model(token.view(1, 1), past_key_values=cache).logits)
            logprob = torch.cat(logits, dim=1)[0].float().log_softmax(-1)
            loss = -float(logprob.gather(-1, answer[:, None]).mean())
            found[name] = loss, bool((logprob.argmax(-1) == answer).all())
            if name != "full":
                again[name] = statistics.mean(layer.hit_rate for layer in cache.layers)
        return found

    text = documentation(tokenizer, length + scored, seed)
    started = time.perf_counter()
    found = losses(text[:length], text[length:])
    print(f"one prompt: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    base = math.exp(found["full"][0])
    rows = [
        compare(f"perplexity, {name}", math.exp(found[name][0]), base, "per token")
        for name in policies
    ]
    rows += [
        Row(f"selections used again, {name}", again[name], None, None, "share") for name in policies
    ]
    pass_keys = [
        losses(*pass_key(tokenizer, length, (number + 0.5) / prompts, seed + number))
        for number in range(prompts)
    ]
    for name in policies if prompts else ():
        for what, part, unit in (("loss of pass keys", 0, "nats/digit"), ("recalled", 1, "share")):
            ours, full = (
                statistics.mean(found[way][part] for found in pass_keys) for way in (name, "full")
            )
            rows.append(compare(f"{what}, {name}", ours, full, unit))
    return rows


def documentation(tokenizer: Any, length: int, seed: int) -> Any:
    """A run of tokens from the standard library's own documentation."""
    import pydoc

    import torch

    names = ("argparse", "asyncio", "email", "inspect", "logging", "pathlib", "decimal", "tarfile")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    text = "".join(pydoc.plain(pydoc.render_doc(names[index])) for index in order)
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < length:
        raise SystemExit(f"the documentation has {len(ids)} tokens: --length must be smaller")
    return torch.tensor(ids[:length])


def pass_key(tokenizer: Any, length: int, depth: float, seed: int) -> tuple[Any, Any]:
    """A prompt of `length` tokens that hides a key at `depth` and asks for it, and the key."""
    import torch

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    key = torch.randint(0, 10, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
    key = "".join(map(str, key))
    filler = ids(" The grass is green. The sky is blue. The sun is yellow. Here we go.") * length
    start = ids("There is a pass key hidden in this text. Find it and remember it.\n")
    needle = ids(f" The pass key is {key}. Remember it. {key} is the pass key.")
    question = ids("\nWhat is the pass key? The pass key is ")
    room = length - len(start) - len(needle) - len(question)
    before = int(depth * room)
    prompt = start + filler[:before] + needle + filler[: room - before] + question
    return torch.tensor(prompt), torch.tensor(ids(key))


def budgets(peer_python: str | None, passages: int, seed: int) -> list[Row]:
    """Loss of the SCORED tokens after prompts of PROMPT, over that of a full cache.

    A press evicts once, after the prompt, and lets the cache grow; H2O holds its budget. So there
    are two comparisons: as many keys after the prompt, where the press ends with SCORED more; and
    as many at the end, where it gets SCORED fewer after the prompt. With `prompt_only` H2O evicts
    when a press does: as many keys at every moment.
    """
    import torch
    from transformers import DynamicCache

    import tokenry
    from tokenry.model.cache.h2o import H2O
    from tokenry.model.cache.policy import cache_bytes
    from tokenry.model.cache.simulation import SimulatedCache
    from tokenry.model.cache.tokenselect import TokenSelect
    from tokenry.model.hub import folder

    model, tokenizer = tokenry.load("smollm2")
    texts = [documentation(tokenizer, PROMPT + SCORED, seed + n) for n in range(passages)]
    ids = torch.stack(texts)
    kept = {share: int(share * PROMPT) for share in SHARES}
    ours: dict[tuple[str, float], float] = {}
    with torch.inference_mode():
        prompt = SimulatedCache(model)
        first = model(ids[:, :PROMPT], past_key_values=prompt, logits_to_keep=1).logits

        def loss(logits: Any) -> float:
            logprob = torch.cat([first, logits], dim=1).float().log_softmax(-1)
            return -float(logprob.gather(-1, ids[:, PROMPT:, None]).mean())

        def at_once(policy: H2O) -> float:
            return loss(model(ids[:, PROMPT:-1], past_key_values=prompt.under(policy)).logits)

        full = at_once(H2O(heavy=0, recent=PROMPT + SCORED))
        for share, count in kept.items():
            for name, policy in h2o_ways(count).items():
                ours[name, share] = at_once(policy) - full
            cache = TokenSelect.of_size(count).cache(model)
            model(ids[:, :PROMPT], past_key_values=cache)
            steps = [
                model(ids[:, t : t + 1], past_key_values=cache).logits
                for t in range(PROMPT, PROMPT + SCORED - 1)
            ]
            ours["TokenSelect", share] = loss(torch.cat(steps, dim=1)) - full
        held = {}
        for name, cache in (
            ("H2O", H2O.of_size(kept[SHARES[0]]).cache(model)),
            ("full", DynamicCache()),
        ):
            model(ids[:1, :PROMPT], past_key_values=cache)
            held[name] = cache_bytes(cache) / 1e6
    place = str(folder("smollm2"))
    peer: dict[str, Any] = {}
    if has_peer(peer_python, "kvpress"):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "task.json"
            counts = sorted({n for count in kept.values() for n in (count, count - SCORED)})
            task = {"model": place, "ids": ids.tolist(), "prompt": PROMPT, "kept": counts}
            file.write_text(json.dumps(task))
            peer = run_apart(__file__, "worker", "presses", str(file), python=str(peer_python))
    rows = [Row("loss of the full cache", full, peer.get("full"), None, "nats per token")]
    for share, count in kept.items():
        ways = h2o_ways(count)
        for name in (*ways, "TokenSelect"):
            for press in PRESSES:
                found = peer.get(press, {})
                for when, given in (("after the prompt", count), ("at the end", count - SCORED)):
                    if given != count and name in ways and ways[name].prompt_only:
                        continue  # both grow
                    theirs = found.get(str(given))
                    theirs = None if theirs is None else theirs - peer["full"]
                    label = f"{name} vs {press}, {share:.0%} {when}"
                    rows.append(compare(label, ours[name, share], theirs, "nats over full"))
    presses_hold = peer.get("bytes", {}).get(str(kept[SHARES[0]]))
    rows.append(compare("bytes held, H2O", held["H2O"], presses_hold, "MB"))
    rows.append(compare("bytes held, full cache", held["full"], None, "MB"))
    where = {"ours": sys.executable, "peer": peer_python if peer else None}
    memory = {
        way: run_apart(__file__, "worker", "memory", way, place, python=python)["bytes"] / 1e6
        for way, python in where.items()
        if python
    }
    label = f"peak memory of reading {LONG} tokens, H2O vs ObservedAttention"
    rows.append(compare(label, memory["ours"], memory.get("peer"), "MB"))
    return rows


def h2o_ways(count: int) -> dict[str, Any]:
    """The paper's, the same that evicts when a press does, and the setting that is a press."""
    from tokenry.model.cache.h2o import H2O

    h2o = H2O.of_size(count)
    return {
        "H2O": h2o,
        "H2O of the prompt": replace(h2o, prompt_only=True),
        "H2O of the prompt, by the mean": H2O(count, 0, average=True, prompt_only=True),
    }


def presses(file: str) -> None:
    """In the peer's interpreter: the loss under each press and number of keys kept."""
    import kvpress  # type: ignore[import-not-found]
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    task = json.loads(Path(file).read_text())
    model = AutoModelForCausalLM.from_pretrained(task["model"], attn_implementation="eager").eval()
    ids, prompt = torch.tensor(task["ids"]), task["prompt"]

    def loss(press: Any) -> tuple[float, int]:
        cache = DynamicCache()
        with torch.inference_mode():
            if press is None:
                first = model(ids[:, :prompt], past_key_values=cache).logits[:, -1:]
            else:
                with press(model):
                    first = model(ids[:, :prompt], past_key_values=cache).logits[:, -1:]
            held = sum(a.keys.nbytes + a.values.nbytes for a in cache.layers) // len(ids)
            position = torch.arange(prompt, ids.shape[1] - 1).expand(len(ids), -1)
            rest = model(ids[:, prompt:-1], past_key_values=cache, position_ids=position).logits
        logprob = torch.cat([first, rest], dim=1).float().log_softmax(-1)
        return -float(logprob.gather(-1, ids[:, prompt:, None]).mean()), held

    found: dict[str, Any] = {"full": loss(None)[0], "bytes": {}}
    for name in PRESSES:
        found[name] = {}
        for kept in task["kept"]:
            if kept < 8:
                continue  # a press needs room for its own sinks or window
            options = {"SnapKV": {"window_size": min(64, kept // 2)}}.get(name, {})
            press = getattr(kvpress, f"{name}Press")(
                compression_ratio=1 - (kept + 0.5) / prompt, **options
            )
            found[name][str(kept)], found["bytes"][str(kept)] = loss(press)
    found["bytes"] = {kept: count / 1e6 for kept, count in found["bytes"].items()}
    print(json.dumps(found))


def memory(way: str, place: str) -> None:
    """Peak memory of a prompt of LONG tokens, a fifth of whose keys are kept."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    eager = {"attn_implementation": "eager"} if way == "peer" else {}
    model = AutoModelForCausalLM.from_pretrained(place, **eager).eval()
    ids = torch.arange(LONG)[None] % 1000 + 100
    with torch.inference_mode():
        model(ids[:, :8], logits_to_keep=1)  # weights come into memory when they are first used

    def read() -> None:
        with torch.inference_mode():
            if way == "ours":
                from tokenry.model.cache.h2o import H2O

                cache = H2O(heavy=0.1, recent=0.1).cache(model)
                model(ids, past_key_values=cache, logits_to_keep=1)
            else:
                from kvpress import ObservedAttentionPress  # type: ignore[import-not-found]

                with ObservedAttentionPress(compression_ratio=0.8)(model):
                    model(ids, past_key_values=DynamicCache(), logits_to_keep=1)

    print(json.dumps({"bytes": peak_extra_memory(read)}))


WORKERS: dict[str, Any] = {"presses": presses, "memory": memory}

if __name__ == "__main__":
    main()
