"""Every way of decoding and scoring, on tiny models of many architectures: exact, or refused.

The truth is always the model's own forward pass over the whole text, one row at a time, without a
cache. The texts are longer than the windows of the models that have one. An architecture is added
as one line of the tables in conftest.
"""

from functools import partial

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ModelError
from tokenry.decode.bytes.prefix_scorer import CachedPrefixScorer
from tokenry.decode.search import beam_search_policy
from tokenry.decode.speculation.dyspec import DySpec
from tokenry.decode.speculation.fspad import FSPAD
from tokenry.decode.speculation.mtp import MTP
from tokenry.decode.speculation.recycling import TokenRecycling
from tokenry.decode.speculation.speculate import generate_with_drafter, speculate
from tokenry.learn.policy.rollouts import RolloutSettings, sample_rollouts
from tokenry.model import compat
from tokenry.model.attention.token_sparse import SparsePrefill, TokenSparse
from tokenry.model.cache.full import Full
from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.per_layer import PerHead, PerLayer
from tokenry.model.cache.tokenselect import TokenSelect
from tokenry.model.decoding import DecodingState
from tokenry.model.heads.fspad import features_of
from tokenry.model.memory.hidden_state_optimization import HiddenStateOptimizer
from tokenry.model.memory.still import Still, revert
from tokenry.model.output import linear_head, output_logits
from tokenry.model.score import score

LONG = torch.randint(2, 64, (20,), generator=torch.Generator().manual_seed(1)).tolist()
SHORT = LONG[:15]
MORE_THAN_A_LAYER = {"modernbert-decoder"}  # between the last state and the logits
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def full(model, *texts):
    """Logits after every token of each text, [T, V]."""
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    return found if len(found) > 1 else found[0]


def start(model, *texts):
    """A state of texts, the shorter ones padded on the left."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    real = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return DecodingState.start(model, ids, real)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, **CLOSE)


def plain_text(model, prompt, count):
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()


# ---------------------------------------------------------------- attention: everything is exact


def test_steps_crops_and_forks_are_those_of_a_full_pass(attention_model):
    state = start(attention_model, LONG)
    close(state.logits[0], full(attention_model, LONG)[-1])
    close(
        state.append(torch.tensor([[7, 9, 11]]))[0], full(attention_model, [*LONG, 7, 9, 11])[-3:]
    )
    state.crop(2)
    close(state.append(torch.tensor([5]))[0], full(attention_model, [*LONG, 7, 5])[-1])
    state.fork(2)
    twin = state.copy()
    logits = state.append(torch.tensor([3, 4]))
    for row, token in enumerate((3, 4)):
        close(logits[row], full(attention_model, [*LONG, 7, 5, token])[-1])
    close(twin.append(torch.tensor([6, 8]))[1], full(attention_model, [*LONG, 7, 5, 8])[-1])


def test_left_padding_changes_nothing(attention_model):
    state = start(attention_model, LONG, SHORT)
    close(state.logits[1], full(attention_model, SHORT)[-1])
    logits = state.append(torch.tensor([[7, 9], [7, 9]]))
    for row, text in enumerate((LONG, SHORT)):
        close(logits[row], full(attention_model, [*text, 7, 9])[-2:])


def test_every_node_of_a_tree_is_read_like_a_text(attention_model):
    state = start(attention_model, LONG, SHORT)
    tokens, parents = [7, 5, 9, 11], [-1, -1, 0, 2]
    logits = state.tree(torch.tensor([tokens] * 2), torch.tensor([parents] * 2))
    for row, text in enumerate((LONG, SHORT)):
        close(logits[row, [0, 2, 3]], full(attention_model, [*text, 7, 9, 11])[-3:])
        close(logits[row, 1], full(attention_model, [*text, 5])[-1])


def test_paths_of_uneven_length_leave_no_trace(attention_model):
    """The shorter row's void columns stand between its tokens; windows must not count them."""
    state = start(attention_model, LONG, SHORT)
    state.tree(torch.tensor([[7, 9, 11, 12]] * 2), torch.tensor([[-1, 0, 1, 2], [-1] * 4]))
    state.keep([[0, 1, 2, 3], [1, -1, -1, -1]])
    texts = [[*LONG, 7, 9, 11, 12], [*SHORT, 9]]
    logits = state.append(torch.tensor([[7, 3], [7, 3]]))
    for row, text in enumerate(texts):
        close(logits[row], full(attention_model, [*text, 7, 3])[-2:])
    logits = state.tree(torch.tensor([[4, 6]] * 2), torch.tensor([[-1, 0]] * 2))
    for row, text in enumerate(texts):
        close(logits[row], full(attention_model, [*text, 7, 3, 4, 6])[-2:])


