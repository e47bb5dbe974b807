"""Byte-exact probabilities: prompts that end inside a word, and models that share no vocabulary.

First, lines of the standard library's source are cut inside a name, and SmolLM2 completes the name
greedily: from the tokens of the cut prompt, with the last of them healed (taken back, and replaced
by the likeliest token that begins with its bytes), and byte by byte. Second, bits per byte of a
short text under SmolLM2, Gemma 3 and the average of their next-byte distributions.
"""

from __future__ import annotations

import math

from tokenry.decode.bytes import ByteEnsemble, ByteModel, complete
from tokenry.decode.bytes.healing import complete_healed
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.papers.base import Paper
from tokenry.tasks.suites.cut_names import cut_names

TEXT = (
    "The harbour was quiet that morning. A few fishing boats had come in before dawn, and their "
    "crews were mending nets on the quay."
)
BYTES, HEALED, TOKENS = "bytes", "token healing", "tokens"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Forty-eight names, and one text."""
    names, most, length, second = at(
        scale, full=(48, 8, len(TEXT), "gemma3-270m"), smoke=(2, 2, 4, "smollm2")
    )
    loaded = language_model(scale)
    small, other = ByteModel(*loaded), ByteModel(*language_model(scale, second))
    cuts = cut_names(names, seed)
    written = {
        TOKENS: [complete_healed(*loaded, cut.prompt, most, healed=0) for cut in cuts],
        HEALED: [complete_healed(*loaded, cut.prompt, most) for cut in cuts],
        BYTES: [complete(small, cut.prompt, len(cut.rest), temperature=0).data for cut in cuts],
    }
    right = {
        way: [text.startswith(cut.rest.encode()) for text, cut in zip(texts, cuts, strict=True)]
        for way, texts in written.items()
    }
    both, data = ByteEnsemble([small, other]), TEXT.encode()[:length]
    state, bits = both.start(data[:1]), {"SmolLM2": [], "Gemma 3": [], "average": []}
    for byte in data[1:]:
        logprobs = [
            -math.inf if part is None else float(model.next_byte_logprobs(part)[byte])
            for model, part in zip(both.models, state.states, strict=True)
        ]
        average = math.log(sum(map(math.exp, logprobs)) / 2)
        for lost, logprob in zip(bits.values(), (*logprobs, average), strict=True):
            lost.append(-logprob / math.log(2))
        state = both.advance(state, byte)
    single = [(one + two) / 2 for one, two in zip(bits["SmolLM2"], bits["Gemma 3"], strict=True)]
    bits["mean of the two models"] = single
    table = Table()
    for way, flags in right.items():
        table.add(f"names completed, {way}", sum(flags) / names, "share", seed)
    table.add_all({n: sum(lost) / len(lost) for n, lost in bits.items()}, "bits per byte", seed)
    return verdict(
        table,
        {
            "names completed exactly: bytes at least as often as token healing": paired(
                right[BYTES], right[HEALED]
            ),
            "token healing more often than tokens": paired(right[HEALED], right[TOKENS]),
            "bits per byte of the averaged models are below the mean of the two": paired(
                single, bits["average"]
            ),
        },
        plots=[
            bars({way: {"names": sum(flags) / names} for way, flags in right.items()}, "share"),
            bars({name: {"text": table.mean(name)} for name in bits}, "bits per byte"),
        ],
    )


PAPER = Paper(
    number=35,
    key="byte-exact",
    title="Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model "
    "Ensembles",
    arxiv="2410.09303",
    role="sampler",
    family="control",
    claim="Next-byte probabilities, exact over all encodings, complete prompts cut inside a word "
    "better than token healing, and let models with different vocabularies be averaged.",
    reproduce=reproduce,
)
