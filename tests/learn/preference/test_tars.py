"""TARS: which tokens are perturbed, spectral energies against the FFT, and its limits."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.data.precompute import PrecomputeContext, joined_batch
from tokenry.learn.objective import objective
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tars import (
    TARS,
    EmbeddingRelevance,
    agnostic_tokens,
    log_energy,
    perturb_ids,
    spectral_energy,
    spectral_preference_loss,
    spectral_triplet_loss,
)
from tokenry.learn.reference import FrozenModel


def case(seed=0, lengths=(3, 5, 4, 2), width=6, dtype=torch.float64):
    """A batch of two pairs, and scores of both models with hidden states."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(9, (2 + n,), generator=generator).tolist() for n in lengths]
    targets = [[False] * 2 + [True] * n for n in lengths]
    batch = TokenBatch.from_ids(rows, targets, group=[0, 1, 0, 1])

    def scores():
        logprob = -torch.rand(batch.shape, generator=generator, dtype=dtype) * batch.target
        states = torch.randn(*batch.shape, width, generator=generator, dtype=dtype)
        return Scores(batch.ids, batch.target, logprob=logprob, hidden=states)

    return batch, scores(), scores()


def with_energy(batch, reference):
    return batch.with_columns(reference_log_energy=log_energy(reference.hidden, batch.target))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 3))
def test_energy_is_that_of_the_real_part_of_the_transform(seed, length, width):
    states = torch.randn(
        2, 12, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 2 : 2 + length] = True
    mask[1, [1, 4, 7]] = True  # targets with gaps, as in conversations
    expected = torch.stack(
        [
            torch.fft.fft(row[m], dim=0).real.square().sum()
            for row, m in zip(states, mask, strict=True)
        ]
    )
    torch.testing.assert_close(spectral_energy(states, mask), expected)


def test_energy_of_impulses_by_hand():
    for place, length, expected in ((0, 5, 5.0), (1, 4, 2.0)):
        states = torch.zeros(1, length, 1)
        states[0, place] = 1.0
        assert float(spectral_energy(states, torch.ones(1, length, dtype=torch.bool))) == expected


def test_scaling_all_states_scales_energies_by_the_square_and_cancels_in_the_loss():
    batch, policy, reference = case()
    energy = spectral_energy(policy.hidden, batch.target)
    torch.testing.assert_close(spectral_energy(3 * policy.hidden, batch.target), 9 * energy)
    batch = with_energy(batch, reference)
    scaled = replace(policy, hidden=3 * policy.hidden)
    torch.testing.assert_close(
        TARS()(batch, scaled, reference).loss, TARS()(batch, policy, reference).loss
    )


def test_equal_states_on_an_unchanged_prompt_give_ln_2_for_either_part():
    batch, policy, _ = case()
    loss = TARS(frequency_weight=0.3)(with_energy(batch, policy), policy, policy)
    assert float(loss.loss) == pytest.approx(1.3 * math.log(2))


def test_loss_by_hand():
    energies = torch.tensor([4.0, 2.0, 1.0, 8.0]).log()
    reference = torch.tensor([2.0, 2.0, 1.0, 2.0]).log()
    found = spectral_preference_loss(energies, reference, beta=1.0)
    # ratios 2 and 1, then 1 and 4: -log sigmoid(log 2) = log 1.5, -log sigmoid(-log 4) = log 5
    torch.testing.assert_close(found, torch.tensor([1.5, 5.0]).log())


def test_the_two_parts_have_a_beta_each():
    """beta scales log-ratios alone, beta_f log-energies alone."""
    batch, policy, reference = case(5)
    batch = with_energy(batch, reference)
    growth = log_energy(policy.hidden, batch.target) - log_energy(reference.hidden, batch.target)
    ratio = (policy.logprob - reference.logprob).sum(-1)
    objective = TARS(beta=0.3, frequency_beta=2.0, frequency_weight=0.7)
    losses = objective(batch, policy, reference).metrics

    def expected(beta, rows):
        return torch.log1p(torch.exp(-beta * (rows[:2] - rows[2:])))

    torch.testing.assert_close(losses["frequency"], 0.7 * expected(2.0, growth))
    torch.testing.assert_close(losses["loss"] - losses["frequency"], expected(0.3, ratio))


def test_without_the_spectral_term_it_is_dpo():
    batch, policy, reference = case()
    batch = with_energy(batch, reference)
    loss = TARS(beta=0.3, frequency_weight=0.0)(batch, policy, reference).loss
    torch.testing.assert_close(loss, DPO(0.3)(batch, policy, reference).loss)


