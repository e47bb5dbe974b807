"""Boundaries: what counts, against the tokens of a full rendering and a mask made by hand."""

from functools import lru_cache

import pytest

from chat_templates import ALTERNATES, KINDS, REWRITES, TOOLS, Kind, build_tokenizer
from tokenry.core.batch import TokenBatch
from tokenry.core.boundaries import (
    encoded,
    joined_pair,
    pair_tokens,
    part_tokens,
    prompt_ids,
    start_ids,
    text_tokens,
)
from tokenry.core.chat import Chat, messages_of
from tokenry.core.errors import InputError

TOKENIZERS = ["bytes", "trimmed", "dummy prefix", "starts", "ends"]

TALKS = {
    "two turns": "user:the cat?|assistant:sat there",
    "four turns": "user:hi|assistant:the dog sat|user:and the cat|assistant:on the mat",
    "opens with the assistant": "assistant:sat there",
    "ends with the user": "user:hi|assistant:hello|user:the mat?",
    "words of the header": "user:hi|assistant:assistant model A: user",
    "one letter": "user:hi|assistant:A",
    "starts like a thought": "user:hi|assistant:<thin air",
}


def talk(text):
    return [dict(zip(("role", "content"), turn.split(":", 1), strict=True))
            for turn in text.split("|")]  # fmt: skip


@lru_cache
def tokenizer_of(kind, template=None):
    return build_tokenizer(kind, template)


def written(tokenizer, ids, text):
    """What each token stands for in the text, from its name alone (ASCII texts only)."""
    place, parts = 0, []
    for name in tokenizer.convert_ids_to_tokens(ids):
        part = name.replace("Ġ", " ").replace("Ċ", "\n").replace("▁", " ")
        if part.startswith(" ") and not text.startswith(" ", place):
            part = part[1:]  # a dummy prefix is no character of the text
        assert text.startswith(part, place)
        place += len(part)
        parts.append(part)
    return parts


def overlapping(pieces, parts):
    """Which tokens share a character with a piece that counts; one without any is of the next."""
    marks = "".join(("x" if counts else ".") * len(text) for text, counts in pieces)
    place, result = 0, []
    for part in parts:
        result.append("x" in marks[place : place + max(len(part), 1)])
        place += len(part)
    return result


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_targets_are_the_tokens_of_the_full_rendering_that_hold_what_the_assistant_says(
    kind: Kind, tokens
):
    tokenizer = tokenizer_of(tokens, kind.template)
    for name, text in TALKS.items():
        messages = talk(text)
        pieces = kind.pieces(messages)
        full = tokenizer.apply_chat_template(messages, tokenize=False)
        if kind.name != "content in parts":
            assert full == "".join(part for part, _ in pieces), name
        whole = "".join(part for part, _ in pieces)
        ids = encoded(tokenizer, whole)
        texts = written(tokenizer, ids, whole)
        expected = overlapping(pieces, texts)
        expected[0] = False
        batch = TokenBatch.from_messages(tokenizer, [messages])
        row, target = batch.ids[0].tolist(), batch.target[0].tolist()
        if not kind.marked and messages[-1]["role"] == "assistant":
            last = len(expected) - expected[::-1].index(True)
            assert row[last] == tokenizer.eos_token_id, name
            ids, expected = [*ids[:last], row[last]], [*expected[:last], True]
        assert row == ids, name
        assert target == expected, (name, [t for t, e in zip(texts, target, strict=False) if e])


def test_a_word_that_begins_in_the_generation_prompt_counts_and_is_reported():
    kind = KINDS[2]
    tokenizer = tokenizer_of("bytes", kind.template)
    batch = TokenBatch.from_messages(
        tokenizer, [talk("user:hi|assistant:hello"), talk("user:a|assistant:(x")]
    )
    said = [tokenizer.decode(ids[keep]) for ids, keep in zip(batch.ids, batch.target, strict=True)]
    assert said == [" hello</s>", "(x</s>"]
    assert batch.crossing.tolist() == [1, 0]
    assert batch.concat(TokenBatch.from_ids([[1, 2]])).crossing.tolist() == [1, 0, 0]
    assert batch.select([1]).crossing.tolist() == [0]


