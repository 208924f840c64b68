"""Tokenizers trained in the test, chat templates as models ship them, and real models made tiny.

Nothing here needs a network. `RAGFIT_TOKENIZERS` may name a folder with real tokenizers; tests that want them
are skipped where it is not set.
"""

import itertools
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kernels, browser and commands share two cores, and PyTorch's threads spin while they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["RAGFIT_CACHE_GB"] = "0"  # prepared rows of a test are not kept in the user's cache

import pytest

pytest_plugins = ["browser"]


def pytest_configure(config):
    """Hide GPUs from tests that are of a CPU: from all but `pytest tests/gpu`. (xdist's workers inherit it.)"""
    asked = [Path(arg.partition("::")[0]).resolve() for arg in config.args]
    only_gpu = all(path.is_relative_to(Path(__file__).resolve().parent / "gpu") for path in asked)
    if "PYTEST_XDIST_WORKER" not in os.environ and (not only_gpu or os.environ.get("RAGFIT_GPU_TESTS_ON") == "cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# Added tokens of the trained tokenizers: those that the templates below write.
TURN_TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|user|>", "<|assistant|>", "<|end|>",
]  # fmt: skip

CORPUS = [
    "What is the capital of France? The capital of France is Paris, a city of 2,100,000 people.",
    "Answer the question with the documents. Document 1: Rome was founded in 753 BC. Document 2: no idea.",
    "system user assistant question answer think context yes no maybe",
    "### Instruction:\nRead.\n\n### Response:\nDone.\n\n\n  two  spaces\t tabs\r\n",
    "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello <think>\n\n</think>\n\n",
    "東京は日本の首都です。Привет, мир! مرحبا بالعالم café déjà vu 👩‍👩‍👧 ﬁ 1/2",
    "Answer: ANSWER: <ANSWER>: 42 = 6 * 7; {{ 7*7 }} {% raw %} {query} {output}",
] * 3

# Chat templates, each with the habit that makes it worth testing. They are the models' own, without tools.
CHAT_TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # Adds a system message of its own where there is none (SmolLM2, Qwen2.5).
    "default system": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # BOS in the template, trims, and a new assistant header after the answer, whatever is asked for (Llama-3, 4/2024).
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    ),
    # Merges the system message into the user's, strips, and writes a space before EOS.
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set system_message = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # Drops the system message without a word (Phi-3, 4/2024). The generation prompt is there whatever is asked for.
    "phi-3": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\\n' + message['content'] + "
        "'<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\\n'}}"
        "{% endif %}{% endfor %}"
    ),
    # The role markers are plain text in Zephyr's vocabulary: `plain_markers` leaves them out of the added tokens.
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    # Refuses a system message and turns that do not alternate (Mistral v0.1).
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    # Splits the answer at </think>, and puts an empty think block before it, in the training text only.
    "qwen3": (
        "{%- for message in messages %}{%- if message.role != 'assistant' %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- else %}"
        "{%- set content = message.content %}{%- set reasoning = '' %}{%- if '</think>' in message.content %}"
        "{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
        "{%- set reasoning = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}"
        "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    # Writes today's date into the system message (Llama-3.2).
    "dated": (
        "{{- bos_token }}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
        "{%- else %}{%- set system = '' %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}"
        "{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
    ),
    # The generation prompt opens a think block that the training text does not have (DeepSeek-R1).
    "deepseek-r1": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
        "{% else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<|assistant|>' + content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
    ),
    # No end of turn at all.
    "no end": (
        "{% for message in messages %}{{ message['role'] | upper + ': ' + message['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    ),
    # Trims every message (Gemma); roles of its own.
    "trims": (
        "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<|im_start|>' + role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<|im_start|>model\\n'}}{% endif %}"
    ),
}
# A marker for each: the end of what the template writes before the answer.
MARKERS = {
    "chatml": "<|im_start|>assistant\n",
    "default system": "<|im_start|>assistant\n",
    "llama-3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama-2": "[/INST]",
    "phi-3": "<|assistant|>",
    "zephyr": "<|assistant|>\n",
    "mistral": "[/INST]",
    "qwen3": "<|im_start|>assistant\n",
    "dated": "<|end_header_id|>\n\n",
    "deepseek-r1": "<|assistant|>",
    "no end": "ASSISTANT: ",
    "trims": "<|im_start|>model\n",
}
NO_SYSTEM = ("mistral",)


