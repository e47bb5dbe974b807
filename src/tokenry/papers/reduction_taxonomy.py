"""Where each of the library's token reductions stands, along the same seven axes.

    family        the shape of A in X' = A X: select, merge, pool, recompute, or dynamic, where A
                  changes with layer, head or query and nothing is lost for good
    where         what the tokens are when they are reduced
    signal        what decides
    granularity   what is kept or dropped at once
    training      none, tuned, or learned with the model's weights
    reversible    whether what was left out can come back
    modality      what the tokens may be of

Source of the axes: "Token Reduction Should Go Beyond Efficiency in Generative Models: From Vision,
Language to Multimodality" (arXiv 2505.18227). The placing is ours. `docs/guide/reduction.md` shows
`table()`.
"""

from dataclasses import astuple, dataclass, fields
from typing import Literal

Family = Literal["select", "merge", "pool", "recompute", "dynamic"]


@dataclass(frozen=True)
class Record:
    """One method; place: its module and name, below `tokenry`."""

    method: str
    paper: str
    place: str
    family: Family
    where: str
    signal: str
    granularity: str
    training: str
    reversible: bool
    modality: str


REDUCER_TAXONOMY = (
    Record(
        "top scores", "", "core.reduction.select_top",
        "select", "any", "any score", "token", "none", False, "any",
    ),
    Record(
        "matching", "2210.09461", "core.reduction.bipartite_soft_matching",
        "merge", "any", "similarity", "token", "none", False, "any",
    ),
    Record(
        "attention pooling", "", "core.reduction.attention_pooling",
        "pool", "any", "attention", "token", "none or tuned", False, "any",
    ),
    Record(
        "FrugalPrompt", "2510.16439", "model.attribution.frugalprompt.FrugalPrompt",
        "select", "input", "attribution", "word", "none", False, "text",
    ),
    Record(
        "H2O", "2306.14048", "model.cache.h2o.H2O",
        "select", "KV cache", "attention received", "token and key head", "none", False, "text",
    ),
    Record(
        "Extensible Tokenization", "2401.07793", "model.memory.extensible.ExtensibleTokenizer",
        "recompute", "input", "position in the group", "group of k", "tuned compressor", False,
        "text",
    ),
    Record(
        "TokenSelect", "2411.02886", "model.cache.tokenselect.TokenSelect",
        "dynamic", "KV cache", "query relevance", "token, per layer", "none", True, "text",
    ),
    Record(
        "Token Sparse Attention", "2602.03216", "model.attention.token_sparse.TokenSparse",
        "dynamic", "attention layer", "attention of the last queries", "token and head", "none",
        True, "text",
    ),
    Record(
        "STILL", "2602.02180", "model.memory.still.Still",
        "dynamic", "attention layer", "self-attention", "token and head", "tuned", False, "text",
    ),
    Record(
        "Informed Routing", "2510.13831", "model.adaptive.informed_routing.InformedRouting",
        "dynamic", "attention and feed-forward units", "forecasting error", "token and unit",
        "tuned router", True, "text",
    ),
    Record(
        "SkipDecode", "2307.02628", "model.adaptive.skipdecode.SkipDecode",
        "dynamic", "layers", "position", "token and layer", "none or tuned", True, "text",
    ),
)  # fmt: skip
"""A row for each method of the library that leaves tokens, or a token's computation, out.

STILL folds what it does not keep into a state of fixed size: it still counts, but not as a token.
"""


def table() -> list[str]:
    """The taxonomy as lines of a Markdown table."""
    titles = [field.name for field in fields(Record) if field.name not in ("paper", "place")]
    lines = [
        "| " + " | ".join([*titles, "in the library"]) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for record in REDUCER_TAXONOMY:
        method, paper, place, *axes, reversible, modality = astuple(record)
        link = f"[{method}](https://arxiv.org/abs/{paper})" if paper else method
        cells = [link, *axes, "yes" if reversible else "no", modality, f"`{place}`"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