def test_gradient_of_the_energies_is_the_finite_difference():
    batch, policy, reference = case()
    batch = with_energy(batch, reference)
    for method in (TARS(frequency_weight=2.0), TARS(variant="triplet", frequency_weight=2.0)):
        leaf = policy.hidden.clone().requires_grad_()
        method(batch, replace(policy, hidden=leaf), reference).loss.backward()
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1)).double()
        low, high = (
            method(batch, replace(policy, hidden=policy.hidden + s * direction), reference).loss
            for s in (-1e-6, 1e-6)
        )
        assert float(leaf.grad.abs().sum()) > 1e-3
        torch.testing.assert_close(
            (leaf.grad * direction).sum(), (high - low) / 2e-6, rtol=1e-5, atol=1e-7
        )


def test_zero_states_and_garbage_outside_the_target_do_no_harm():
    batch, policy, reference = case()
    batch = with_energy(batch, reference)
    spoiled = torch.where(batch.target[..., None], policy.hidden, torch.nan).requires_grad_()
    loss = TARS()(batch, replace(policy, hidden=spoiled), reference).loss
    torch.testing.assert_close(loss, TARS()(batch, policy, reference).loss)
    loss.backward()
    assert bool(spoiled.grad.isfinite().all())
    nothing = torch.zeros_like(policy.hidden).requires_grad_()
    loss = TARS()(batch, replace(policy, hidden=nothing), reference).loss
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(nothing.grad.isfinite().all())


def test_triplet_at_the_reference_is_the_hinge_on_the_distance_of_both_sides():
    batch, policy, _ = case(lengths=(4, 3, 4, 5))
    found = spectral_triplet_loss(0.1 * policy.hidden, 0.1 * policy.hidden, batch.target)
    rows = [0.1 * row[mask] for row, mask in zip(policy.hidden, batch.target, strict=True)]
    for pair, length in ((0, 4), (1, 3)):
        one, other = (torch.fft.fft(rows[r][:length], dim=0).abs() for r in (pair, pair + 2))
        expected = max(0.0, 0.5 - float((one - other).square().mean()))
        assert float(found[pair]) == pytest.approx(expected, abs=1e-8)


def test_how_many_tokens_are_perturbed():
    relevance = torch.tensor([0.9, 0.2, 0.5])
    assert agnostic_tokens(relevance, 0.7).tolist() == [1, 2, 0]
    assert agnostic_tokens(relevance, 0.1).tolist() == [1]
    assert agnostic_tokens(relevance, 0.0).tolist() == [1]
    assert agnostic_tokens(relevance, 100.0).tolist() == [1, 2, 0]
    assert agnostic_tokens(relevance, 100.0, most=0.67).tolist() == [1, 2]
    ties = torch.tensor([0.1, 0.1, 0.1])
    assert agnostic_tokens(ties, 0.01).tolist() == [0, 1, 2]
    assert agnostic_tokens(ties, 0.0).tolist() == [0]


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=1, max_size=12),
    st.floats(0, 2),
    st.integers(0, 100),
    st.sampled_from(["mask", "replace"]),
)
def test_only_allowed_tokens_change_and_always_in_the_same_way(tokens, omega, seed, mode):
    ids = [10 + place for place in range(len(tokens))]
    allowed = torch.tensor([free for _, free in tokens])
    places = agnostic_tokens(torch.tensor([value for value, _ in tokens]), omega, allowed)
    assert set(places.tolist()) <= set(allowed.nonzero()[:, 0].tolist())
    assert bool(len(places)) == bool(allowed.any())

    def run():
        generator = torch.Generator().manual_seed(seed)
        return perturb_ids(
            ids, places, mode, mask_id=3, vocabulary=30, generator=generator, special=(0, 1, 2)
        )

    changed = run()
    assert changed == run()
    for place, (old, new) in enumerate(zip(ids, changed, strict=True)):
        assert (old != new) == (place in places)
        assert new == old or (new == 3 if mode == "mask" else new not in (0, 1, 2))


@pytest.fixture
def context(tiny_llama_text, tiny_tokenizer):
    return PrecomputeContext(
        tiny_tokenizer, model=tiny_llama_text, reference=FrozenModel(tiny_llama_text), batch_size=2
    )


