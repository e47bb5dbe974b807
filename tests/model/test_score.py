"""score() against plain logits, for both architectures, wrapped models and unusual heads."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError
from tokenry.model.score import linear_head, score

ROWS = [[5, 9, 3, 40, 7, 7, 12, 60, 33, 2, 18], [11, 4, 9], [8, 30, 21, 50, 6, 44]]


@torch.no_grad()
def plain(model, row):
    """Log-probabilities [T, V] that predicted each token of one row; position 0 unused."""
    logits = model(input_ids=torch.tensor([row])).logits[0].float()
    return torch.cat([torch.zeros(1, logits.shape[-1]), logits[:-1].log_softmax(-1)])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [8, 12, 1000])
def test_every_number_equals_the_plain_way(tiny_model, side, budget):
    batch = TokenBatch.from_ids(ROWS, padding_side=side)
    got = score(
        tiny_model,
        batch,
        ("logprob", "entropy", "topk", "hidden"),
        top_k=3,
        tokens_per_batch=budget,
    )
    for number, row in enumerate(ROWS):
        logp = plain(tiny_model, row)
        real = batch.attention[number]
        ids = torch.tensor(row)
        logprob = logp.gather(1, ids[:, None])[:, 0]
        logprob[0] = 0
        entropy = -(logp.exp() * logp).sum(-1)
        entropy[0] = 0
        torch.testing.assert_close(got.logprob[number][real], logprob, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.entropy[number][real], entropy, rtol=1e-4, atol=1e-4)
        best = logp.topk(3)
        assert torch.equal(got.topk_ids[number][real][1:], best.indices[1:])
        torch.testing.assert_close(
            got.topk_logprobs[number][real][1:], best.values[1:], rtol=1e-4, atol=1e-4
        )
        only = torch.zeros_like(batch.target)
        only[number] = True
        torch.testing.assert_close(got.logits(only).log_softmax(-1), logp[1:], rtol=1e-4, atol=1e-4)
    assert not got.logprob[~batch.target].any()


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.integers(2, 63), min_size=2, max_size=12), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
    st.randoms(use_true_random=False),
)
def test_rows_do_not_depend_on_their_company(tiny_llama, rows, side, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    together = score(tiny_llama, TokenBatch.from_ids(rows, padding_side=side)).logprob.sum(1)
    shuffled = TokenBatch.from_ids([rows[i] for i in order])
    apart = score(tiny_llama, shuffled, tokens_per_batch=1).logprob.sum(1)
    torch.testing.assert_close(together[order], apart, rtol=1e-4, atol=1e-4)


def test_gradients_equal_the_plain_way(tiny_model):
    batch = TokenBatch.from_ids(ROWS)
    got = score(tiny_model, batch, ("logprob", "entropy"), grad=True)
    parameters = list(tiny_model.parameters())
    ours = torch.autograd.grad((got.logprob + 0.3 * got.entropy).sum(), parameters)
    value = 0.0
    for row in ROWS:
        logp = tiny_model(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        value = value + logp.gather(1, torch.tensor(row[1:])[:, None]).sum()
        value = value - 0.3 * (logp.exp() * logp).sum()
    theirs = torch.autograd.grad(value, parameters)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_divergence_to_a_reference_with_and_without_a_linear_head(tiny_llama, tiny_gemma3):
    batch = TokenBatch.from_ids(ROWS)
    reference = score(tiny_gemma3, batch, ("hidden",))
    fused = score(tiny_llama, batch, ("divergence",), reference=reference).divergence
    unusual = score(scaled(tiny_llama, 1.0), batch, ("divergence",), reference=reference).divergence
    row = ROWS[0]
    logp, logq = plain(tiny_gemma3, row)[1:], plain(tiny_llama, row)[1:]
    expected = (logp.exp() * (logp - logq)).sum(-1)
    torch.testing.assert_close(fused[0, 1:], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unusual, fused, rtol=1e-4, atol=1e-4)
    assert FORWARD_KL.name == "forward_kl"


def scaled(model, factor):
    """A copy whose logits are not a linear map of the last hidden state."""
    import copy

    class Scaled(torch.nn.Linear):
        def forward(self, input):
            return super().forward(input) * factor

    twin = copy.deepcopy(model)
    weight = twin.lm_head.weight
    twin.lm_head = Scaled(weight.shape[1], weight.shape[0], bias=False)
    twin.lm_head.weight = weight
    return twin


def test_a_head_that_does_more_falls_back_to_logits(tiny_llama):
    twin = scaled(tiny_llama, 0.5)
    assert linear_head(tiny_llama) is not None
    assert linear_head(twin) is None
    batch = TokenBatch.from_ids(ROWS)
    got = score(twin, batch, ("logprob", "entropy", "topk", "hidden"), top_k=2)
    with torch.no_grad():
        logp = (tiny_llama(input_ids=torch.tensor([ROWS[1]])).logits[0] * 0.5).log_softmax(-1)
    expected = logp[:-1].gather(1, torch.tensor(ROWS[1][1:])[:, None])[:, 0]
    torch.testing.assert_close(got.logprob[1, 1:3], expected, rtol=1e-4, atol=1e-4)
    assert got.logits().shape == (int(batch.target.sum()), 64)


def test_logits_that_are_scaled_after_a_plain_head_are_noticed(tiny_llama):
    """A model may keep an ordinary Linear head and change its output afterwards."""
    import copy

    twin = copy.deepcopy(tiny_llama)
    twin.lm_head.register_forward_hook(lambda _m, _i, output: output * 2)
    assert linear_head(twin) is None


def test_adapters_are_seen_through_and_take_gradients(tiny_llama):
    import copy

    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(
        copy.deepcopy(tiny_llama), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    batch = TokenBatch.from_ids(ROWS)
    adapted = score(lora, batch, grad=True).logprob
    with lora.disable_adapter():
        off = score(lora, batch).logprob
    torch.testing.assert_close(off, score(tiny_llama, batch).logprob)
    assert not torch.allclose(adapted, off)
    adapted.sum().backward()
    assert all(p.grad is not None for n, p in lora.named_parameters() if "lora_B" in n)


def test_unknown_and_unmet_needs_are_refused(tiny_llama):
    batch = TokenBatch.from_ids(ROWS)
    with pytest.raises(InputError, match=r"unknown needs \['perplexity'\]"):
        score(tiny_llama, batch, ("perplexity",))
    with pytest.raises(InputError, match="needs a reference"):
        score(tiny_llama, batch, ("divergence",))
    with pytest.raises(InputError, match="lack entropy"):
        score(tiny_llama, batch).need("entropy")


def test_a_soft_prompt_of_token_embeddings_scores_like_those_tokens(tiny_model):
    rows = [[5, 9, 7, 3], [8, 2, 6]]
    prefix_ids = torch.tensor([[11, 12, 13], [14, 15, 16]])
    target = [[False, False, True, True], [False, True, True]]
    embed = tiny_model.get_input_embeddings()
    for side in ("left", "right"):
        batch = TokenBatch.from_ids(rows, target, padding_side=side)
        soft = score(tiny_model, batch, needs=("logprob", "hidden"), prefix=embed(prefix_ids))
        joined = TokenBatch.from_ids(
            [[*before, *row] for before, row in zip(prefix_ids.tolist(), rows, strict=True)],
            [[False] * 3 + wanted for wanted in target],
        )
        plain = score(tiny_model, joined, needs=("logprob",))
        torch.testing.assert_close(
            soft.need("logprob")[batch.target], plain.need("logprob")[joined.target]
        )
        assert soft.hidden.shape[:2] == batch.shape


def test_hidden_states_of_every_block_stand_where_they_predict(tiny_llama):
    batch = TokenBatch.from_ids([[5, 9, 7, 3], [8, 2]])
    found = score(tiny_llama, batch, needs=("hidden", "hidden_states"))
    plain = tiny_llama(batch.ids, attention_mask=batch.attention.long(), output_hidden_states=True)
    assert len(found.hidden_states) == tiny_llama.config.num_hidden_layers
    for block, states in zip(found.hidden_states, plain.hidden_states[1:], strict=True):
        for row, length in ((0, 4), (1, 2)):
            torch.testing.assert_close(block[row, 1:length], states[row, : length - 1])
        assert not block[~batch.target].any()
    assert not found.detach().hidden_states[0].requires_grad


def test_divergences_from_several_models_are_named(tiny_llama_text, tiny_tokenizer):
    from tokenry.core.divergence import Comparison
    from tokenry.core.divergences import REVERSE_KL

    batch = TokenBatch.from_pairs(tiny_tokenizer, [("the cat", " sat there"), ("a", " theory")])
    torch.manual_seed(2)
    models = {"teacher": copy.deepcopy(tiny_llama_text), "other": copy.deepcopy(tiny_llama_text)}
    for size, model in enumerate(models.values(), start=1):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * size * torch.randn_like(weight))
    views = {name: score(model, batch, ("hidden",)) for name, model in models.items()}
    how = Comparison(REVERSE_KL, temperature=2.0, top_k=5)
    needs = ("divergence(teacher)", "divergence(other)")
    both = score(tiny_llama_text, batch, needs, others=views, divergence=how)
    for name, view in views.items():
        alone = score(tiny_llama_text, batch, ("divergence",), reference=view, divergence=how)
        torch.testing.assert_close(both.need(f"divergence({name})"), alone.need("divergence"))
        logits = {"p": view.logits(), "q": score(tiny_llama_text, batch, ("hidden",)).logits()}
        plain = how(logits["p"], logits["q"])
        torch.testing.assert_close(alone.divergence[batch.target], plain, rtol=1e-4, atol=1e-5)
    assert both.divergence is None
    with pytest.raises(InputError, match="needs a student"):
        score(tiny_llama_text, batch, ("divergence(student)",), others=views)
    with pytest.raises(InputError, match=r"lack divergence\(student\)"):
        both.need("divergence(student)")
