"""Models for tests: two tiny random ones with the two architectures, and the real ones when
present."""

import functools
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


# Tiny models of many architectures. The windows are shorter than the texts of the tests.
WINDOW = 8
COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
GPT |= {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1}
FALCON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON |= {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1}
OPT = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2}
OPT |= {"num_attention_heads": 4, "max_position_embeddings": 256, "init_std": 0.3}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

ATTENTION_MODELS = {
    "llama": COMMON,
    "llama tied": COMMON | {"tie_word_embeddings": True},
    "qwen2": COMMON,
    "qwen2 windows": COMMON
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": COMMON | {"head_dim": 8},
    "mistral": COMMON | {"sliding_window": WINDOW},
    "mistral full": COMMON | {"sliding_window": None},
    "mixtral": COMMON
    | {"sliding_window": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1},
    "phi3": COMMON | {"sliding_window": WINDOW},
    "starcoder2": COMMON | {"sliding_window": WINDOW},
    "gemma": COMMON | {"head_dim": 8},
    "gemma2": COMMON | MIXED | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": COMMON
    | MIXED
    | {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_bigcode": GPT,
    "gpt_neox": COMMON,
    "gpt_oss": COMMON | MIXED | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "granite": COMMON | {"logits_scaling": 8.0, "embedding_multiplier": 2.0},
    "cohere": COMMON | {"logit_scale": 0.25},
    "cohere2": COMMON | MIXED | {"logit_scale": 0.25},
    "falcon": FALCON,
    "opt": OPT | {"word_embed_proj_dim": 32},
    "opt projected": OPT | {"word_embed_proj_dim": 16},
    "llama4_text": COMMON
    | {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "moe_layers": []}
    | {"attention_chunk_size": WINDOW, "layer_types": ["chunked_attention", "full_attention"]},
    "modernbert-decoder": COMMON
    | {"local_attention": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
    | {"cls_token_id": 2, "sep_token_id": 3},
    **dict.fromkeys(("olmo2", "phi", "stablelm", "smollm3"), COMMON),
}
COLUMN_MODELS = {  # positions or local attention count columns: no trees
    "gpt_neo": {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    | {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}
    | {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "falcon alibi": FALCON | {"alibi": True},
}
RECURRENT_MODELS = {
    "recurrent_gemma": COMMON
    | {"lru_width": 32, "attention_window_size": WINDOW, "head_dim": 8, "num_key_value_heads": 1}
    | {"block_types": ["recurrent", "attention"]},
    "rwkv": {"vocab_size": 64, "hidden_size": 32, "attention_hidden_size": 32}
    | {"intermediate_size": 64, "num_hidden_layers": 2, "context_length": 256},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    | {"initializer_range": 0.3},
    "jamba": COMMON
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4}
    | {"use_mamba_kernels": False},
    "lfm2": COMMON | {"layer_types": ["conv", "full_attention"]},
}


@functools.cache
def build_architecture(name: str):
    """A tiny random model of one of the tables above, made once."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    options = (ATTENTION_MODELS | COLUMN_MODELS | RECURRENT_MODELS)[name]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name.split()[0]](**options)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():  # biases that are zero at first would hide their loss
        if weight.ndim == 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    model.generation_config.pad_token_id = 0
    return model


def architecture_fixture(tables):
    @pytest.fixture(scope="session", params=list(tables), ids=lambda name: name.replace(" ", "-"))
    def fixture(request):
        return build_architecture(request.param)

    return fixture


attention_model = architecture_fixture(ATTENTION_MODELS)
column_model = architecture_fixture(COLUMN_MODELS)
recurrent_model = architecture_fixture(RECURRENT_MODELS)
any_model = architecture_fixture(ATTENTION_MODELS | COLUMN_MODELS | RECURRENT_MODELS)
scaled_model = architecture_fixture(["granite", "cohere", "cohere2", "gemma3_text"])


@pytest.fixture(autouse=True)
def rewards_in_this_process(request, monkeypatch):
    """No worker for each reward function, which would import this test's modules anew for seconds;
    what the workers do is tested where a test is marked `workers`."""
    if request.node.get_closest_marker("workers") is None:
        from tokenry.learn.rewards import calling

        monkeypatch.setattr(
            "tokenry.learn.rewards.scoring.caller_of",
            lambda function, timeout: calling.caller_of(function, None),
        )