def rows_of(tokenizer, *rows):
    made = []
    for prompt, chosen, rejected, evidence in rows:
        ids = {
            f"{name}_ids": tokenizer(text, add_special_tokens=False)["input_ids"]
            for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))
        }
        ids["prompt_ids"] = [tokenizer.bos_token_id, *ids["prompt_ids"]]
        made.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **ids})
        if evidence:
            made[-1]["evidence"] = evidence
    return made


def test_precompute_perturbs_what_the_evidence_does_not_speak_about(context):
    tokenizer = context.tokenizer
    rows = rows_of(
        tokenizer,
        (
            "the cat sat on the mat. where was the dog?",
            " there",
            " nowhere",
            "the cat sat on the mat",
        ),
        ("a theory gathered feathers", " and", " so", None),
    )
    before = [list(row["prompt_ids"]) for row in rows]
    for mode in ("mask", "replace"):
        objective = TARS(perturbation=mode, omega=10.0, most=1.0)
        found = objective.precompute([dict(row) for row in rows], context)
        assert [row["prompt_ids"] for row in rows] == before  # the given rows stay
        assert found[1]["prompt_ids"][0] == tokenizer.bos_token_id
        assert all(a != b for a, b in zip(found[1]["prompt_ids"][1:], before[1][1:], strict=True))
        prompt = found[0]["prompt_ids"]
        text = tokenizer.decode(prompt)
        assert text.startswith("<s>the cat sat on the mat")
        changed = [a != b for a, b in zip(prompt, before[0], strict=True)]
        assert any(changed)
        if mode == "mask":
            assert {new for new, c in zip(prompt, changed, strict=True) if c} == {
                tokenizer.pad_token_id
            }
    few = TARS(omega=0.0).precompute([dict(row) for row in rows], context)
    assert [sum(a != b for a, b in zip(row["prompt_ids"], old, strict=True))
            for row, old in zip(few, before, strict=True)] == [1, 1]  # fmt: skip


def test_relevance_is_the_cosine_with_the_pooled_evidence(context):
    [row] = rows_of(context.tokenizer, ("dog and cat", " a", " b", "the cat"))
    found = EmbeddingRelevance()(row, context)
    table = context.model.get_input_embeddings().weight.detach()
    evidence = table[torch.tensor(context.tokenizer("the cat")["input_ids"])].mean(0)
    assert found[0] is None  # the start token
    for value, token in zip(found[1:], row["prompt_ids"][1:], strict=True):
        expected = torch.cosine_similarity(table[token], evidence, dim=0)
        assert value == pytest.approx(float(expected), abs=1e-6)


def test_precomputed_energies_are_the_references_on_the_clean_prompt(context):
    rows = rows_of(
        context.tokenizer,
        ("the dog sat", " there", " gathered feathers", None),
        ("a theory", " and", " of the mat", None),
        ("café", " naïve", " cat", None),
    )
    found = TARS(omega=10.0).precompute([dict(row) for row in rows], context)
    for clean, row in zip(rows, found, strict=True):
        assert row["prompt_ids"] != clean["prompt_ids"]
        for side in ("chosen", "rejected"):
            batch = joined_batch([clean["prompt_ids"]], [clean[f"{side}_ids"]])
            states = context.reference(batch, ("hidden",)).hidden
            expected = float(log_energy(states, batch.target))
            assert row[f"{side}_reference_log_energy"] == pytest.approx(expected, abs=1e-4)


def test_a_prompt_that_may_not_change_stays_as_it_is(context):
    rows = rows_of(context.tokenizer, ("the cat", " a", " b", None))
    objective = TARS(relevance=lambda row, _: [None] * len(row["prompt_ids"]))
    assert objective.precompute([dict(rows[0])], context)[0]["prompt_ids"] == rows[0]["prompt_ids"]
    objective = TARS(perturbation="none")
    assert objective.precompute([dict(rows[0])], context)[0]["prompt_ids"] == rows[0]["prompt_ids"]


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_half_precision_states_give_float32_losses(seed):
    batch, policy, reference = case(seed, dtype=torch.float32)
    batch = with_energy(batch, reference)
    exact = TARS()(batch, policy, reference).loss
    low = TARS()(batch, replace(policy, hidden=policy.hidden.bfloat16()), reference).loss
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.02, atol=0.02)


def test_needs_follow_the_variant_and_names_are_checked():
    assert "row.reference_log_energy" in TARS().needs
    assert "reference.hidden" in TARS(variant="triplet").needs
    assert objective["tars"] is TARS
    with pytest.raises(UnknownNameError, match="energy"):
        TARS(variant="energies")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="mask"):
        TARS(perturbation="masked")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="most"):
        TARS(most=2.0)