FEATURES = partial(FSPAD, nodes=6, depth=3, breadth=2)
DRAFTERS = {"recycling": TokenRecycling, "mtp": MTP, "fspad": FEATURES, "model": None}


@pytest.mark.parametrize("drafter", DRAFTERS.values(), ids=list(DRAFTERS))
def test_drafts_never_change_the_text(attention_model, drafter):
    chosen = DySpec(attention_model, nodes=6) if drafter is None else drafter()
    if attention_model.config.model_type in MORE_THAN_A_LAYER and drafter in (MTP, FEATURES):
        with pytest.raises(ModelError, match="are not those of its output layer"):
            generate_with_drafter(attention_model, LONG, chosen, 10, eos_token_id=[])
        return
    expected = plain_text(attention_model, LONG, 10)
    found = generate_with_drafter(attention_model, LONG, chosen, 10, eos_token_id=[])
    assert found.ids == expected


def test_drafts_of_a_batch_never_change_a_text(attention_model):
    found = speculate(attention_model, [LONG, SHORT], TokenRecycling(), 10, eos_token_id=[])
    assert [one.ids for one in found] == [
        plain_text(attention_model, text, 10) for text in (LONG, SHORT)
    ]


def test_continuations_read_in_bytes_are_read_like_texts(attention_model):
    scorer = CachedPrefixScorer(attention_model)
    for paths in ([LONG, [*LONG, 7], [*LONG, 7, 9], [*LONG, 5]], [[*LONG, 7, 9, 3], [*LONG, 7, 4]]):
        for path, logits in zip(paths, scorer.next_logits([tuple(p) for p in paths]), strict=True):
            close(logits, full(attention_model, path)[-1])
    expected = full(attention_model, LONG).log_softmax(-1)[9:-1]
    expected = expected.gather(1, torch.tensor(LONG[10:])[:, None]).sum()
    found = CachedPrefixScorer(attention_model).logprob(tuple(LONG[:10]), LONG[10:], chunk=4)
    assert found == pytest.approx(float(expected), abs=1e-3)


AMPLE = [
    Full(),
    H2O(heavy=100, recent=100),
    TokenSelect(n_init=10, k=100, n_local=10),
    PerLayer({}, default=H2O(heavy=100, recent=100)),
    PerHead({}, default=Full()),
]


@pytest.mark.parametrize("policy", AMPLE, ids=lambda policy: type(policy).__name__)
def test_a_cache_that_keeps_everything_writes_the_same_text(any_model, policy):
    """Or says by name that it cannot, and leaves the model as it was."""
    expected = plain_text(any_model, LONG, 6)
    before = any_model.config._attn_implementation
    ids = torch.tensor([LONG])
    try:
        cache = policy.cache(any_model)
    except ModelError:
        assert any_model.config._attn_implementation == before
    else:
        try:
            with torch.no_grad():
                found = any_model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    past_key_values=cache,
                    max_new_tokens=6,
                    do_sample=False,
                    eos_token_id=None,
                )
            assert found[0].tolist() == expected
        finally:
            any_model.set_attn_implementation(before)
    assert plain_text(any_model, LONG, 6) == expected


CHANGES = {"sparse": TokenSparse(tau=0.0).attach, "still": Still(chunk=4, topk=1).convert}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_attention_that_cannot_be_changed_is_left_as_it_was(any_model, change):
    """Dense token-sparse attention and reverted hybrid attention are the model's own again."""
    expected = full(any_model, LONG)
    before = any_model.config._attn_implementation
    try:
        changed = change(any_model)
    except ModelError:
        assert any_model.config._attn_implementation == before
    else:
        try:
            found = full(any_model, LONG)
            if isinstance(changed, SparsePrefill):
                close(found, expected)
            else:
                assert (found - expected).abs().max() > 1e-3  # untrained
        finally:
            changed.detach() if isinstance(changed, SparsePrefill) else revert(any_model)
        assert any_model.config._attn_implementation == before
    close(full(any_model, LONG), expected)


