import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from rich.cells import cell_len

from tokenry.core.divergence import divergence as exact_divergence
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, UnknownNameError, VocabularyError
from tokenry.measure.inspect import inspect
from tokenry.model.hub import Loaded

TEXT = "the cat sat there\n<b>naïve</b> & 東京 🙂"


@pytest.fixture(scope="module")
def other_model(tiny_llama_text):
    """Another model with the same vocabulary."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(tiny_llama_text.config).eval()


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token a byte: the finest tokenizer, with the tiny one's size or less."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def bos_tokenizer(tiny_tokenizer):
    """The tiny tokenizer, made to open every text with its beginning-of-sequence token."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tiny_tokenizer.bos_token_id)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def logprobs(model, ids):
    """Row t: the distribution that predicts token t + 1."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def token_ids(tokenizer, text=TEXT):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_signals_equal_the_models_own_distributions(tiny_llama_text, tiny_tokenizer):
    names = ("entropy", "rank", "margin", "varentropy")
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT, names, top_k=3)
    ids = token_ids(tiny_tokenizer)
    exact = logprobs(tiny_llama_text, ids)[:-1]
    target = torch.tensor(ids[1:])
    own = exact.gather(1, target[:, None])
    best = exact.topk(3)
    assert found.ids.tolist() == ids
    assert b"".join(found.pieces) == TEXT.encode()
    assert list(found.signals) == ["surprisal", *names]
    torch.testing.assert_close(found.signals["surprisal"][1:], -own[:, 0])
    torch.testing.assert_close(found.signals["entropy"][1:], -(exact.exp() * exact).sum(-1))
    assert torch.equal(found.signals["rank"][1:], (exact > own).sum(-1))
    torch.testing.assert_close(found.signals["margin"][1:], best.values[:, 0] - best.values[:, 1])
    torch.testing.assert_close(found.top_logprobs[1:], best.values)
    assert torch.equal(found.top_ids[1:], best.indices)


def test_first_token_is_unscored_without_an_automatic_opening(tiny_llama_text, tiny_tokenizer):
    assert tiny_tokenizer.bos_token_id is not None  # declared, yet not put before texts
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT)
    assert found.scored.tolist() == [False] + [True] * (len(found.ids) - 1)
    assert all(values[0] == 0 for values in found.signals.values())
    assert 0 not in {row["position"] for row in found.table()}
    row = json.loads(json.dumps(found.row(0)))
    assert row["surprisal"] is None
    assert row["entropy"] is None
    assert row["alternatives"] == []
    for name, values in found.signals.items():
        assert found.mean(name) == pytest.approx(float(values[1:].mean()))


def test_a_difference_is_there_only_where_both_models_scored_the_text(
    tiny_llama_text, other_model, tiny_tokenizer, bos_tokenizer
):
    """The first model scores the first token behind its opening; the second has nothing before
    it."""
    words = PreTrainedVocabulary(bos_tokenizer)
    against = Loaded(other_model, tiny_tokenizer)
    found = inspect(tiny_llama_text, words, TEXT, against=against)
    assert found.scored.all()
    assert found.against is not None
    assert not found.against.same_vocabulary
    assert found.scored_by("difference").tolist() == [False] + [True] * (len(found.ids) - 1)
    assert found.row(0)["surprisal"] > 0
    assert found.row(0)["difference"] is None
    assert found.heat("difference")[0] is None
    assert 0 not in {row["position"] for row in found.table("difference")}
    assert 0 in {row["position"] for row in found.table("surprisal")}
    assert "difference not scored" in found.to_html("difference")
    later = found.signals["difference"][1:]
    assert found.mean("difference") == pytest.approx(float(later.mean()), abs=1e-6)


class PreTrainedVocabulary:
    """A tokenizer that says its vocabulary is another, so that models are compared on bytes."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def get_vocab(self):
        return {}

    def __call__(self, *arguments, **options):
        return self.tokenizer(*arguments, **options)

    def __len__(self):
        return len(self.tokenizer)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_first_token_is_scored_after_an_automatic_opening(tiny_llama_text, bos_tokenizer):
    found = inspect(tiny_llama_text, bos_tokenizer, TEXT)
    ids = token_ids(bos_tokenizer)
    exact = logprobs(tiny_llama_text, [bos_tokenizer.bos_token_id, *ids])[:-1]
    assert found.scored.all()
    assert found.ids.tolist() == ids
    expected = -exact.gather(1, torch.tensor(ids)[:, None])[:, 0]
    torch.testing.assert_close(found.signals["surprisal"], expected)