def _backend(kind, plain_markers=False):
    """A `tokenizers.Tokenizer` trained on `CORPUS`."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    specials = [PAD, BOS, EOS, "<unk>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind in ("metaspace", "legacy"):
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if kind == "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        else:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        # As SentencePiece with a small character coverage: some characters only exist as bytes.
        corpus = ["".join(c for c in text if ord(c) < 128) for text in CORPUS]
        # Training needs words; without a pre-tokenizer a whole line would become one token.
        pieces = [piece for text in corpus for piece in text.replace(" ", " ▁").replace("\n", " \n ").split(" ")]
        trainer = trainers.BpeTrainer(vocab_size=620, special_tokens=[*specials, *byte_tokens], show_progress=False)
        trained = Tokenizer(models.BPE(unk_token="<unk>"))
        trained.train_from_iterator(pieces, trainer)
        state = json.loads(tokenizer.to_str())
        learned = json.loads(trained.to_str())["model"]
        state["model"]["vocab"], state["model"]["merges"] = learned["vocab"], learned["merges"]
        tokenizer = Tokenizer.from_str(json.dumps(state))
        tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in specials])
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
        tokenizer.train_from_iterator(CORPUS, trainer)
    else:
        tokenizer = Tokenizer(models.BPE())
        prefix = kind == "prefix space"
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
        tokenizer.pre_tokenizer = byte_level
        if kind == "digits":
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), byte_level]
            )
        if kind == "nfc":
            tokenizer.normalizer = normalizers.NFC()
        if kind == "whole":  # no words: a token may join anything to anything
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=560, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        if kind in ("trimming", "nfc"):
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        elif kind == "baked":
            tokenizer.enable_truncation(16)
            tokenizer.enable_padding(length=64, pad_id=0, pad_token=PAD)
    if kind in ("metaspace", "legacy", "digits"):
        template = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
        tokenizer.post_processor = template
    if not plain_markers:
        # Phi-3's <|assistant|> takes the white space behind it; some tokenizers' tokens take that before them.
        greedy = {"<|assistant|>": {"rstrip": True}, "<|im_end|>": {"lstrip": True}} if kind == "greedy" else {}
        tokenizer.add_special_tokens(
            [AddedToken(text, normalized=False, **greedy.get(text, {})) for text in TURN_TOKENS]
        )
    return tokenizer


BYTE_LEVEL = ("trimming", "digits", "nfc", "whole", "greedy", "baked")
KINDS_OF_TOKENIZER = (*BYTE_LEVEL, "prefix space", "metaspace", "legacy", "unigram", "wordpiece")
_trained = {}


def make_tokenizer(kind="trimming", template="chatml", plain_markers=None, **kwargs):
    """A `PreTrainedTokenizerFast` trained here.

    Args:
        kind: one of `KINDS_OF_TOKENIZER`.
        template: a name in `CHAT_TEMPLATES`, or a template's text.
        plain_markers: leave the role markers out of the added tokens; by default where the template is Zephyr's.
    """
    from transformers import PreTrainedTokenizerFast

    if plain_markers is None:
        plain_markers = template == "zephyr"
    if (kind, plain_markers) not in _trained:
        _trained[kind, plain_markers] = _backend(kind, plain_markers).to_str()
    from tokenizers import Tokenizer

    kwargs = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": "<unk>", **kwargs}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained[kind, plain_markers]),
        **{name: value for name, value in kwargs.items() if value is not None},
    )
    tokenizer.chat_template = CHAT_TEMPLATES.get(template, template)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of about 570 tokens with a ChatML template; pad, BOS and EOS differ."""
    return make_tokenizer("digits", "chatml")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """`tiny_model("llama")` or `tiny_model("phi3")`: a folder with a real model of a few thousand weights and its tokenizer."""
    made = {}

    def make(arch):
        if arch in made:
            return made[arch]
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

        config_class, model_class = {"llama": (LlamaConfig, LlamaForCausalLM), "phi3": (Phi3Config, Phi3ForCausalLM)}[
            arch
        ]
        tokenizer = make_tokenizer("digits", "chatml")
        torch.manual_seed(0)
        config = config_class(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        folder = tmp_path_factory.mktemp(f"tiny-{arch}")
        model = model_class(config)
        # As chat models have it: generation stops at the template's end of turn too.
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[arch] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model):
    """A folder with a tiny LlamaForCausalLM (q_proj, k_proj, v_proj, …) and its tokenizer."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_phi3(tiny_model):
    """A folder with a tiny Phi3ForCausalLM (qkv_proj, gate_up_proj, …) and its tokenizer."""
    return tiny_model("phi3")


@pytest.fixture(scope="session")
def finished_run(tiny_llama, tmp_path_factory):
    """The output folder of a run that has ended, with its checkpoint/. Tests that change it copy it first."""
    from tiny_runs import question_rows, tiny_config, tiny_trainer

    import ragfit

    folder = tmp_path_factory.mktemp("finished")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in question_rows(8)))
    keys = (
        "dev_split=2 train.learning_rate=0.05 train.warmup_ratio=0 train.max_steps=4 train.lr_scheduler_type=constant"
    )
    ragfit.train(tiny_trainer(tiny_config(tiny_llama, folder / "rows.jsonl", folder / "run", *keys.split())))
    return folder / "run"


@pytest.fixture
def write_rows(tmp_path):
    """`write_rows(rows, name="rows.jsonl")`: write dicts as JSONL, return the path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


