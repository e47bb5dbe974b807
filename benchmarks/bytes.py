"""Completing texts that end inside a word: forward passes and seconds for each token written.

Ours against genlm-bytes 0.2.0 (`ByteBeamState`, K = 5, pruning threshold 0.05, as its guide has
it), on the same weights (SmolLM2 from Tokenry's cache), prompts and number of bytes, the likeliest
byte each time; each in a process of its own. Ours is measured exact (tolerance 0) and with a
tolerance of 0.05, the share that the peer prunes. A token counts if the tokenizer writes it in the
completed text beyond those of the prompt.

Counted are the calls of the model and the tokens read in them, with the model's own hooks in both
processes, from the end of the prompt's reading on. A *forward-pass equivalent* is the time of a
plain step of one token with a cache, measured in the same process: seconds per token over seconds
of a step. The peer runs under `--peer-python` or TOKENRY_PEER_PYTHON, the interpreter of an
environment in which `pip install genlm-bytes==0.2.0` was done.

    python benchmarks/bytes.py [--peer-python PATH] [--json]
"""

import json
import os
import time

from side_by_side import arguments, compare, has_peer, report, run_apart

PROMPTS = [
    "The quick brown fox jum",
    "def fibonacci(n):\n    ret",
    "The capital of Fra",
    "Water boils at a tempera",
    "Once upon a time there was a lit",
    "The president of the Uni",
    "import numpy as np\nimport matplot",
    "She opened the door and wal",
]
BYTES = 24
BEAM = {"K": 5, "prune_threshold": 0.05}


class Counter:
    """Counts the calls of a model and the tokens that they read."""

    def __init__(self, model):
        self.calls = self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, positional, named):
        ids = named.get("input_ids", positional[0] if positional else None)
        self.calls, self.tokens = self.calls + 1, self.tokens + ids.numel()


def plain_step(model) -> float:
    """Seconds of one token with a cache of a few."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.arange(10, 26)[None], past_key_values=cache)
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def summary(tokenizer, model, written, counts, seconds) -> dict:
    def length(data: bytes) -> int:
        return len(tokenizer(data.decode(errors="ignore"))["input_ids"])

    tokens = sum(
        length(prompt.encode() + data) - length(prompt.encode()) + 1
        for prompt, data in zip(PROMPTS, written, strict=True)
    )  # the prompt's last token is completed, too
    return {
        "calls": counts[0] / tokens,
        "read": counts[1] / tokens,
        "seconds": seconds / tokens,
        "equivalents": seconds / tokens / plain_step(model),
        "texts": [data.decode(errors="replace") for data in written],
    }


def measure_ours(folder: str, tolerance: float) -> dict:
    import tokenry
    from tokenry.decode.bytes import ByteModel

    model, tokenizer = tokenry.load(folder)
    bytes_model = ByteModel(model, tokenizer, tolerance=tolerance)
    counter = Counter(model)

    def complete(prompt: str, count: int) -> tuple[bytes, list[int], float]:
        state = bytes_model.start(prompt)
        before = [counter.calls, counter.tokens]
        start, data = time.perf_counter(), b""
        for _ in range(count):
            byte = int(bytes_model.next_byte_logprobs(state)[:256].argmax())
            data, state = data + bytes([byte]), bytes_model.advance(state, byte)
        seconds = time.perf_counter() - start
        return data, [counter.calls - before[0], counter.tokens - before[1]], seconds

    for prompt in PROMPTS[:2]:
        complete(prompt, 4)
    done = [complete(prompt, BYTES) for prompt in PROMPTS]
    counts = [sum(entry[1][kind] for entry in done) for kind in (0, 1)]
    written = [entry[0] for entry in done]
    return summary(tokenizer, model, written, counts, sum(entry[2] for entry in done))


def measure_peer(folder: str) -> dict:
    import asyncio

    import torch
    from genlm.backend import load_model_by_name
    from genlm.bytes import BeamParams, ByteBeamState

    llm = load_model_by_name(folder, backend="hf", llm_opts={"hf_opts": {"dtype": torch.float32}})
    counter = Counter(llm.model)

    async def complete(prompt: str, count: int) -> tuple[bytes, list[int], float]:
        llm.clear_cache()
        # its vocabulary trie is made once; the state after the prompt is what is timed from
        beam = await initial.prefill(prompt.encode())
        before = [counter.calls, counter.tokens]
        start, data = time.perf_counter(), b""
        for _ in range(count):
            beam = beam.prune()
            logprobs = await beam.logp_next()
            byte = int(logprobs.ps[:256].argmax())
            data, beam = data + bytes([byte]), await (beam << byte)
        seconds = time.perf_counter() - start
        return data, [counter.calls - before[0], counter.tokens - before[1]], seconds

    async def measured() -> dict:
        nonlocal initial
        initial = await ByteBeamState.initial(llm, BeamParams(**BEAM))
        for prompt in PROMPTS[:2]:
            await complete(prompt, 4)
        done = [await complete(prompt, BYTES) for prompt in PROMPTS]
        await initial.cleanup()
        counts = [sum(entry[1][kind] for entry in done) for kind in (0, 1)]
        written = [entry[0] for entry in done]
        seconds = sum(entry[2] for entry in done)
        return summary(llm.tokenizer, llm.model, written, counts, seconds)

    initial = None
    return asyncio.run(measured())


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=os.environ.get("TOKENRY_PEER_PYTHON"))
    parser.add_argument("--measure", nargs=2, metavar=("WHICH", "FOLDER"), help="used internally")
    options = parser.parse_args()
    if options.measure:
        which, folder = options.measure
        found = measure_peer(folder) if which == "peer" else measure_ours(folder, float(which))
        print(json.dumps(found))
        return

    from tokenry.model.hub import folder as model_folder

    folder = str(model_folder("smollm2"))
    peer = None
    if has_peer(options.peer_python, "genlm.bytes"):
        peer = run_apart(__file__, "--measure", "peer", folder, python=options.peer_python)
    rows = []
    for name, tolerance in (("exact", "0"), ("tolerance 0.05", "0.05")):
        ours = run_apart(__file__, "--measure", tolerance, folder)
        rows += [
            compare(f"{what}, {name}", ours[key], peer and peer[key], unit)
            for what, key, unit in (
                ("model calls", "calls", "per token written"),
                ("tokens read", "read", "per token written"),
                ("forward-pass equivalents", "equivalents", "per token written"),
                ("time", "seconds", "s per token written"),
            )
        ]
        if peer:
            same = sum(a == b for a, b in zip(ours["texts"], peer["texts"], strict=True))
            rows.append(compare(f"equal completions, {name}", same / len(PROMPTS), None, "share"))
    report(rows, options.json, "Bytes: ours against genlm-bytes 0.2.0")


if __name__ == "__main__":
    main()
