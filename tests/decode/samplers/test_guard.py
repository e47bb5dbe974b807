"""GUARD against enumeration: identities of the divergences, and exact texts from any proposal."""

import math

import pytest
import torch

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.generate import generate
from tokenry.decode.samplers.divergences import guard_divergences
from tokenry.decode.samplers.guard import Guard
from tokenry.decode.samplers.request import Request
from tokenry.lab.token_rule import OddSum
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum

BASE, OTHER = (ToyLM(vocab_size=4, order=2, eos=0, scale=1.0, seed=seed) for seed in (3, 8))
LIMIT = 4
TRUTH, LOG_Z = BASE.conditional(odd_sum, LIMIT)


def prompted(model):
    return ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))


def asked(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"constraint": OddSum(), "max_new_tokens": LIMIT, **options}
    return Request(prompted(BASE), generator=generator, **options)


def enumerated(base, proposal, b):
    """(log a - log a', g, g', Z, Z') of distributions over the same texts."""
    z, z_proposal = float((base * b).sum()), float((proposal * b).sum())
    return (base / proposal).log(), base * b / z, proposal * b / z_proposal, z, z_proposal


def kl(p, q):
    return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())


def test_divergences_are_those_of_the_definition():
    """On eight texts, with the expectations taken exactly."""
    generator = torch.Generator().manual_seed(0)
    base, proposal = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    base, proposal = base / base.sum(), proposal / proposal.sum()
    b = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0], dtype=torch.float64)
    ratio, g, guarded, z, z_proposal = enumerated(base, proposal, b)
    inside = b > 0
    # each valid text as many times as its share of 10^6, which softmax weights express exactly
    found = guard_divergences(
        ratio[inside], ratio[inside], math.log(z), math.log(z_proposal), g[inside].log()
    )
    assert found.target_output == pytest.approx(kl(g, guarded), abs=1e-10)
    assert found.target_proposal == pytest.approx(kl(g, proposal), abs=1e-10)
    assert found.target_proposal == pytest.approx(
        found.target_output - math.log(z_proposal), abs=1e-10
    )
    uniform = guarded[inside] / guarded[inside].sum()
    counts = (uniform * 1e4).round().long()
    many = ratio[inside].repeat_interleave(counts)
    found = guard_divergences(many, many, math.log(z), math.log(z_proposal))
    assert found.output_target == pytest.approx(kl(guarded, g), abs=1e-3)


def test_the_model_as_its_own_proposal():
    """a = (1/2, 1/4, 1/4) and b = (0, 1, 1): KL(g || a) = ln 2, and nothing is distorted."""
    ratio = torch.zeros(2, dtype=torch.float64)
    found = guard_divergences(ratio, ratio, math.log(0.5), math.log(0.5))
    assert (found.target_output, found.output_target) == (0.0, 0.0)
    assert found.target_proposal == pytest.approx(math.log(2))
    assert found.acceptance == 0.5


@pytest.mark.parametrize("beta", [0.0, 1.5])
def test_texts_of_a_foreign_proposal_are_properly_weighted(beta):
    """Every text's expected weight is its probability: six standard errors over 50 calls."""
    calls, particles = 50, 10
    exact = {text: p * math.exp(LOG_Z) for text, p in TRUTH.items()}
    found = {text: [0.0] * calls for text in exact}
    for call in range(calls):
        samples = Guard(decoding=prompted(OTHER), beta=beta)(asked(call), particles)
        weights = samples.log_weights.exp().tolist()
        assert all(odd_sum(tuple(ids)) for ids in samples.ids)
        for ids, weight in zip(samples.ids, weights, strict=True):
            found[tuple(ids)][call] += weight / particles
    for text, truth in exact.items():
        values = torch.tensor(found[text], dtype=torch.float64)
        error = max(float(values.std()), math.sqrt(truth / particles)) / math.sqrt(calls)
        assert abs(float(values.mean()) - truth) < 6 * error, text


def test_a_large_beta_gives_the_target_itself_and_the_rate_that_theory_says():
    """beta >= max a / a': equal weights, and acceptance Z / beta."""
    ratios = [BASE.texts(LIMIT)[text] - OTHER.texts(LIMIT)[text] for text in TRUTH]
    beta = 1.01 * math.exp(max(ratios))
    guard = Guard(decoding=prompted(OTHER), beta=beta, rows=512, max_trials=10**6)
    samples = guard(asked(4), 150)
    assert samples.log_weights.unique().numel() == 1
    rate = math.exp(LOG_Z) / beta
    spread = math.sqrt((1 - rate) / 150)
    assert samples.acceptance == pytest.approx(rate, rel=6 * spread)
    for text, p in TRUTH.items():
        share = sum(tuple(ids) == text for ids in samples.ids) / 150
        assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / 150) + 1e-9


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_divergences_estimated_from_samples_are_those_of_enumeration(beta):
    texts = list(TRUTH)
    base = torch.tensor([BASE.texts(LIMIT)[text] for text in texts], dtype=torch.float64).exp()
    proposal = torch.tensor([OTHER.texts(LIMIT)[t] for t in texts], dtype=torch.float64).exp()
    accepted = torch.minimum(proposal, base / beta) if beta else proposal
    g, output = base / base.sum(), accepted / accepted.sum()
    guard = Guard(decoding=prompted(OTHER), beta=beta, rows=512, max_trials=10**6)
    found = guard(asked(7), 1500).divergences
    assert found.target_output == pytest.approx(kl(g, output), abs=0.15)
    assert found.output_target == pytest.approx(kl(output, g), abs=0.15)
    to_proposal = float((g * (g / proposal).log()).sum())
    assert found.target_proposal == pytest.approx(to_proposal, abs=0.15)
    assert found.acceptance == pytest.approx(float(accepted.sum()), rel=0.2)