REAL_TOKENIZERS = (
    "llama-2-7b-chat", "llama-3.1-8b-instruct", "mistral-7b-instruct-v0.1", "phi-3-mini-128k-instruct-apr2024",
    "phi-3-mini-4k-instruct", "qwen3", "smollm2-135m-instruct", "zephyr-7b-beta",
)  # fmt: skip
_loaded = {}


def real_folder():
    """The folder of real tokenizers; skips the test where there is none."""
    folder = os.environ.get("RAGFIT_TOKENIZERS")
    if not folder:
        pytest.skip("RAGFIT_TOKENIZERS is not set: no real tokenizers here")
    return Path(folder)


@pytest.fixture(params=REAL_TOKENIZERS)
def real_tokenizers(request):
    """Each real tokenizer in turn; its folder's name is `tokenizer.kit_name`."""
    folder = real_folder() / request.param
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    if request.param not in _loaded:
        from ragfit.models.tokenizer import load_tokenizer

        _loaded[request.param] = load_tokenizer(str(folder))
        _loaded[request.param].kit_name = request.param
    return _loaded[request.param]


def real_rows(name, count):
    """The first rows of a real data file beside the real tokenizers; skips where there is none."""
    path = real_folder().parent / "data" / name
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


def make_config(data_file, **settings):
    """What `prepare` reads of a configuration; the keys of `model` need no prefix: `over_length="cut_end"`."""
    from omegaconf import OmegaConf

    model = {
        "model_name_or_path": None,
        "completion_start": "",
        "instruction_in_prompt": False,
        "max_sequence_len": None,
        "over_length": None,
        "chat_template_kwargs": None,
    }
    data = {
        "instruction": None,
        "template": None,
        "input_key": "prompt",
        "output_key": "answers",
        "limit": None,
        "shuffle": None,
        "dev_split": None,
    }
    for name, value in settings.items():
        (model if name in model else data)[name] = str(value) if isinstance(value, Path) else value
    return OmegaConf.create({"model": model, "train": {}, "data_file": str(data_file), **data})