def test_a_text_that_carries_the_opening_gets_it_once(tiny_llama_text, bos_tokenizer):
    bare, carried = (inspect(tiny_llama_text, bos_tokenizer, t) for t in (TEXT, f"<s>{TEXT}"))
    assert carried.ids.tolist() == [bos_tokenizer.bos_token_id, *bare.ids.tolist()]
    assert carried.scored.tolist() == [False, *[True] * len(bare.ids)]
    torch.testing.assert_close(carried.signals["surprisal"][1:], bare.signals["surprisal"])
    # Every later window has it too, so a text whose words are all alike is alike everywhere.
    found = inspect(tiny_llama_text, bos_tokenizer, "<s>" + "a" * 39, window=8)
    assert len(found.ids) == 40
    bos, letter = found.ids[:2].tolist()
    exact = logprobs(tiny_llama_text, [bos] + [letter] * 7)[:-1, letter]
    torch.testing.assert_close(found.signals["surprisal"][1:8], -exact)
    torch.testing.assert_close(found.signals["surprisal"][-1], -exact[-1])


@pytest.mark.parametrize("window", [4, 7, 16])
@pytest.mark.parametrize("opening", [False, True])
def test_long_texts_are_scored_in_half_overlapping_windows(
    tiny_llama_text, tiny_tokenizer, bos_tokenizer, window, opening
):
    tokenizer = bos_tokenizer if opening else tiny_tokenizer
    seen = []
    hook = tiny_llama_text.register_forward_pre_hook(
        lambda _m, _a, options: seen.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        found = inspect(tiny_llama_text, tokenizer, TEXT, window=window)
    finally:
        hook.remove()
    assert max(seen) <= window
    ids, prefix = token_ids(tokenizer), [tokenizer.bos_token_id] * opening
    room = window - len(prefix)
    for t in range(0 if opening else 1, len(ids)):
        late = max(0, math.ceil((t + 1 - room) / (room // 2)))  # the first window that holds t
        context = prefix + ids[late * (room // 2) : t]
        assert len(context) >= min(t, window // 2 - 2)
        expected = -logprobs(tiny_llama_text, context)[-1, ids[t]]
        assert found.signals["surprisal"][t].item() == pytest.approx(expected.item(), abs=1e-3)


def test_windows_respect_the_models_positions(tiny_llama_text, tiny_tokenizer):
    text = "the cat " * 400
    seen = []
    hook = tiny_llama_text.register_forward_pre_hook(
        lambda _m, _a, options: seen.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        found = inspect(tiny_llama_text, tiny_tokenizer, text, top_k=0)
    finally:
        hook.remove()
    assert len(found.ids) > 512 == tiny_llama_text.config.max_position_embeddings
    assert max(seen) == 512
    assert (found.signals["surprisal"][1:] > 0).all()


def test_one_vocabulary_gives_exact_divergences(tiny_llama_text, other_model, tiny_tokenizer):
    found = inspect(
        tiny_llama_text,
        tiny_tokenizer,
        TEXT,
        against=Loaded(other_model, tiny_tokenizer),
        divergence="forward_kl",
    )
    ids = token_ids(tiny_tokenizer)
    own, others = (logprobs(model, ids)[:-1] for model in (tiny_llama_text, other_model))
    expected = exact_divergence(others, own, FORWARD_KL)  # D(against || model)
    torch.testing.assert_close(found.signals["divergence"][1:], expected)
    target = torch.tensor(ids[1:])[:, None]
    difference = (others - own).gather(1, target)[:, 0]
    torch.testing.assert_close(found.signals["difference"][1:], difference)
    assert found.against is not None
    assert found.against.same_vocabulary
    torch.testing.assert_close(found.against.difference, found.signals["difference"])
    assert [s.byte_end - s.byte_start for s in found.against.spans] == [
        len(piece) for piece in found.pieces
    ]


def test_a_model_against_itself_differs_nowhere(tiny_llama_text, tiny_tokenizer):
    itself = Loaded(tiny_llama_text, tiny_tokenizer)
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT, against=itself)
    assert found.signals["divergence"].abs().max() < 1e-6
    assert found.signals["difference"].abs().max() == 0
    assert not re.search(r"\bnan\b", found.to_html(), re.IGNORECASE)


def test_two_tokenizers_are_compared_on_shared_bytes(
    tiny_llama_text, other_model, tiny_tokenizer, byte_tokenizer
):
    against = Loaded(other_model, byte_tokenizer)
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT, against=against)
    alone = inspect(other_model, byte_tokenizer, TEXT).signals["surprisal"]
    assert "divergence" not in found.signals
    comparison = found.against
    assert comparison is not None
    assert not comparison.same_vocabulary
    assert len(comparison.spans) == len(found.ids)  # every byte is a boundary of the other
    assert not comparison.scored[0]
    for t, span in enumerate(comparison.spans[1:], start=1):
        expected = alone[span.byte_start : span.byte_end].sum()
        torch.testing.assert_close(comparison.other_surprisal[t], expected)
        difference = found.signals["surprisal"][t] - expected
        torch.testing.assert_close(found.signals["difference"][t], difference)
    page = found.to_html("difference")
    assert "Where the two models differ most" in page


def test_divergence_across_vocabularies_is_refused(
    tiny_llama_text, other_model, tiny_tokenizer, byte_tokenizer
):
    against = Loaded(other_model, byte_tokenizer)
    with pytest.raises(VocabularyError, match="difference"):
        inspect(tiny_llama_text, tiny_tokenizer, TEXT, ("divergence",), against=against)
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT, ("difference",), against=against)
    assert set(found.signals) == {"surprisal", "difference"}


def test_table_is_sorted_by_surprise_and_speaks_of_the_right_token(tiny_llama_text, tiny_tokenizer):
    rows = inspect(tiny_llama_text, tiny_tokenizer, TEXT, top_k=2).table()
    surprises = [row["surprisal"] for row in rows]
    assert surprises == sorted(surprises, reverse=True)
    ids = token_ids(tiny_tokenizer)
    assert all(row["id"] == ids[row["position"]] for row in rows)
    assert all(len(row["alternatives"]) == 2 for row in rows)
    assert json.loads(json.dumps(rows)) is not None


class Page(HTMLParser):
    """Collects tags, attributes, the tokens' text and the scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.tokens, self.depth, self.marks = [], [], 0, 0

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "span" and "t" in (dict(attrs).get("class") or "").split():
            self.tokens.append("")
            self.depth = 1
        elif tag == "i":
            self.marks = 1

    def handle_endtag(self, tag):
        if tag == "span":
            self.depth = 0
        elif tag == "i":
            self.marks = 0

    def handle_data(self, data):
        if self.depth and not self.marks:
            self.tokens[-1] += data


def test_page_is_self_contained_and_shows_the_text_escaped(tiny_llama_text, tiny_tokenizer):
    hostile = "the </script><script>alert('1')</script> \"cat\" & <img src=x onerror=y>\nsat"
    found = inspect(tiny_llama_text, tiny_tokenizer, hostile, ("entropy", "rank"))
    page = found.to_html("entropy")
    parsed = Page()
    parsed.feed(page)
    assert "".join(parsed.tokens) == hostile
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 2
    assert not {"img", "link", "iframe"} & set(tags)
    assert not any({"src", "href"} & set(attrs) for _, attrs in parsed.tags)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    chosen = [attrs for tag, attrs in parsed.tags if tag == "option"]
    assert [attrs["value"] for attrs in chosen] == ["surprisal", "entropy", "rank"]
    assert [attrs["value"] for attrs in chosen if "selected" in attrs] == ["entropy"]
    spans = [attrs for tag, attrs in parsed.tags if "data-detail" in attrs]
    assert len(spans) == len(found.ids)
    assert "not scored" in spans[0]["data-detail"]
    assert "unscored" in spans[0]["class"]
    assert f"entropy {found.signals['entropy'][3]:.3f} nats" in spans[3]["data-detail"]


def test_page_carries_the_colours_of_every_signal(tiny_llama_text, tiny_tokenizer):
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT, ("entropy", "rank"))
    page = found.to_html()
    data = re.search(r'id="heats">(.*?)</script>', page, re.DOTALL)
    assert data
    heats = json.loads(data[1])
    assert set(heats) == {"surprisal", "entropy", "rank"}
    for values in heats.values():
        assert len(values["heat"]) == len(found.ids)
        assert values["heat"][0] is None
        assert all(0 <= heat <= 1 for heat in values["heat"][1:])
        assert max(values["heat"][1:]) == 1


def test_colour_grows_with_the_signal_and_infinity_is_full(tiny_llama_text, tiny_tokenizer):
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT)
    values = found.signals["surprisal"].clone()
    values[2] = math.inf
    found = replace(found, signals={"surprisal": values})
    heats = found.heat("surprisal")
    order = values[1:].argsort()
    ordered = [heats[1 + int(i)] for i in order]
    assert ordered == sorted(ordered)
    assert heats[2] == 1
    assert "∞" in found.to_html()


def test_terminal_text_is_the_text(tiny_llama_text, tiny_tokenizer):
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT)
    shown = found.to_rich()
    assert shown.plain == TEXT
    first = len(found.pieces[0].decode())
    assert all(span.start >= first for span in shown.spans if span.style)
    assert any("on #" in str(span.style) for span in shown.spans)


def test_special_tokens_in_the_text_are_shown_by_name(tiny_llama_text, tiny_tokenizer):
    found = inspect(tiny_llama_text, tiny_tokenizer, "the cat</s>")
    assert found.pieces[-1] == b"</s>"


def test_a_single_token_without_opening_is_shown_unscored(tiny_llama_text, tiny_tokenizer):
    itself = Loaded(tiny_llama_text, tiny_tokenizer)
    for against in (None, itself):
        found = inspect(tiny_llama_text, tiny_tokenizer, "t", against=against)
        assert found.scored.tolist() == [False]
        assert found.table() == []
        assert "not scored" in found.to_html()
        assert found.to_rich().plain == "t"


def test_wrong_inputs_say_what_is_wrong(tiny_llama_text, tiny_tokenizer):
    model, tokenizer = tiny_llama_text, tiny_tokenizer
    with pytest.raises(InputError, match="empty text"):
        inspect(model, tokenizer, "")
    with pytest.raises(UnknownNameError, match="did you mean surprisal"):
        inspect(model, tokenizer, TEXT, ("suprisal",))
    with pytest.raises(UnknownNameError, match="divergence"):
        inspect(model, tokenizer, TEXT, divergence="kl?")
    with pytest.raises(InputError, match="second model"):
        inspect(model, tokenizer, TEXT, ("divergence",))
    with pytest.raises(InputError, match="window"):
        inspect(model, tokenizer, TEXT, window=1)
    with pytest.raises(UnknownNameError, match="entropy"):
        inspect(model, tokenizer, TEXT).to_html("entropi")


@pytest.mark.model
def test_smollm2_stumbles_over_a_false_capital(smollm2):
    texts = [f"The capital of France is {city}." for city in ("Paris", "Berlin")]
    right, wrong = (inspect(*smollm2, text, ("rank",)) for text in texts)
    at = wrong.pieces.index(b" Berlin")
    assert right.signals["rank"][at] == 0
    assert wrong.signals["surprisal"][at] > right.signals["surprisal"][at] + 2
    assert wrong.top_pieces[at][0] == " Paris"


def test_a_page_breaks_lines_between_words_and_never_inside_a_token(
    tiny_llama_text, tiny_tokenizer
):
    page = inspect(tiny_llama_text, tiny_tokenizer, "the cat sat there\n" + " " * 30).to_html()
    assert re.search(r"\.t \{[^}]*white-space: pre;", page)
    tokens = re.findall(r'(<wbr>)?<span class="t[^>]*>(.*?)</span>', page, re.DOTALL)
    assert any(before for before, _ in tokens)
    for before, piece in tokens[1:]:
        assert bool(before) == (piece[:1] == " ")


def test_every_end_of_a_scale_that_is_open_says_so(
    tiny_llama_text, other_model, tiny_tokenizer, byte_tokenizer
):
    against = Loaded(other_model, byte_tokenizer)
    page = inspect(tiny_llama_text, tiny_tokenizer, TEXT, against=against).to_html("difference")
    assert re.search(r'id="low">≤ −[\d.]+ nats<', page)
    assert re.search(r'id="high">≥ [\d.]+ nats<', page)
    assert 'id="low">0<' in inspect(tiny_llama_text, tiny_tokenizer, TEXT).to_html()


def test_numbers_keep_their_titles_where_a_row_is_a_paragraph(tiny_llama_text, tiny_tokenizer):
    page = inspect(tiny_llama_text, tiny_tokenizer, TEXT).to_html()
    assert 'data-title="surprisal (nats)"' in page
    assert "attr(data-title)" in page


@pytest.mark.parametrize("width", [9, 12, 20, 80])
def test_terminal_lines_end_between_tokens(tiny_llama_text, tiny_tokenizer, width):
    text = "the cat sat on the mat\nand gatheredfeathers there is a 東京 theory"
    found = inspect(tiny_llama_text, tiny_tokenizer, text)
    shown = found.to_rich(width=width).plain
    assert shown.replace("\n", "") == text.replace("\n", "")
    lines = shown.split("\n")
    assert max(map(cell_len, lines)) <= width
    if width == 80:
        assert shown == text
    elif width >= 20:  # every word fits: a line begins with one
        assert all(line[:1] == " " or line[:3] in ("the", "and") for line in lines)
    whole = [piece.decode(errors="ignore") for piece in found.pieces]
    for token in {"ther", " the", " sat"} & set(whole):
        assert shown.count(token) >= whole.count(token)


def test_against_a_tuned_model_it_says_how_few_tokens_carry_the_divergence(
    tiny_llama_text, other_model, tiny_tokenizer
):
    against = Loaded(other_model, tiny_tokenizer)
    found = inspect(tiny_llama_text, tiny_tokenizer, TEXT, against=against)
    spread = found.concentration
    assert spread is not None
    assert spread.values.tolist() == found.signals["divergence"][1:].double().tolist()
    said = found.concentrated()
    assert f"Of {len(found.ids) - 1} tokens, {spread.carrying(0.5):.1%} carry half" in said
    assert f"{spread.carrying(0.9):.1%} nine tenths" in said
    assert f"{spread.below(0.01):.1%} have less than 0.01 nats" in said
    assert f"{spread.above(0.1):.1%} more than 0.1" in said
    page = found.to_html("divergence")
    assert said in page
    assert "<polyline" in page
    other = inspect(
        tiny_llama_text, tiny_tokenizer, TEXT, against=against, divergence="total_variation"
    )
    assert "nats" not in other.concentrated()


def test_nothing_is_said_of_a_divergence_that_is_not_there(
    tiny_llama_text, other_model, tiny_tokenizer, bos_tokenizer
):
    alone = inspect(tiny_llama_text, tiny_tokenizer, TEXT)
    words = PreTrainedVocabulary(bos_tokenizer)
    bytes_only = inspect(tiny_llama_text, words, TEXT, against=Loaded(other_model, tiny_tokenizer))
    single = inspect(
        tiny_llama_text, tiny_tokenizer, "t", against=Loaded(other_model, tiny_tokenizer)
    )
    infinite = inspect(
        tiny_llama_text, tiny_tokenizer, TEXT, against=Loaded(other_model, tiny_tokenizer)
    )
    infinite.signals["divergence"][2] = math.inf
    for found in (alone, bytes_only, single, infinite):
        assert found.concentration is None
        assert found.concentrated() == ""
        assert "<polyline" not in found.to_html()
