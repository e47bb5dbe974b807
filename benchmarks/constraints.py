"""JSON under a schema by adaptive weighted rejection sampling with SMC, 8 particles.

Ours against genlm-control 0.4.1 (`AWRS(llm, JsonSchema).smc`): the same weights (SmolLM2 from
Tokenry's cache), prompt, schema, temperature, particles, resampling threshold and token limit,
each in a process of its own, one after the other. A token counts for each text that holds it in
the end. The peer runs under `--peer-python` or TOKENRY_PEER_PYTHON, the interpreter of
an environment in which `pip install genlm-control==0.4.1` was done.

    python benchmarks/constraints.py [--peer-python PATH] [--runs 2] [--json]
"""

import json
import os
import subprocess
import sys
import time

from side_by_side import arguments, compare, report, run_apart

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
PROMPT = "Write a JSON object about a person, with the fields name, age and city."
SETTINGS = {"particles": 8, "threshold": 0.5, "limit": 48}


def prompt_ids(folder: str) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": PROMPT}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def measure_ours(folder: str, runs: int) -> dict:
    import tokenry
    from tokenry.decode.constraints.grammar import Grammar
    from tokenry.decode.generate import generate

    loaded = tokenry.load(folder)
    schema = Grammar.json_schema(SCHEMA, loaded.tokenizer)
    ids = prompt_ids(folder)

    def once(limit: int, seed: int):
        return generate(
            loaded,
            ids,
            schema,
            particles=SETTINGS["particles"],
            max_new_tokens=limit,
            ess_threshold=SETTINGS["threshold"],
            seed=seed,
        )

    once(3, 0)
    seconds = tokens = sampled = checks = masks = 0
    texts = []
    for seed in range(runs):
        start = time.perf_counter()
        samples = once(SETTINGS["limit"], seed)
        seconds += time.perf_counter() - start
        tokens += sum(map(len, samples.ids)) + sum(samples.finished)
        sampled += samples.tokens
        checks, masks = checks + samples.checks, masks + samples.masks
        ended = zip(samples.texts, samples.finished, strict=True)
        texts += [text if done else None for text, done in ended]
    return {
        "rate": tokens / seconds,
        "checks": checks / sampled,
        "masks": masks / sampled,
        **quality(texts),
    }


def measure_peer(folder: str, runs: int) -> dict:
    import asyncio

    from genlm.control import AWRS, JsonSchema, PromptedLLM

    llm = PromptedLLM.from_name(folder, backend="hf", prompt_ids=prompt_ids(folder))
    schema = JsonSchema(SCHEMA).coerce(llm, f=b"".join)

    async def once(limit: int, seed: int):
        sampler = AWRS(llm, schema, seed=seed)
        try:
            return await sampler.smc(
                n_particles=SETTINGS["particles"],
                ess_threshold=SETTINGS["threshold"],
                max_tokens=limit,
            )
        finally:
            await sampler.cleanup()

    async def measured() -> dict:
        await once(3, 0)
        seconds = tokens = 0
        texts = []
        for seed in range(runs):
            start = time.perf_counter()
            found = await once(SETTINGS["limit"], seed)
            seconds += time.perf_counter() - start
            tokens += sum(map(len, found.contexts))
            for context, log_weight in found:
                ended = log_weight > float("-inf") and not isinstance(context[-1], bytes)
                pieces = [bytes(piece) for piece in context[:-1]] if ended else []
                texts.append(b"".join(pieces).decode(errors="replace") if ended else None)
        return {"rate": tokens / seconds, **quality(texts)}

    return asyncio.run(measured())


def quality(texts: list[str | None]) -> dict:
    """Of all texts, the share that ended; of those, the share that is an object of the schema."""
    ended = [text for text in texts if text is not None]
    return {
        "ended": len(ended) / len(texts),
        "valid": sum(map(is_person, ended)) / max(len(ended), 1),
    }


def is_person(text: str) -> bool:
    try:
        person = json.loads(text)
    except json.JSONDecodeError:
        return False
    return (
        isinstance(person, dict)
        and person.keys() == {"name", "age", "city"}
        and isinstance(person["name"], str)
        and isinstance(person["age"], int)
        and isinstance(person["city"], str)
    )


def has_peer(python: str | None) -> bool:
    if not python:
        why = "no peer: pass --peer-python or set TOKENRY_PEER_PYTHON to an interpreter"
    else:
        probe = [python, "-c", "import genlm.control"]
        try:
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return True
            why = f"no peer: {python} cannot import genlm.control; install it for an interpreter"
        except OSError as error:
            why = f"no peer: {python} does not run ({error.strerror}); give an interpreter"
    print(f"{why} with genlm-control==0.4.1. Ours is measured alone.", file=sys.stderr)
    return False


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=os.environ.get("TOKENRY_PEER_PYTHON"))
    parser.add_argument("--runs", type=int, default=2, help="timed runs of each")
    parser.add_argument("--measure", nargs=2, metavar=("WHICH", "FOLDER"), help="used internally")
    options = parser.parse_args()
    if options.measure:
        which, folder = options.measure
        measure = measure_ours if which == "ours" else measure_peer
        print(json.dumps(measure(folder, options.runs)))
        return

    from tokenry.model.hub import folder as model_folder

    words = (str(model_folder("smollm2")), "--runs", str(options.runs))
    peer = None
    if has_peer(options.peer_python):
        peer = run_apart(__file__, "--measure", "peer", *words, python=options.peer_python)
    ours = run_apart(__file__, "--measure", "ours", *words)
    both = [
        compare(name, ours[key], peer and peer[key], unit)
        for name, key, unit in (
            ("JSON schema, 8 particles", "rate", "tokens/s"),
            ("texts that ended within the limit", "ended", "share"),
            ("ended texts that are valid", "valid", "share"),
        )
    ]
    alone = [
        compare("constraint checks", ours["checks"], None, "per token"),
        compare("vocabulary masks", ours["masks"], None, "per token"),
    ]
    report([*both, *alone], options.json, "AWRS with SMC: ours against genlm-control 0.4.1")


if __name__ == "__main__":
    main()