def test_earlier_turns_that_the_template_rewrites_are_found():
    tokenizer = tokenizer_of("bytes", REWRITES)
    messages = talk("user:hi|assistant:the dog|user:and|assistant:the cat")
    batch = TokenBatch.from_messages(tokenizer, [messages])
    said = tokenizer.decode(batch.ids[0][batch.target[0]])
    assert said == "the dog<|im_end|><think>\n\n</think>\n\nthe cat<|im_end|>"
    messages[-1]["reasoning_content"] = "hm"
    batch = TokenBatch.from_messages(tokenizer, [messages])
    assert "<think>\nhm\n</think>" in tokenizer.decode(batch.ids[0][batch.target[0]])


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("the cat", " sat"),
        ("f(x)", ": y"),
        ("A: ", "hello"),
        ("the ca", "t sat"),
        ("", "on the mat"),
        ("<s>the cat", " sat</s>"),
        ("<s>", "the cat"),
        ("the cat sat ", ""),
    ],
)
def test_a_pair_is_the_tokens_of_its_whole_text_with_one_start_and_one_end(
    tokens, prompt, completion
):
    tokenizer = tokenizer_of(tokens)
    started = "<s>" * (tokens in ("starts", "ends") or prompt in ("", "<s>"))
    whole = (started + prompt + completion).replace("<s><s>", "<s>")
    boundary = len(whole) - len(completion)
    whole = whole.removesuffix("</s>") + "</s>"
    pair = pair_tokens(tokenizer, prompt, completion)
    assert pair.ids == encoded(tokenizer, whole)
    pieces = [(whole[:boundary], False), (whole[boundary:], True)]
    texts = written(tokenizer, pair.ids, whole)
    assert pair.target == overlapping(pieces, texts)
    assert pair.crossing == (boundary not in [len("".join(texts[:n])) for n in range(len(texts))])


def test_a_dummy_prefix_tokenizer_puts_no_space_between_the_parts():
    tokenizer = tokenizer_of("dummy prefix")
    pair = pair_tokens(tokenizer, "f(x)", ": y", end=False)
    assert tokenizer.decode(pair.ids) == "f(x): y"
    assert tokenizer.decode(pair.ids[pair.first :]) == ": y"


def test_a_prompt_gets_start_tokens_once_and_never_an_end_token():
    tokenizer = tokenizer_of("ends")
    assert start_ids(tokenizer) == [0]
    words = encoded(tokenizer, "the cat")
    assert prompt_ids(tokenizer, "the cat") == prompt_ids(tokenizer, "<s>the cat") == [0, *words]
    assert prompt_ids(tokenizer, "") == [0]
    assert prompt_ids(tokenizer_of("bytes"), "") == [0]
    assert prompt_ids(tokenizer, "<|im_start|>", templated=True) == encoded(
        tokenizer, "<|im_start|>"
    )
    text = text_tokens(tokenizer, "<s>the cat</s>")
    assert text.ids == [0, *words, 1]
    assert text.target == [False, *[True] * len(words), True]


def test_both_completions_stand_behind_the_same_tokens_and_spell_their_whole_difference():
    tokenizer = tokenizer_of("bytes")
    prompt, chosen, rejected = "the ca", "t sat", "r sat"
    pair = joined_pair([pair_tokens(tokenizer, prompt, side) for side in (chosen, rejected)])
    assert tokenizer.decode(pair.prompt) == "the"
    assert [tokenizer.decode(ids) for ids in pair.completions] == [" cat sat</s>", " car sat</s>"]
    assert all(all(target) for target in pair.target)
    assert pair.crossing >= 2


