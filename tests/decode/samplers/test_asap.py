"""ASAp against enumeration: its bounds, its limit, its weights."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.samplers.asap import ASAp, ExpectedFuture, Remembered, RemovedMass
from tokenry.decode.samplers.masked import Masked
from tokenry.decode.samplers.prefix_trie import DEAD, Node
from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.smc import run_smc
from tokenry.lab.token_rule import OddSum
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum, total_variation

LIMIT = 5
MODEL = ToyLM(vocab_size=4, order=1, eos=0, scale=1.5, seed=6)
TRUTH, LOG_Z = MODEL.conditional(odd_sum, LIMIT)


ODD_SUM = OddSum()


def asked(model=MODEL, constraint=ODD_SUM, seed=0, **options):
    start = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
    options = {"max_new_tokens": LIMIT, **options}
    generator = torch.Generator().manual_seed(seed)
    return Request(start, constraint, generator=generator, **options)


def exact_future(model, accept, prefix, limit):
    """c(u): the mass of the accepted texts that go on from a prefix, by enumeration."""
    texts = model.texts(limit)
    before = math.fsum(
        float(model.logits(prefix[:n]).double().log_softmax(-1)[token])
        for n, token in enumerate(prefix)
    )
    accepted = [
        value for text, value in texts.items() if text[: len(prefix)] == prefix and accept(text)
    ]
    return math.fsum(math.exp(value - before) for value in accepted)


def walk(node, prefix=()):
    yield prefix, node
    for token, child in node.children.items():
        yield from walk(child, (*prefix, token))


def test_bounds_never_rise_and_never_fall_below_the_truth():
    asap = ASAp(rows=2)
    request = asked()
    before: dict = {}
    for _ in range(25):
        asap(request, 2)
        for prefix, node in walk(asap.memory.root(request)):
            if 0 not in prefix:
                assert node.bound <= before.get(prefix, 1.0)
                assert node.bound >= exact_future(MODEL, odd_sum, prefix, LIMIT) - 1e-6
                before[prefix] = node.bound
    assert before[()] < 0.9


class Five(Constraint):
    """00000, or a 1 and four digits; digits are tokens 1 ("0") and 2 ("1"), 0 ends the text."""

    vocab_size, eos = 3, frozenset([0])

    def initial(self):
        return FiveState(())


class FiveState:
    mask_cost = 1.0

    def __init__(self, text, finished=False):
        self.text, self.finished = text, finished

    @property
    def complete(self):
        return not self.finished and len(self.text) == 5

    def allows(self, token):
        if token == 0 or self.finished:
            return token == 0 and self.complete
        ones = self.text[:1] == (2,)
        return token in (1, 2) and len(self.text) < 5 and (token == 1 or ones or not self.text)

    def mask(self):
        return torch.tensor([self.allows(token) for token in range(3)])

    def advance(self, token):
        return FiveState(self.text, True) if token == 0 else FiveState((*self.text, token))


class Trap:
    """Likes to begin with 0, and then hardly ever goes on with 0."""

    vocab_size, eos = 3, 0

    def logits(self, text):
        if not text:
            return torch.tensor([0.0, 0.9, 0.1]).log()
        if len(text) == 5:
            return torch.tensor([1.0, 0.0, 0.0]).log()
        rare = 0.1 if text[0] == 1 else 0.5
        return torch.tensor([0.0, rare, 1 - rare]).log()


def test_the_grammar_that_masking_gets_wrong():
    """Masking writes 00000 nine times of ten; it has 9e-5 of 0.1 + 9e-5."""
    request = asked(Trap(), Five(), max_new_tokens=6)
    masked = run_smc(request, 400, Masked(), weighted=False)
    assert sum(ids == [1] * 5 for ids in masked.ids) > 300
    asap = ASAp(rows=1)
    asap(request, 150)
    root = asap.memory.root(request)
    z = 0.1 + 0.9 * 0.1**4
    assert root.bound == pytest.approx(z, rel=1e-5)  # all 17 texts were seen: exact
    for prefix, node in walk(root):
        if len(prefix) == 5:
            assert node.bound == pytest.approx(1.0)
    late = ASAp(100, asap.memory)(request, 300)
    assert sum(ids == [1] * 5 for ids in late.ids) <= 5
    assert late.log_weights.exp().tolist() == pytest.approx([z] * 300, rel=1e-4)


def test_exhausted_the_conditional_is_exact():
    """Every prefix visited: token by token p c~ / c~ is the target's own conditional."""
    request = asked()
    asap = ASAp(rows=50)
    for _ in range(60):
        asap(request, 50)
    root = asap.memory.root(request)
    assert root.log_bound == pytest.approx(LOG_Z, abs=2e-3)
    texts = {}

    def follow(node, text, p):
        logprobs = MODEL.logits(text).double().log_softmax(-1)
        for token, child in node.children.items():
            q = p * math.exp(float(logprobs[token]) + child.log_bound - node.log_bound)
            if token == 0:
                texts[text] = q
            else:
                follow(child, (*text, token), q)

    follow(root, (), 1.0)
    assert total_variation(texts, TRUTH) < 5e-3