def test_without_a_proposal_it_is_rejection():
    samples = Guard()(asked(2), 20)
    assert samples.log_ratio.tolist() == [0.0] * 20
    assert samples.log_weights.unique().numel() == 1
    assert samples.divergences.target_output == pytest.approx(0.0, abs=1e-9)


def test_few_tries_leave_dead_texts_and_none_is_an_error():
    found = Guard(decoding=prompted(OTHER), max_trials=20)(asked(0), 50)
    assert len(found.ids) == 50
    dead = found.log_weights == -math.inf
    assert 30 <= int(dead.sum()) < 50
    assert not found.log_weights.isnan().any()
    with pytest.raises(ConstraintError, match="none of 5 texts"):
        Guard(decoding=prompted(OTHER), max_trials=5)(asked(max_new_tokens=1), 2)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="beta"):
        Guard(beta=-1.0)
    with pytest.raises(InputError, match="beside"):
        Guard(prompt="p", decoding=prompted(OTHER))
    with pytest.raises(InputError, match="loaded"):
        Guard(prompt=[1])(asked(), 2)


# ---- transformers: prompts, other models, adapters on the same weights


def test_another_prompt_is_corrected_for(tiny_llama_text, tiny_tokenizer):
    """The ratio is that of the texts' probabilities after the two prompts."""
    constraint = _Even(len(tiny_tokenizer))
    options = {"max_new_tokens": 3, "must_end": False, "seed": 3, "temperature": 0.8}
    loaded = tiny_llama_text, tiny_tokenizer
    found = generate(loaded, [5, 9], constraint, Guard(prompt=[30, 31, 32]), 20, **options)
    assert found.acceptance == pytest.approx(found.accepted / found.tries, abs=0.1)
    for ids, ratio, weight in zip(
        found.ids, found.log_ratio.tolist(), found.log_weights.tolist(), strict=True
    ):
        assert all(token % 2 == 0 for token in ids)
        exact = _logprob(tiny_llama_text, [5, 9], ids) - _logprob(
            tiny_llama_text, [30, 31, 32], ids
        )
        assert ratio == pytest.approx(exact, abs=1e-3)
        assert weight == pytest.approx(math.log(20 / (found.tries - 1)) + exact, abs=1e-3)


def test_an_adapter_on_the_same_weights_is_a_proposal(tiny_llama_text, tiny_tokenizer):
    """The target is the model without the adapter, whether or not the adapter is on."""
    import copy

    from peft import LoraConfig, get_peft_model

    plain = tiny_llama_text
    shared = copy.deepcopy(plain)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(shared, config).eval()
    options = {"max_new_tokens": 3, "must_end": False, "seed": 1}
    constraint = _Even(len(tiny_tokenizer))
    apart = generate(
        (plain, tiny_tokenizer), [5, 9], constraint, Guard(model=adapted), 8, **options
    )
    loaded = (shared, tiny_tokenizer)
    together = generate(loaded, [5, 9], constraint, Guard(model=adapted), 8, **options)
    assert together.ids == apart.ids
    torch.testing.assert_close(together.log_weights, apart.log_weights, atol=1e-3, rtol=0)
    assert together.log_ratio.abs().max() > 0.05
    with torch.no_grad():  # the adapter is on again
        logits = shared(torch.tensor([[5, 9]])).logits
        assert not torch.allclose(logits, plain(torch.tensor([[5, 9]])).logits, atol=1e-2)


def _logprob(model, prompt, ids):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logprobs = (logits.double() / 0.8).log_softmax(-1)
    return float(logprobs.gather(-1, torch.tensor(ids)[:, None]).sum())


class _Even(Constraint):
    """Tokens of even id; 0 does not end it."""

    def __init__(self, vocab_size):
        self.vocab_size, self.eos = vocab_size, frozenset([1])

    def initial(self):
        return _EvenState(Anything(self.vocab_size, [1]).initial())


class _EvenState:
    complete = finished = False
    mask_cost = 1.0

    def __init__(self, inner):
        self.inner = inner

    def allows(self, token):
        return token % 2 == 0

    def advance(self, token):
        return self