def test_a_tokenizer_without_offsets_finds_the_same_targets():
    class Slow:
        """Hides the offsets of a fast tokenizer."""

        is_fast = False

        def __init__(self, inner):
            self.inner = inner

        def __call__(self, text, **options):
            assert "return_offsets_mapping" not in options
            return self.inner(text, **options)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    for kind in KINDS:
        fast = tokenizer_of("bytes", kind.template)
        for text in TALKS.values():
            rows = [TokenBatch.from_messages(t, [talk(text)]) for t in (fast, Slow(fast))]
            assert rows[0].ids.tolist() == rows[1].ids.tolist()
            assert rows[0].target.tolist() == rows[1].target.tolist(), (kind.name, text)


def test_nothing_to_score_is_an_error():
    tokenizer = tokenizer_of("bytes", KINDS[9].template)
    with pytest.raises(InputError, match="row 0: the completion has no tokens"):
        TokenBatch.from_pairs(tokenizer, [("the cat", "")], end=False)
    with pytest.raises(InputError, match="no token is left to score"):
        part_tokens(tokenizer, "the cat", [(0, 1)])
    with pytest.raises(InputError, match="conversation 0: no assistant message"):
        TokenBatch.from_messages(tokenizer, [talk("user:hi")])


def test_half_a_character_is_named():
    with pytest.raises(InputError, match=r"lone surrogate U\+D83D.* at character 3"):
        pair_tokens(tokenizer_of("bytes"), "the\ud83d", " cat")


def test_what_a_template_refuses_is_said_in_its_words():
    tokenizer = tokenizer_of("bytes", ALTERNATES)
    with pytest.raises(InputError, match=r"conversation 1: .*roles must alternate"):
        TokenBatch.from_messages(
            tokenizer,
            [talk("user:hi|assistant:hello"), talk("user:hi|user:hi|assistant:hello")],
        )


CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}  # fmt: skip


def test_tools_calls_names_and_reasoning_reach_the_model():
    tokenizer = tokenizer_of("bytes", TOOLS)
    messages = [
        {
            "role": "user",
            "name": "Ada",
            "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}],
        },
        CALL,
        {"role": "tool", "name": "f", "content": "a + b"},
        {"role": "assistant", "content": "sat", "reasoning_content": "the mat"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    batch = TokenBatch.from_messages(tokenizer, [messages], tools=tools)
    whole = tokenizer.decode(batch.ids[0])
    assert '"name": "f"' in whole.split("\n")[1]
    assert "<|im_start|>user Ada\nthe cat<|im_end|>" in whole
    said = tokenizer.decode(batch.ids[0][batch.target[0]])
    assert said == '<call>f {"x": 1}</call><|im_end|><think>the mat</think>sat<|im_end|>'


@pytest.mark.parametrize(
    ("messages", "tools", "field"),
    [
        ([{"role": "user", "content": "a"}, CALL], None, "tool_calls"),
        (talk("user:a|assistant:b"), [{"name": "f"}], "tools"),
        ([*talk("user:a"), {"role": "assistant", "content": "b", "reasoning_content": "c"}], None,
         "reasoning_content"),
        ([{"role": "user", "content": "a", "name": "Ada"}, *talk("assistant:b")], None, "name"),
    ],
)  # fmt: skip
def test_a_field_that_the_template_leaves_out_is_refused_by_name(messages, tools, field):
    chat = Chat(tokenizer_of("bytes", KINDS[0].template), tools)
    with pytest.raises(InputError, match=f'does not write "{field}"'):
        chat.conversation([], messages_of(messages))


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({"role": "user", "content": [{"type": "image", "image": "x.png"}]}, "'image'"),
        ({"role": "user", "content": None}, 'has no "content"'),
        ({"role": "user", "content": 3}, "must be a text or a list of parts"),
        ({"content": "a"}, 'must have "role"'),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "with a name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "no JSON",
        ),
    ],
)
def test_messages_of_another_form_are_refused_by_name(message, what):
    with pytest.raises(InputError, match=what):
        messages_of([message])


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k.header or k.name == "chatml"], ids=lambda k: k.name
)
def test_an_assistant_turn_at_the_prompts_end_is_continued(kind):
    tokenizer = tokenizer_of("bytes", kind.template)
    chat = Chat(tokenizer)
    prompt, completion = talk("user:hi|assistant:the cat sat"), talk("assistant: on the mat")
    text, spans = chat.conversation(prompt, completion)
    ((start, end),) = spans
    assert text[:start] == chat.prompt(prompt)
    assert text[:start].endswith("the cat sat")
    assert text[start:end] == " on the mat" + kind.closing
    assert chat.render(talk("user:hi|assistant:the cat sat on the mat")).startswith(text[:end])