# ---------------------------------------------- what holds, or is refused, for every architecture


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_every_row_alone(any_model, side):
    texts = [LONG, SHORT, LONG[:4]]
    rows = [([0] * (20 - len(t)), t) for t in texts]
    rows = [pad + text if side == "left" else text + pad for pad, text in rows]
    ids = torch.tensor(rows)
    attention = torch.tensor([[1] * len(t) + [0] * (20 - len(t)) for t in texts]).bool()
    attention = attention.flip(1) if side == "left" else attention
    first = attention & (attention.cumsum(1) == 1)
    batch = TokenBatch(ids, attention, attention & ~first)
    found = score(any_model, batch, ("logprob", "entropy", "topk", "hidden"), top_k=3)
    for row, text in enumerate(texts):
        logprobs = full(any_model, text).float().log_softmax(-1)[:-1]
        own = batch.target[row]
        expected = logprobs.gather(1, torch.tensor(text[1:])[:, None])[:, 0]
        torch.testing.assert_close(found.logprob[row, own], expected, atol=1e-4, rtol=1e-4)
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
        torch.testing.assert_close(found.entropy[row, own], entropy, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.topk_ids[row, own][:, 0], logprobs.argmax(-1))


def test_the_output_layer_is_applied_as_the_model_applies_it(any_model):
    ids = torch.tensor([LONG])
    states = features_of(any_model, ids, torch.ones_like(ids))
    if any_model.config.model_type in MORE_THAN_A_LAYER:
        assert linear_head(any_model) is None
        with pytest.raises(ModelError, match="logits of ModernBertDecoder"):
            output_logits(any_model, states)
        return
    expected = full(any_model, LONG).float()
    close(output_logits(any_model, states)[0], expected)
    head = linear_head(any_model)
    assert head is not None
    close(head.logits(states)[0], expected)


def test_states_of_padded_rows_are_those_of_the_rows_or_refused(any_model):
    ids = torch.tensor([LONG, [0] * 5 + SHORT])
    attention = torch.ones_like(ids)
    attention[1, :5] = 0
    if not compat.reads_left_padding(any_model):
        for read in (
            lambda: features_of(any_model, ids, attention),
            lambda: beam_search_policy(any_model, [LONG, SHORT], 1, max_new_tokens=2),
        ):
            with pytest.raises(ModelError, match=f"{type(any_model).__name__} reads padding"):
                read()
        return
    states = features_of(any_model, ids, attention)
    alone = features_of(any_model, ids[1:, 5:], attention[1:, 5:])
    torch.testing.assert_close(states[1, 5:], alone[0], atol=1e-4, rtol=1e-3)


def test_padding_enters_the_state_of_two_recurrent_architectures(any_model):
    takes_padding = any_model.config.model_type in ("recurrent_gemma", "rwkv")
    assert compat.reads_left_padding(any_model) is not takes_padding


# ------------------------------------------------------------- what is refused, by the model's name


def test_models_that_count_columns_decode_and_read_no_trees(column_model):
    state = start(column_model, LONG, SHORT)
    logits = state.append(torch.tensor([[7, 9], [7, 9]]))
    for row, text in enumerate((LONG, SHORT)):
        close(logits[row], full(column_model, [*text, 7, 9])[-2:])
    name = type(column_model).__name__
    with pytest.raises(ModelError, match=name):
        state.tree(torch.tensor([[7, 9]] * 2), torch.tensor([[-1, -1]] * 2))
    with pytest.raises(ModelError, match=name):
        generate_with_drafter(column_model, LONG, MTP(), 4)
    drafter = TokenRecycling()
    drafter.begin(column_model, [*LONG, *LONG]).draft(LONG[0], 8)
    with pytest.raises(ModelError, match=name):
        generate_with_drafter(column_model, [*LONG, *LONG], drafter, 30)


def test_recurrent_models_have_no_decoding_state(recurrent_model):
    name = type(recurrent_model).__name__
    with pytest.raises(ModelError, match=f"{name} has .* layers, whose state cannot be forked"):
        start(recurrent_model, LONG)
    with pytest.raises(ModelError, match=name):
        generate_with_drafter(recurrent_model, LONG, TokenRecycling(), 4)
    with pytest.raises(ModelError, match=name):
        CachedPrefixScorer(recurrent_model).next_logits([tuple(LONG)])
    with pytest.raises(ModelError, match=name):
        MTP().begin(recurrent_model, LONG)
    ids = torch.tensor([LONG])
    with pytest.raises(ModelError, match=name):
        sample_rollouts(recurrent_model, ids, torch.ones_like(ids).bool(), RolloutSettings())
    with pytest.raises(ModelError, match=f"{name} has .* not in a cache of keys and values"):
        HiddenStateOptimizer(recurrent_model)(torch.tensor([LONG]))


def test_an_architecture_that_is_not_known_is_tried(attention_model, monkeypatch):
    """The list of known ones saves the trial; it does not decide."""
    monkeypatch.setattr(compat, "CHECKED", frozenset())
    compat.require_trees(attention_model)
