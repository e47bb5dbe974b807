"""Hyper-parameters of everything in `model` that are no number, or out of their range."""

import math

import pytest

from tokenry.core.errors import InputError
from tokenry.model.adaptive.dual_ffn import DuoLLM
from tokenry.model.adaptive.informed_routing import InformedRouting
from tokenry.model.adaptive.routing_rules import Lowest, Sampled
from tokenry.model.adaptive.skipdecode import SkipDecode
from tokenry.model.attention.token_sparse import TokenSparse
from tokenry.model.attribution.decompx import DecompX
from tokenry.model.attribution.frugalprompt import FrugalPrompt
from tokenry.model.attribution.globenc import GlobEnc
from tokenry.model.attribution.surprisal import Surprisal
from tokenry.model.cache.full import Full
from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.tokenselect import TokenSelect
from tokenry.model.heads.fspad import FeatureHead
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.model.layers.gated_lora import GatedLoRA
from tokenry.model.memory.hidden_state_optimization import HiddenStateOptimizer
from tokenry.model.memory.recurrence import WindowRecurrence
from tokenry.model.memory.still import Still

NAN, INF = math.nan, math.inf
NO_NUMBER = (NAN, INF, -INF, "3", True)
COUNT = (*NO_NUMBER, 0, -1, 1.5)  # of something: at least 1
SHARE = (NAN, -0.1, 1.1, INF, -1, "3", True)  # of tokens, or how many


def head(**options):
    return FeatureHead(**({"width": 8, "heads": 1} | options))


def lora(**options):
    return GatedLoRA({"a": (2, 2)}, **options)


def skip(**options):
    return SkipDecode(**({"max_layers": 4, "min_layers": 2, "length": 8} | options))


def optimizer(**options):
    return HiddenStateOptimizer(None, **options)


def frugal(**options):
    return FrugalPrompt(None, **options)


def lowest(**options):
    return Lowest(**({"by": "error", "sparsity": 0.5} | options))


CASES = [
    *((DuoLLM, name, values) for name, values in {"inner": COUNT, "seed": NO_NUMBER}.items()),
    *((InformedRouting, name, COUNT) for name in ("rank", "hidden")),
    *((InformedRouting, name, ("no", NAN, 1)) for name in ("activation", "mode")),
    (InformedRouting, "seed", NO_NUMBER),
    (Sampled, "tau", (*NO_NUMBER, 0, -1)),
    (lowest, "sparsity", (*NO_NUMBER, -0.1, 1.1)),
    (lowest, "by", ("no", None)),
    *((skip, name, COUNT) for name in ("max_layers", "min_layers", "length", "warmup")),
    (skip, "budgets", ([4, NAN], [INF, 3], [4, 2.5], [4, 0], [])),
    *((method, "max_tokens", COUNT) for method in (DecompX, GlobEnc, Surprisal)),
    (frugal, "percent", (*NO_NUMBER, -1, 101)),
    (frugal, "mode", ("no",)),
    (frugal, "reduce", ("no",)),
    *((H2O, name, SHARE) for name in ("heavy", "recent")),
    *((TokenSelect, name, SHARE) for name in ("n_init", "k", "n_local")),
    *((method.of_size, "size", (*SHARE, 0, 0.0)) for method in (H2O, TokenSelect)),
    (Full.of_size, "size", (1, 0.5)),
    (TokenSelect, "reuse", (*NO_NUMBER, -1.1, 2.1)),
    (TokenSelect, "pool", (*NO_NUMBER, -1, 2, 2.5)),
    (TokenSelect, "chunk", COUNT),
    (TokenSparse, "tau", (*NO_NUMBER, -0.1, 1)),
    (TokenSparse, "min_tokens", (*NO_NUMBER, -1, 1.5)),
    (TokenSparse, "window", COUNT),
    (TokenSparse, "pool", (*COUNT, 2)),
    (Still, "chunk", COUNT),
    (Still, "topk", (*NO_NUMBER, -1, 65, 1.5)),
    *((head, name, COUNT) for name in ("heads", "inner", "expansion")),
    (lora, "rank", COUNT),
    (lora, "alpha", (*NO_NUMBER, 0, -1)),
    (optimizer, "lr", (*NO_NUMBER, -1)),
    (optimizer, "betas", ((0.9, 1), (NAN, 0.9), (-0.1, 0.9), (0.9, INF))),
    (optimizer, "eps", (*NO_NUMBER, 0)),
    *((optimizer, name, COUNT) for name in ("segment", "memory")),
]


@pytest.mark.parametrize(
    ("method", "name", "values"),
    CASES,
    ids=[f"{getattr(method, '__qualname__', method)}-{name}" for method, name, _ in CASES],
)
def test_what_is_no_number_or_out_of_range_is_refused_by_name(method, name, values):
    for value in values:
        with pytest.raises(InputError, match=name):
            method(**{name: value})


def test_what_is_made_for_a_model_is_refused_as_well(tiny_llama):
    for value in COUNT:
        with pytest.raises(InputError, match="k is"):
            MaskPredictor.of(tiny_llama, k=value)
        for name in ("window", "horizon", "inner"):
            with pytest.raises(InputError, match=f"{name} is"):
                WindowRecurrence(tiny_llama, **{name: value})