def test_generation_continues_the_same_tokens_that_are_trained_on():
    from tokenry.decode.generate import prompt_ids as given

    for tokens in TOKENIZERS:
        tokenizer = tokenizer_of(tokens, KINDS[0].template)
        assert given(tokenizer, "<s>the cat") == prompt_ids(tokenizer, "<s>the cat")
        assert given(tokenizer, "the cat")[-1] != tokenizer.eos_token_id
        messages = talk("user:hi|assistant:the cat")
        assert tokenizer.decode(given(tokenizer, messages)).endswith("assistant\nthe cat")
        asked = given(tokenizer, messages[:1])
        assert (
            asked == TokenBatch.from_messages(tokenizer, [messages]).ids[0, : len(asked)].tolist()
        )


def test_an_assistant_that_says_nothing_is_no_target():
    tokenizer = tokenizer_of("bytes", KINDS[0].template)
    for content in ("", " \n", []):
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
        with pytest.raises(InputError, match="the assistant says nothing"):
            TokenBatch.from_messages(tokenizer, [messages])


def test_generation_marks_around_nothing_are_an_error():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'bot' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}</s>{% endfor %}"
    )
    chat = Chat(tokenizer_of("bytes", template))
    with pytest.raises(InputError, match="marks nothing"):
        chat.conversation([], talk("user:hi|assistant:hello"))


def test_a_token_reaches_across_only_where_it_holds_characters_of_both_sides():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: n for n, word in enumerate(("</s>", "the", "cat", "sat"))}
    backend = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # white space is in no token
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    pair = pair_tokens(tokenizer, "the cat ", "sat")
    assert (pair.ids, pair.target) == ([1, 2, 3, 0], [False, False, True, True])
    assert pair.crossing == 0


def test_a_token_that_reaches_out_of_a_part_counts_and_is_reported():
    tokenizer = tokenizer_of("bytes")
    tokens = part_tokens(tokenizer, "the cat sat on", [(7, 9)])
    said = [i for i, counts in zip(tokens.ids, tokens.target, strict=True) if counts]
    assert tokenizer.decode(said) == " sat"
    assert tokens.crossing == 1


def test_an_end_token_that_the_template_writes_outside_its_marks_is_left_there():
    template = KINDS[10].template.replace(
        "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"
    )
    tokenizer = tokenizer_of("bytes", template)
    batch = TokenBatch.from_messages(tokenizer, [talk("user:hi|assistant:the cat")])
    assert tokenizer.decode(batch.ids[0]).endswith("the cat<|im_end|>\n")
    assert tokenizer.decode(batch.ids[0][batch.target[0]]) == "the cat"


def test_a_turn_of_calls_begins_where_its_words_could_have_begun():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% for c in m.tool_calls or [] %}"
        "<call>{{ c.function.name }}{% else %} {{ m.content }}{% endfor %}</s>{% else %}"
        "[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
    )
    text, spans = Chat(tokenizer_of("bytes", template)).conversation(
        [], messages_of([*talk("user:hi"), CALL])
    )
    assert [text[start:end] for start, end in spans] == ["<call>f</s>"]
