"""Models for tests: two tiny random ones with the two architectures, and the real ones when
present."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

# Tiny tensors lose more time to a second thread than they win, and the workers share the cores.
torch.set_num_threads(1)

settings.register_profile("tokenry", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("tokenry")

TEXT = [
    "the cat sat on the mat and the dog sat there",
    "there is a theory that their father gathered feathers",
    'def add(a, b):\n    return a + b\n{"name": "Ada", "age": 36}',
    "naïve café, 東京 and 🙂 are bytes too",
]


def build_llama(vocab_size: int = 64, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    config.update(options)
    return LlamaForCausalLM(config).eval()


def build_gemma3(vocab_size: int = 64):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=[
            "sliding_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        query_pre_attn_scalar=16,
    )
    return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_llama():
    return build_llama()


@pytest.fixture(scope="session")
def tiny_gemma3():
    return build_gemma3()


@pytest.fixture(scope="session", params=["llama", "gemma3"])
def tiny_model(request):
    """Each of the two architectures in turn."""
    return build_llama() if request.param == "llama" else build_gemma3()


@pytest.fixture(autouse=True)
def steady_machine(monkeypatch):
    """Drafters size their trees as if every further token cost a tenth of the first: what the tests
    see must not depend on what else the machine does. `test_latency` measures."""
    from tokenry.decode.speculation import latency

    def measured(model, sizes, context, repeats):
        return {size: 0.010 + 0.001 * (size - 1) for size in sizes}

    monkeypatch.setattr(latency, "measured", measured)


@pytest.fixture(autouse=True)
def attention_restored(request):
    """Cache policies switch a model's attention, and the models are shared by the tests."""
    yield
    for name in {"tiny_llama", "tiny_gemma3", "tiny_model"} & set(request.fixturenames):
        model = request.getfixturevalue(name)
        if model.config._attn_implementation != "sdpa":
            model.set_attn_implementation("sdpa")


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def tiny_llama_text(tiny_tokenizer):
    """A tiny Llama whose vocabulary is the tiny tokenizer's."""
    return build_llama(vocab_size=len(tiny_tokenizer))


@pytest.fixture(scope="session")
def smollm2():
    import tokenry

    return tokenry.load("smollm2")


@pytest.fixture(scope="session")
def gemma3():
    import tokenry

    return tokenry.load("gemma3-270m")
