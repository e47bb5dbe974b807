"""Numbers that functions take are checked before anything is done with them."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.core.signals import entropy
from tokenry.learn.recipes.fspad import eagle_distill_loss, train_feature_head
from tokenry.learn.recipes.prefix_classifier import train_prefix_classifier
from tokenry.measure.audit.length_inflation import generate_from
from tokenry.measure.audit.report import audit_reachability
from tokenry.measure.audit.verbosity import length_cap
from tokenry.measure.ngram_style import distinct_n
from tokenry.measure.probes.critical_tokens import contrastive_estimation, critical_token

CALLS = {
    "gamma": (lambda **o: contrastive_estimation(None, None, **o), (-0.1, math.inf)),  # type: ignore
    "max_later": (lambda **o: critical_token([0.0], **o), (-0.1, 1.0)),
    "n": (lambda **o: distinct_n([1, 2], **o), (0, 1.5)),
    "top_p": (lambda **o: generate_from(None, None, None, (), 3, **o), (0.0, 1.1)),  # type: ignore
    "k": (lambda **o: audit_reachability(None, None, **o), (-1, 0.5)),
    "candidates": (lambda **o: audit_reachability(None, None, **o), (0,)),
    "percentile": (lambda **o: length_cap([3], **o), (0.0, 101.0)),
    "logit_weight": (lambda **o: eagle_distill_loss(*[None] * 5, **o), (-1.0, math.inf)),  # type: ignore
    "noise": (lambda **o: train_feature_head(None, [], **o), (-1.0, math.inf)),
    "steps": (lambda **o: train_prefix_classifier(None, [], [], [], **o), (0, 2.5)),
    "learning_rate": (lambda **o: train_prefix_classifier(None, [], [], [], **o), (0.0, math.inf)),
    "memory": (lambda **o: entropy(torch.zeros(1, 2), **o), (0, 0.5)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_number_out_of_range_is_an_error_that_names_it(name):
    call, wrong = CALLS[name]
    for value in (*wrong, math.nan, "many"):
        with pytest.raises(InputError, match=rf"^{name} is .*must be a (whole )?number in"):
            call(**{name: value})
