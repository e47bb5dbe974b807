"""The fused kernels against the plain way in float64, values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core import tiles
from tokenry.core.divergence import Comparison
from tokenry.core.divergences import FORWARD_KL, JENSEN_SHANNON, REVERSE_KL, TOTAL_VARIATION
from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.core.fused import fused_scores, fused_support, fused_top_k
from tokenry.core.fused_divergence import fused_divergence
from tokenry.core.linear_head import LinearHead

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "temperature": 1.5, "softcap": 3.0},
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Sizes that leave a ragged last tile in both directions."""
    monkeypatch.setattr(tiles, "TILE_TOKENS", 4)
    monkeypatch.setattr(tiles, "TILE_VOCABULARY", 8)


def make(tokens=11, width=5, vocabulary=29, *, seed=0, bias=False, scale=1.0, **options):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator) * scale

    hidden, weight = draw(tokens, width), draw(vocabulary, width)
    head = LinearHead(
        weight.requires_grad_(), draw(vocabulary).requires_grad_() if bias else None, **options
    )
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), head, targets


def plain_logits(hidden, head):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits / head.temperature


def gradients(value, hidden, head):
    inputs = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
    return torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("entropy", [False, True])
def test_values_and_gradients_equal_the_plain_way(options, entropy):
    hidden, head, targets = make(**options)
    mix = torch.randn(3, len(targets), dtype=torch.float64)
    ours = fused_scores(hidden, head, targets, entropy=entropy)

    logp = plain_logits(hidden, head).log_softmax(-1)
    logprob = logp.gather(1, targets[:, None])[:, 0]
    logsumexp = plain_logits(hidden, head).logsumexp(-1)
    uncertainty = -(logp.exp() * logp).sum(-1)
    torch.testing.assert_close(ours.logprob, logprob)
    torch.testing.assert_close(ours.logsumexp, logsumexp)
    value = (mix[0] * ours.logprob + mix[1] * ours.logsumexp).sum()
    expected = (mix[0] * logprob + mix[1] * logsumexp).sum()
    if entropy:
        torch.testing.assert_close(ours.entropy, uncertainty)
        value = value + (mix[2] * ours.entropy).sum()
        expected = expected + (mix[2] * uncertainty).sum()
    for got, want in zip(
        gradients(value, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("kind", [FORWARD_KL, REVERSE_KL, JENSEN_SHANNON, TOTAL_VARIATION])
def test_divergence_and_its_gradient_equal_the_plain_way(options, kind):
    hidden, head, _ = make(**options)
    other_hidden, other_head, _ = make(width=7, seed=1)
    ours = fused_divergence(hidden, head, other_hidden, other_head, kind)
    logq = plain_logits(hidden, head).log_softmax(-1)
    logp = plain_logits(other_hidden, other_head).log_softmax(-1).detach()
    closed = {
        FORWARD_KL: lambda: (logp.exp() * (logp - logq)).sum(-1),
        REVERSE_KL: lambda: (logq.exp() * (logq - logp)).sum(-1),
        TOTAL_VARIATION: lambda: 0.5 * (logq.exp() - logp.exp()).abs().sum(-1),
        JENSEN_SHANNON: lambda: _jensen_shannon(logp, logq),
    }[kind]()
    torch.testing.assert_close(ours, closed)
    mix = torch.randn(len(ours), dtype=torch.float64)
    for got, want in zip(
        gradients((mix * ours).sum(), hidden, head),
        gradients((mix * closed).sum(), hidden, head),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def _jensen_shannon(logp, logq):
    middle = torch.logaddexp(logp, logq) - torch.log(torch.tensor(2.0, dtype=logp.dtype))
    return 0.5 * ((logp.exp() * (logp - middle)) + (logq.exp() * (logq - middle))).sum(-1)


def test_gradcheck():
    hidden, head, targets = make(tokens=5, width=3, vocabulary=10, bias=True, softcap=2.0)

    def function(hidden, weight, bias):
        inner = LinearHead(weight, bias, 2.0, 0.8)
        scores = fused_scores(hidden, inner, targets, entropy=True)
        return scores.logprob, scores.logsumexp, scores.entropy

    assert torch.autograd.gradcheck(function, (hidden, head.weight, head.bias))


@given(st.integers(1, 13), st.integers(2, 40), st.integers(1, 5))
def test_top_k_equals_sorting(tokens, vocabulary, k):
    hidden, head, _ = make(tokens=tokens, vocabulary=vocabulary)
    got = fused_top_k(hidden, head, k)
    want = plain_logits(hidden, head).log_softmax(-1).topk(min(k, vocabulary))
    torch.testing.assert_close(got.logprob, want.values.detach())
    assert torch.equal(got.ids, want.indices)


def test_large_logits_neither_overflow_nor_lose_the_entropy():
    hidden, head, targets = make(scale=100.0)
    ours = fused_scores(hidden.float(), LinearHead(head.weight.float()), targets, entropy=True)
    logp = plain_logits(hidden, head).log_softmax(-1)
    torch.testing.assert_close(
        ours.logprob.double(), logp.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-2
    )
    torch.testing.assert_close(
        ours.entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=0
    )


def test_a_masked_vocabulary_gives_no_nan():
    hidden, head, targets = make(bias=True)
    blocked = torch.zeros(29, dtype=torch.float64)
    blocked[:16] = -torch.inf  # whole tiles of it
    masked = LinearHead(head.weight, blocked.requires_grad_())
    targets = targets % 13 + 16
    ours = fused_scores(hidden, masked, targets, entropy=True)
    kept = plain_logits(hidden, LinearHead(head.weight[16:]))
    torch.testing.assert_close(
        ours.logprob, kept.log_softmax(-1).gather(1, targets[:, None] - 16)[:, 0]
    )
    (ours.logprob.sum() + ours.entropy.sum()).backward()
    assert hidden.grad.isfinite().all()
    assert blocked.grad.isfinite().all()


def test_bfloat16_inputs_are_summed_in_float32():
    hidden, head, targets = make(tokens=9, width=64, vocabulary=300)
    low = hidden.detach().bfloat16().requires_grad_(), head.weight.detach().bfloat16()
    ours = fused_scores(low[0], LinearHead(low[1]), targets, entropy=True)
    exact = (low[0].double() @ low[1].double().T).log_softmax(-1)
    assert ours.logprob.dtype == torch.float32
    torch.testing.assert_close(
        ours.logprob.double(), exact.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5
    )
    ours.logprob.sum().backward()
    assert low[0].grad.dtype == torch.bfloat16


def test_only_wanted_gradients_are_made():
    hidden, head, targets = make()
    frozen = LinearHead(head.weight.detach())
    fused_scores(hidden, frozen, targets).logprob.sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_no_tokens_give_empty_results():
    hidden, head, _ = make()
    none = torch.empty(0, dtype=torch.long)
    assert fused_scores(hidden[:0], head, none, entropy=True).entropy.shape == (0,)
    assert fused_top_k(hidden[:0], head, 3).ids.shape == (0, 3)


def test_bad_shapes_and_ids_are_named():
    hidden, head, targets = make()
    with pytest.raises(ShapeError, match="to fit the head's weight"):
        fused_scores(hidden[:, :3], head, targets)
    with pytest.raises(VocabularyError, match="the head has 29 tokens"):
        fused_scores(hidden, head, targets + 29)
    with pytest.raises(VocabularyError, match="29 and 28 tokens"):
        fused_divergence(hidden, head, hidden, LinearHead(head.weight[:28]))


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("k", [1, 6, 29])
def test_a_support_and_its_rest_equal_the_plain_way(options, k):
    hidden, head, _ = make(**options)
    generator = torch.Generator().manual_seed(5)
    ids = torch.stack([torch.randperm(29, generator=generator)[:k] for _ in range(11)])
    found = fused_support(hidden, head, ids)
    logp = plain_logits(hidden, head).log_softmax(-1)
    rest = logp.scatter(-1, ids, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(found.logprob, logp.gather(-1, ids))
    torch.testing.assert_close(found.rest, rest)
    if k == 29:
        assert (found.rest == -torch.inf).all()
        rest = torch.zeros(11, dtype=torch.float64)
    weights = torch.randn(11, k + 1, generator=generator, dtype=torch.float64)
    ours = (found.logprob * weights[:, :k]).sum()
    ours = ours + (found.rest.masked_fill(found.rest == -torch.inf, 0.0) * weights[:, k]).sum()
    plain = (logp.gather(-1, ids) * weights[:, :k]).sum() + (rest * weights[:, k]).sum()
    for one, other in zip(
        gradients(ours, hidden, head), gradients(plain, hidden, head), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_rest_too_small_for_subtraction_is_exact():
    """The other tokens hold 3 exp(-60) of the mass: 1 - p would be 0 even in float64."""
    hidden = torch.tensor([[1.0]])
    head = LinearHead(torch.tensor([[0.0], [-60.0], [-60.0], [-60.0]]))
    rest = fused_support(hidden, head, torch.tensor([[0]])).rest
    assert rest.item() == pytest.approx(-60 + 1.0986123, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"bias": True, "temperature": 1.5, "softcap": 3.0}])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("top_k", [1, 7, 29, None])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_comparisons_equal_the_plain_way(options, tail, top_k, temperature):
    hidden, head, _ = make(**options)
    others, other_head, _ = make(seed=1, width=4, **options)
    how = Comparison(JENSEN_SHANNON, temperature, top_k, tail)
    ours = fused_divergence(hidden, head, others, other_head, how)
    plain = how(plain_logits(others, other_head).detach(), plain_logits(hidden, head))
    torch.testing.assert_close(ours, plain)
    weights = torch.arange(11, dtype=torch.float64)
    for one, other in zip(
        gradients((ours * weights).sum(), hidden, head),
        gradients((plain * weights).sum(), hidden, head),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [FORWARD_KL, REVERSE_KL, JENSEN_SHANNON])
def test_a_bucket_for_the_rest_only_loses(kind):
    hidden, head, _ = make(scale=2.0)
    others, other_head, _ = make(seed=1, scale=2.0)
    exact = fused_divergence(hidden, head, others, other_head, kind)
    last = torch.zeros_like(exact)
    for k in (1, 4, 16, 29):
        found = fused_divergence(hidden, head, others, other_head, Comparison(kind, top_k=k))
        assert (found <= exact + 1e-12).all()
        assert (found >= last - 1e-12).all()
        last = found
    torch.testing.assert_close(last, exact)


def test_on_policy_gradients_of_a_top_k_loss_are_not_zero():
    """Where p = q the divergence's gradient vanishes, the cross-entropy's does not."""
    hidden, head, _ = make()
    ids = torch.arange(3).expand(11, 3)
    p = fused_support(hidden.detach(), head, ids)
    q = fused_support(hidden, head, ids)
    cross = -(p.logprob.exp().detach() * q.logprob).sum()
    assert torch.autograd.grad(cross, hidden)[0].abs().max() > 1e-3


def test_bad_supports_and_comparisons_are_refused():
    hidden, head, _ = make()
    with pytest.raises(VocabularyError):
        fused_support(hidden, head, torch.full((11, 1), 29))
    with pytest.raises(ShapeError):
        fused_support(hidden, head, torch.zeros(3, 1, dtype=torch.long))
    for bad in ({"temperature": 0.0}, {"top_k": 0}, {"temperature": float("nan")}):
        with pytest.raises(InputError):
            Comparison(FORWARD_KL, **bad)
