"""Multi-token prediction: drafts from masks, layouts of the pass, and the unchanged text."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.speculation.mtp import MTP
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted
from tokenry.model.decoding import DecodingState
from tokenry.model.heads.mtp import MaskPredictor

PROMPT = [5, 9, 23, 11, 42, 7]


def trained(model, k=3, sampler=True, seed=1):
    """A predictor as after training: its adapter changes something."""
    predictor = MaskPredictor.of(model, k, rank=2, sampler=sampler)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for change in predictor.lora.maps:
            change.B.normal_(0.0, 0.3, generator=generator)
    return predictor.to(model.dtype)


@pytest.fixture(scope="module")
def exact(tiny_model):
    return copy.deepcopy(tiny_model).double()


@torch.no_grad()
def alone(model, predictor, text):
    """States of the masks behind `text` in a pass of their own, without a cache or a 4-D mask."""
    k = predictor.k
    ids = torch.tensor([[*text, *[0] * k]])
    masks = torch.tensor([[0] * len(text) + list(range(1, k + 1))])
    with predictor.lora.gate(model, masks > 0):
        output = model(
            inputs_embeds=predictor.embed(model, ids, masks),
            output_hidden_states=True,
            use_cache=False,
        )
    return output.hidden_states[-1][0, -k:], output.logits[0, -k - 1]


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
def test_masks_behind_a_tree_say_what_they_say_behind_the_plain_text(exact, mode):
    predictor = trained(exact)
    draft = MTP(predictor, mode=mode).begin(exact, PROMPT)
    state = DecodingState.start(exact, torch.tensor([PROMPT]))
    tree = TokenTree.chain([8, 30, 17])
    logits = draft.read(state, tree)
    assert len(logits) == 3
    assert sorted(draft.behind) == ([0, 1, 2] if mode == "quadratic" else [2])
    for node, states in draft.behind.items():
        expected, own = alone(exact, predictor, [*PROMPT, *tree.tokens[: node + 1]])
        torch.testing.assert_close(states, expected)
        torch.testing.assert_close(logits[node], own.float(), atol=1e-5, rtol=1e-5)


def test_masks_leave_the_cache_with_the_rejected_drafts(exact):
    draft = MTP(trained(exact)).begin(exact, PROMPT)
    state = DecodingState.start(exact, torch.tensor([PROMPT]))
    draft.read(state, TokenTree.chain([8, 30, 17]))
    assert state.length == len(PROMPT) + 3 + 3 * 3
    state.keep(torch.tensor([0, 1]))
    assert state.length == len(PROMPT) + 2
    plain = DecodingState.start(exact, torch.tensor([[*PROMPT, 8, 30]]))
    tokens = torch.tensor([12])
    torch.testing.assert_close(state.append(tokens), plain.append(tokens))


@pytest.mark.parametrize("sampler", [True, False])
def test_drafts_follow_the_masks_of_the_last_accepted_token(exact, sampler):
    predictor = trained(exact, sampler=sampler)
    draft = MTP(predictor).begin(exact, PROMPT)
    state = DecodingState.start(exact, torch.tensor([PROMPT]))
    assert draft.draft(8, budget=9) == TokenTree.chain([8])  # nothing is known yet
    tree = TokenTree.chain([8, 30, 17])
    logits = draft.read(state, tree)
    draft.update(tree, logits, Accepted([0, 1], [30, 55]))
    found = draft.draft(55, budget=9)
    states, _ = alone(exact, predictor, [*PROMPT, 8, 30])
    expected = [55]
    for z in states:
        told = torch.tensor(expected[-1:])
        expected.append(int(predictor.logits(exact, z[None], told).argmax()))
    assert found == TokenTree.chain(expected)
    assert draft.draft(55, budget=2) == TokenTree.chain(expected[:3])
    assert draft.draft(55, budget=0) == TokenTree.chain([55])


def test_linear_drafts_nothing_after_a_rejection(exact):
    draft = MTP(trained(exact), mode="linear").begin(exact, PROMPT)
    for path, known in (([0, 1, 2], True), ([0, 1], False)):
        state = DecodingState.start(exact, torch.tensor([PROMPT]))
        tree = TokenTree.chain([8, 30, 17])
        draft.update(tree, draft.read(state, tree), Accepted(path, [30, 17, 2][: len(path)]))
        assert (len(draft.draft(2, budget=9)) > 1) is known


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_trained_predictor_changes_no_text(tiny_model, mode, dtype):
    model = copy.deepcopy(tiny_model).to(dtype)
    drafter = MTP(trained(model), mode=mode)
    found = generate_with_drafter(model, PROMPT, drafter, 16, eos_token_id=[])
    if dtype == torch.float64:  # in bfloat16 passes of different widths round differently
        ids = torch.tensor([PROMPT])
        expected = model.generate(
            ids, attention_mask=ids > 0, max_new_tokens=16, do_sample=False, eos_token_id=None
        )
        assert found.ids == expected[0].tolist()
    assert len(found.new_ids) == 16


class Oracle(MaskPredictor):
    """A predictor that knows the text, or knows it in part: what drafting can reach at best."""

    def __init__(self, model, k, truth):
        super().__init__(torch.zeros(k, 32), MaskPredictor.of(model, k, rank=1).lora, None)
        self.truth = truth

    def logits(self, model, states, previous):
        out = torch.zeros(1, 64)
        out[0, self.truth[int(previous)]] = 1.0
        return out


def test_a_text_that_is_predicted_gives_k_plus_1_tokens_a_pass(tiny_llama, monkeypatch):
    """A model that counts: every token has one successor, so the oracle is always right."""
    from transformers import LlamaForCausalLM

    config = copy.deepcopy(tiny_llama.config)
    config.tie_word_embeddings = False
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
        table = torch.randn(64, 32)
        model.get_input_embeddings().weight.copy_(table)
        model.get_output_embeddings().weight.copy_(table.roll(1, 0) * 0)
        unit = table / table.norm(dim=1, keepdim=True)
        model.get_output_embeddings().weight[(torch.arange(64) + 1) % 64] = unit
    successor = {token: (token + 1) % 64 for token in range(64)}
    right = {**successor}
    half = {token: after if token % 4 else 0 for token, after in successor.items()}
    lengths = {}
    for name, truth in (("right", right), ("half", half)):
        for mode in ("linear", "quadratic"):
            drafter = MTP(Oracle(model, 3, truth), mode=mode)
            found = generate_with_drafter(model, [1, 2], drafter, 42, eos_token_id=[])
            assert found.new_ids == [(3 + i) % 64 for i in range(42)]
            lengths[name, mode] = found.accept_lengths
    for mode in ("linear", "quadratic"):  # the first pass has no drafts yet
        assert lengths["right", mode] == [1, *[4] * 10]
    assert len(lengths["half", "quadratic"]) < len(lengths["half", "linear"])


def assert_drawn_from(counts, distribution):
    """Chi-square over the tokens expected at least five times, the rest as one; 6.5 sigma."""
    expected = distribution * counts.sum()
    often = expected >= 5
    ours = torch.cat([counts[often], counts[~often].sum()[None]])
    theirs = torch.cat([expected[often], expected[~often].sum()[None]])
    statistic = float(((ours - theirs) ** 2 / theirs.clamp_min(1e-3)).sum())
    freedom = int(often.sum())
    assert statistic < freedom + 6.5 * (2 * freedom) ** 0.5 + 20


def test_drawn_drafts_carry_what_they_were_drawn_from(exact):
    predictor = trained(exact)
    tree = TokenTree.chain([8, 30])
    found = []
    for _ in range(2):  # the same seed draws the same
        draft = MTP(predictor, temperature=0.7).begin(exact, PROMPT)
        state = DecodingState.start(exact, torch.tensor([PROMPT]))
        draft.update(tree, draft.read(state, tree), Accepted([0], [9]))
        states = draft.states
        found.append(draft.draft(9, budget=5))
    assert found[0] == found[1]
    proposals = found[0].proposals
    assert proposals.shape == (4, 64)
    counts = torch.zeros(64)
    for _ in range(2000):
        counts[draft.draft(9, budget=1).tokens[1]] += 1
    assert_drawn_from(counts, found[0].proposals[1])
    tokens = found[0].tokens
    for node in range(1, 4):
        told = torch.tensor(tokens[node - 1 : node])
        logits = predictor.logits(exact, states[node - 1][None], told)[0]
        torch.testing.assert_close(proposals[node], (logits / 0.7).softmax(-1))


def test_masks_stay_inside_the_models_positions():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=24, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    drafter = MTP(MaskPredictor.of(model, k=6, rank=2))
    found = generate_with_drafter(model, PROMPT, drafter, 18, eos_token_id=[])
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids, attention_mask=ids > 0, max_new_tokens=18, do_sample=False, eos_token_id=None
    )
    assert found.ids == expected[0].tolist()


def test_impossible_settings_are_refused(tiny_llama):
    predictor = MaskPredictor.of(tiny_llama, k=3, rank=1)
    for options, words in (
        ({"k": 4}, r"MTP\.k is 4; it must be a whole number in \[1, 3\]"),
        ({"k": 0}, r"MTP\.k is 0"),
        ({"mode": "cubic"}, "one of 'linear', 'quadratic'"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
    ):
        with pytest.raises(InputError, match=words):
            MTP(predictor, **options)
