"""JSON of ten schemas from SmolLM2: valid, fast, and how much the constraint costs.

Three comparisons, all with the same weights (SmolLM2 from Tokenry's cache), prompts, schemas,
temperature (1, nothing cut off) and token limit, each library in a process of its own, one after
the other:

- *overhead*: masked generation of every schema against unconstrained generation of as many tokens
  here (no peer);
- *one text*: masking, one sequence, against outlines 1.3 (its transformers backend and default JSON
  engine). Reading a schema is not counted, on either side: the time to the first text is a row of
  its own;
- *eight texts*: AWRS with sequential Monte Carlo against genlm-control 0.4.1
  (`AWRS(llm, JsonSchema).smc`): the same particles and resampling threshold. A token counts for
  each text that holds it in the end. By default of one schema, `--particles-schema person`: on some
  of the others the peer does not finish within minutes. (`--particles 0` leaves this out.)

A text is valid if jsonschema accepts it; texts that the limit cut off are counted apart. The peers
run under `--peer-python` or TOKENRY_PEER_PYTHON, the interpreter of an environment in which
`pip install outlines==1.3.* genlm-control==0.4.1` was done.

    python benchmarks/constraints.py [--peer-python PATH] [--runs 2] [--schemas FILE] [--json]
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from side_by_side import arguments, compare, has_peer, report, run_apart

SCHEMAS = Path(__file__).with_name("schemas.json")
PROMPT = "Write a JSON text that satisfies this JSON schema. Only the JSON.\n"
LIMIT = 96


def prompt_ids(folder: str, schema: dict) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": PROMPT + json.dumps(schema)}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def summary(texts: list[tuple[str | None, dict]], tokens: int, seconds: float) -> dict:
    """texts: each with its schema; None for one that the limit cut off."""
    ended = [pair for pair in texts if pair[0] is not None]
    return {
        "rate": tokens / seconds,
        "ended": len(ended) / len(texts),
        "texts": [[text, schema] for text, schema in ended],
    }


def masked_ours(folder: str, schemas: dict[str, dict], runs: int) -> dict:
    import tokenry
    from tokenry.decode.constraints.base import Anything
    from tokenry.decode.constraints.grammar import Grammar
    from tokenry.decode.generate import generate

    loaded = tokenry.load(folder)
    endless = Anything(loaded.model.config.vocab_size, [])
    free = constrained = 0.0
    first, tokens, texts = 0.0, 0, []
    for name, schema in schemas.items():
        ids = prompt_ids(folder, schema)

        def once(constraint: object, limit: int, seed: int, ids: list[int] = ids):
            start = time.perf_counter()
            found = generate(
                loaded, ids, constraint, "mask", max_new_tokens=limit, seed=seed, must_end=False
            )
            return found, time.perf_counter() - start

        start = time.perf_counter()
        grammar = Grammar.json_schema(schema, loaded.tokenizer)
        once(grammar, 1, 0)
        first = max(first, time.perf_counter() - start)
        for seed in range(runs):
            found, seconds = once(grammar, LIMIT, seed)
            constrained += seconds
            tokens += found.tokens
            texts.append((found.texts[0] if found.finished[0] else None, schema))
            free += once(endless, found.tokens, seed)[1]
        print(name, texts[-1][0], file=sys.stderr)
    return {
        **summary(texts, tokens, constrained),
        "overhead": constrained / free - 1.0,
        "free": tokens / free,
        "first": first,
    }


def masked_peer(folder: str, schemas: dict[str, dict], runs: int) -> dict:
    import outlines
    import torch
    from outlines.types import JsonSchema
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    calls = [0]  # of the model, one for each token that was drawn
    network.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    model = outlines.from_transformers(network, tokenizer)
    tokens, total, first, texts, refused = 0, 0.0, 0.0, [], []
    for name, schema in schemas.items():
        prompt = tokenizer.decode(prompt_ids(folder, schema))
        start = time.perf_counter()
        try:
            generator = outlines.Generator(model, JsonSchema(schema))
        except Exception as error:
            refused.append(f"{name}: {error}")
            continue
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        generator(prompt, max_new_tokens=1, **sampling)
        first = max(first, time.perf_counter() - start)
        for seed in range(runs):
            torch.manual_seed(seed)
            calls[0], start = 0, time.perf_counter()
            text = generator(prompt, max_new_tokens=LIMIT, **sampling)
            total += time.perf_counter() - start
            tokens += calls[0]
            texts.append((text if calls[0] < LIMIT else None, schema))
        print(name, texts[-1][0], file=sys.stderr)
    return {**summary(texts, tokens, total), "first": first, "refused": refused}


def complete(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def particles_ours(folder: str, schemas: dict[str, dict], particles: int) -> dict:
    import tokenry
    from tokenry.decode.constraints.grammar import Grammar
    from tokenry.decode.generate import generate

    loaded = tokenry.load(folder)
    sampled = checks = masks = held = 0
    seconds, texts = 0.0, []
    for schema in schemas.values():
        grammar = Grammar.json_schema(schema, loaded.tokenizer)
        ids = prompt_ids(folder, schema)
        for limit, counted in ((2, False), (LIMIT, True)):
            start = time.perf_counter()
            found = generate(loaded, ids, grammar, "awrs", particles, limit, must_end=False)
            if counted:
                seconds += time.perf_counter() - start
                held += sum(map(len, found.ids)) + sum(found.finished)
                sampled, checks = sampled + found.tokens, checks + found.checks
                masks += found.masks
                ended = zip(found.texts, found.finished, strict=True)
                texts += [(text if done else None, schema) for text, done in ended]
    return {
        **summary(texts, held, seconds),
        "checks": checks / sampled,
        "masks": masks / sampled,
    }


def particles_peer(folder: str, schemas: dict[str, dict], particles: int) -> dict:
    import asyncio

    from genlm.control import AWRS, JsonSchema, PromptedLLM

    async def measured() -> dict:
        held, seconds, texts, refused = 0, 0.0, [], []
        for name, schema in schemas.items():
            ids = prompt_ids(folder, schema)
            llm = PromptedLLM.from_name(folder, backend="hf", prompt_ids=ids)
            try:
                constraint = JsonSchema(schema).coerce(llm, f=b"".join)
                for limit, counted in ((2, False), (LIMIT, True)):
                    sampler = AWRS(llm, constraint, seed=0)
                    start = time.perf_counter()
                    found = await sampler.smc(
                        n_particles=particles, ess_threshold=0.5, max_tokens=limit
                    )
                    if counted:
                        seconds += time.perf_counter() - start
                    await sampler.cleanup()
            except Exception as error:
                refused.append(f"{name}: {error}")
                continue
            held += sum(map(len, found.contexts))
            for context, log_weight in found:
                ended = log_weight > float("-inf") and not isinstance(context[-1], bytes)
                pieces = [bytes(piece) for piece in context[:-1]] if ended else []
                text = b"".join(pieces).decode(errors="replace") if ended else None
                texts.append((text, schema))
            print(name, texts[-1][0], file=sys.stderr)
        return {**summary(texts, held, seconds), "refused": refused}

    return asyncio.run(measured())


MEASURES: dict[str, Callable[[str, dict[str, dict], int], dict]] = {
    "masked-ours": masked_ours,
    "masked-peer": masked_peer,
    "particles-ours": particles_ours,
    "particles-peer": particles_peer,
}


def valid(result: dict) -> float:
    """Of the texts that ended, the share that jsonschema accepts."""
    from jsonschema import Draft202012Validator

    good = 0
    for text, schema in result["texts"]:
        good += complete(text) and Draft202012Validator(schema).is_valid(json.loads(text))
    return good / max(len(result["texts"]), 1)


def rows(name: str, ours: dict, peer: dict | None, unit: str) -> list:
    found = [compare(name, ours["rate"], peer and peer["rate"], unit)]
    for title, share in (("ended within the limit", "ended"), ("valid, of the ended", "valid")):
        sides = [
            side and (valid(side) if share == "valid" else side[share]) for side in (ours, peer)
        ]
        found.append(compare(f"{name}: {title}", sides[0], sides[1], "share"))
    for refusal in (peer or {}).get("refused", []):
        print(f"{name}: the peer refused {refusal}", file=sys.stderr)
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=os.environ.get("TOKENRY_PEER_PYTHON"))
    parser.add_argument("--schemas", default=str(SCHEMAS), help="JSON object: name -> schema")
    parser.add_argument("--runs", type=int, default=2, help="texts of each schema, one sequence")
    parser.add_argument("--particles", type=int, default=8, help="0: leave this comparison out")
    parser.add_argument(
        "--particles-schema", default="person", help="the schema of that comparison; all: every one"
    )
    parser.add_argument("--measure", nargs=2, metavar=("WHICH", "FOLDER"), help="used internally")
    options = parser.parse_args()
    if options.measure:
        which, folder = options.measure
        schemas = json.loads(Path(options.schemas).read_text())
        masked = which.startswith("masked")
        if not masked and options.particles_schema != "all":
            schemas = {options.particles_schema: schemas[options.particles_schema]}
        count = options.runs if masked else options.particles
        print(json.dumps(MEASURES[which](folder, schemas, count)))
        return

    from tokenry.model.hub import folder as model_folder

    words = [str(model_folder("smollm2")), "--schemas", options.schemas]
    words += ["--runs", str(options.runs), "--particles", str(options.particles)]
    words += ["--particles-schema", options.particles_schema]

    def both(kind: str, module: str) -> tuple[dict, dict | None]:
        peer = None
        if has_peer(options.peer_python, module):
            python = options.peer_python
            peer = run_apart(__file__, "--measure", f"{kind}-peer", *words, python=python)
        return run_apart(__file__, "--measure", f"{kind}-ours", *words), peer

    ours, peer = both("masked", "outlines")
    table = [
        compare("masked: slower than unconstrained", ours["overhead"], None, "share"),
        compare("unconstrained, one text", ours["free"], None, "tokens/s"),
        *rows("one text", ours, peer, "tokens/s"),
        compare("slowest schema to its first token", ours["first"], peer and peer["first"], "s"),
    ]
    if options.particles:
        ours, peer = both("particles", "genlm.control")
        table += [
            *rows(f"{options.particles} texts", ours, peer, "tokens/s"),
            compare("constraint checks", ours["checks"], None, "per token"),
            compare("vocabulary masks", ours["masks"], None, "per token"),
        ]
    title = "Ten JSON schemas: ours against outlines (one text) and genlm-control (particles)"
    report(table, options.json, title)


if __name__ == "__main__":
    main()
