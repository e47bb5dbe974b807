"""Small chat templates of the kinds in use, each with what it writes for the assistant, by hand.

`pieces(messages)` are the (text, counts) parts of a rendered conversation: `counts` is True for
what the assistant says, its closing included.
"""

from dataclasses import dataclass
from typing import Any

SPECIALS = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    name: str
    template: str
    before: str  # in front of all
    user: str  # with {} for the content
    header: str  # what stands before an assistant's words and does not count
    closing: str  # what closes an assistant's turn and counts
    after: str = ""  # what follows the closing and does not count
    marked: bool = True  # the template writes an end token itself

    def pieces(self, messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
        parts = [(self.before, False)]
        for message in messages:
            if message["role"] == "assistant":
                content = message["content"]
                parts += [(self.header, False), (content + self.closing, True), (self.after, False)]
            else:
                parts.append((self.user.format(message["content"]), False))
        return [part for part in parts if part[0]]


def loop(user: str, assistant: str, opening: str = "", before: str = "") -> str:
    """A template of two cases and a generation prompt."""
    opening = "{% if add_generation_prompt %}" + opening + "{% endif %}" if opening else ""
    return (
        before + "{% for m in messages %}{% if m.role == 'assistant' %}" + assistant
        + "{% else %}" + user + "{% endif %}{% endfor %}" + opening
    )  # fmt: skip


KINDS = [
    Kind(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "", "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "\n",
    ),
    Kind(
        "chatml that ignores the generation prompt",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "", "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "\n",
    ),
    Kind(
        "generation prompt that ends in a space",
        loop("USER: {{ m.content }} ", "ASSISTANT: {{ m.content }}</s>", "ASSISTANT: "),
        "", "USER: {} ", "ASSISTANT: ", "</s>",
    ),
    Kind(
        "instructions whose answer follows a space",
        loop("[INST] {{ m.content }} [/INST] ", "{{ m.content }}</s>", before="<s>"),
        "<s>", "[INST] {} [/INST] ", "", "</s>",
    ),
    Kind(
        "instructions with the space before the answer",
        loop("[INST] {{ m.content }} [/INST]", " {{ m.content }} </s>", before="<s>"),
        "<s>", "[INST] {} [/INST]", " ", " </s>",
    ),
    Kind(
        "llama 3",
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<s>", "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
    ),
    Kind(
        "gemma",
        loop(
            "<start_of_turn>user\n{{ m.content | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n{{ m.content | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n",
            "{{ bos_token }}",
        ),
        "<s>", "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>",
        "\n",
    ),
    Kind(
        "no end token at all",
        loop("### User:\n{{ m.content }}\n\n", "### Answer:\n{{ m.content }}\n\n", "### Answer:\n"),
        "", "### User:\n{}\n\n", "### Answer:\n", "", "\n\n", marked=False,
    ),
    Kind(
        "no end token and no generation prompt",
        loop("Q: {{ m.content }}\n", "A: {{ m.content }}\n"),
        "", "Q: {}\n", "A: ", "", "\n", marked=False,
    ),
    Kind(
        "nothing between the turns",
        loop("{{ m.content }}</s>", "{{ m.content }}</s>"),
        "", "{}</s>", "", "</s>",
    ),
    Kind(
        "generation marks",
        loop(
            "<|im_start|>user\n{{ m.content }}<|im_end|>\n",
            "<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>"
            "{% endgeneration %}{{ '\\n' }}",
            "<|im_start|>assistant\n",
        ),
        "", "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "\n",
    ),
    Kind(
        "the assistant's word stands in every header",
        "{% for m in messages %}<|im_start|>sat there {{ m.role }}: {{ m.content }}<|im_end|>\n"
        "{% endfor %}",
        "", "<|im_start|>sat there user: {}<|im_end|>\n", "<|im_start|>sat there assistant: ",
        "<|im_end|>", "\n",
    ),
    Kind(
        "a generation prompt that opens a thought which the conversation drops",
        loop(
            "<|im_start|>user\n{{ m.content }}<|im_end|>\n",
            "<|im_start|>assistant\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n",
            "<|im_start|>assistant\n<think>\n",
        ),
        "", "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "\n",
    ),
    Kind(
        "content in parts",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "", "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "\n",
    ),
]  # fmt: skip

# Writes an empty thought into the last turn only: earlier turns are rewritten when others follow.
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last or m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'user' and m.name %} "
    "{{ m.name }}{% endif %}{{ '\\n' }}{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ALTERNATES = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


def build_tokenizer(kind: str, template: str | None = None) -> Any:
    """A tiny tokenizer of one of the kinds in use.

    "bytes" and "trimmed" (its offsets leave white space out), "dummy prefix" (puts a space before
    every piece of text), "starts" and "ends" (put <s> before, or also </s> behind, each text).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [
        "the cat sat on the mat and the dog sat there USER: hi ASSISTANT: hello",
        'a + b = c, x(y) {"name": "Ada"}\n### Answer:\n the father gathered feathers',
    ] * 4
    backend = Tokenizer(models.BPE(unk_token=None))
    letters = pre_tokenizers.ByteLevel.alphabet()
    if kind == "dummy prefix":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        letters = sorted({chr(n) for n in range(10, 127)} | {"▁"})
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=SPECIALS, initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    if kind == "trimmed":
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    elif kind in ("starts", "ends"):
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if kind == "ends" else "<s> $A",
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<s>",
        additional_special_tokens=SPECIALS[2:],
    )  # fmt: skip
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