def test_the_first_text_is_drawn_as_by_masking():
    """An empty trie has c~ = 1: the same random numbers give the same tokens and weights."""
    for seed in range(10):
        first = ASAp(rows=1)(asked(seed=seed, must_end=False), 1)
        masked = run_smc(asked(seed=seed, must_end=False), 1, Masked(), ess_threshold=0.0)
        assert first.ids == masked.ids
        assert first.log_weights.tolist() == pytest.approx(masked.log_weights.tolist(), abs=1e-5)


def test_without_a_constraint_it_is_the_model():
    asap = ASAp()
    request = asked(constraint=Anything(4, [0]), must_end=False)
    samples = asap(request, 40)
    assert samples.log_weights.abs().max() < 1e-5
    assert asap.memory.root(request).bound == pytest.approx(1.0, abs=1e-6)


def test_weights_are_proper_whatever_was_learned_before():
    """Means over independent memories, after texts of a few earlier calls; six standard errors."""
    found = []
    for seed in range(80):
        asap = ASAp(rows=3)
        asap(asked(seed=1000 + seed), 6)
        found.append(math.exp(asap(asked(seed=seed), 3).log_evidence))
    values = torch.tensor(found, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - math.exp(LOG_Z)) < 6 * error
    assert error < 0.03


def test_learning_makes_the_weights_equal():
    asap = ASAp(rows=8)
    early = asap(asked(seed=1), 64).log_weights.exp()
    for seed in range(15):
        asap(asked(seed=seed + 2), 64)
    late = asap(asked(seed=50), 64).log_weights.exp()
    assert float(late.std() / late.mean()) < 0.2 * float(early.std() / early.mean())
    assert float(late.mean()) == pytest.approx(math.exp(LOG_Z), rel=0.02)


def test_rows_at_one_prefix_share_its_mask():
    request = asked()
    sampler, root = ExpectedFuture(), Node()
    states = [Remembered(OddSum(), root).initial()] * 5
    logprobs = request.logprobs(request.rows(5), [[]] * 5)
    steps = sampler.steps(logprobs, states, torch.Generator().manual_seed(0))
    assert [step.masks for step in steps] == [1, 0, 0, 0, 0]
    assert {step.token for step in steps} == set(root.children)


def test_what_the_limit_forbids_is_learned_too():
    """One token of room: only the end, which the empty text may not have. Known at once."""
    asap = ASAp(rows=1)
    request = asked(max_new_tokens=1)
    samples = asap(request, 5)
    assert samples.log_weights.eq(DEAD).all()
    assert samples.dead_end == []
    assert asap.memory.root(request).log_bound == DEAD
    assert len(samples.ids) == 1  # nothing is tried any more
    assert asap(request, 5).log_evidence == DEAD


def test_memory_knows_what_it_learned_about():
    memory = RemovedMass()
    constraint = OddSum()
    one = asked(constraint=constraint)
    assert memory.root(one) is memory.root(asked(constraint=constraint, seed=3))
    others = [
        asked(constraint=OddSum()),
        asked(constraint=constraint, temperature=2.0),
        asked(constraint=constraint, max_new_tokens=3),
        asked(constraint=constraint, prompt_ids=(1,)),
        asked(constraint=constraint, must_end=False),
        asked(constraint=constraint, processors=(lambda ids, scores: scores,)),
        asked(ToyLM(seed=9), constraint),
    ]
    assert len({id(memory.root(request)) for request in [one, *others]}) == 8
    memory.forget()
    assert not memory.roots


def test_rows_must_be_positive():
    with pytest.raises(InputError, match="rows is 0"):
        ASAp(rows=0)
    with pytest.raises(InputError, match="particles"):
        ASAp()(asked(), 0)
