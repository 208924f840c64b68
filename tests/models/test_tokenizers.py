"""Tokenizers without torch, and that they are those that AutoTokenizer gives."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REAL_TOKENIZERS, make_tokenizer, real_folder

from ragfit.models.tokenizer import _certain_class, load_tokenizer

TEXT = "<s>[INST] Where  is\n\n東京 é 12? [/INST]<|im_start|>x<|end|> \n</s> 👩‍👩‍👧\u0301"
MODEL_TYPES = {
    "llama-2-7b-chat": "llama", "llama-3.1-8b-instruct": "llama", "mistral-7b-instruct-v0.1": "mistral",
    "phi-3-mini-128k-instruct-apr2024": "phi3", "phi-3-mini-4k-instruct": "phi3", "qwen3": "qwen3",
    "smollm2-135m-instruct": "llama", "zephyr-7b-beta": "mistral",
}  # fmt: skip


def with_config(source, folder, **config):
    """A model's folder: a tokenizer and, where keys are given, a `config.json`."""
    shutil.copytree(source, folder)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def named(folder, tokenizer_class, **config):
    """A small tokenizer's folder whose configuration names a class."""
    make_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": tokenizer_class}))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def same(folder):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert ours.chat_template == theirs.chat_template and ours.special_tokens_map == theirs.special_tokens_map
    assert ours.name_or_path == theirs.name_or_path and len(ours) == len(theirs)


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_a_models_folder_gives_the_tokenizer_that_auto_tokenizer_gives(name, tmp_path):
    folder = with_config(real_folder() / name, tmp_path / "model", model_type=MODEL_TYPES[name])
    assert _certain_class(folder) is not None
    same(folder)


CLASSES = (
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "GPT2Tokenizer",
    "Nonsense",
)
TYPES = (
    "llama",
    "phi3",
    "phi",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "olmo2",
    "gpt2",
    "internlm2",
    "granite",
    "qwen3_5",
)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("tokenizer_class", CLASSES)
def test_a_class_of_ones_own_is_auto_tokenizers_choice(tokenizer_class, model_type, tmp_path):
    same(named(tmp_path / "model", tokenizer_class, model_type=model_type))


@pytest.mark.parametrize(
    "folder",
    [
        lambda path: named(path / "deepseek-ai" / "deepseek-coder-x", "Qwen2Tokenizer", model_type="qwen3"),
        lambda path: named(path / "model", "Qwen2Tokenizer", model_type="qwen3", model_name="minimax_m2"),
        lambda path: named(path / "model", "Qwen2Tokenizer", model_type=["no", "text"]),
        lambda path: named(path / "model", "Qwen2Tokenizer", model_type="nonsense"),
        lambda path: with_config(named(path / "a", "LlamaTokenizer"), path / "model", model_type="llama"),
    ],
    ids=["a name that is overridden", "a wrong class by name", "no type", "an unknown type", "byte-level Llama"],
)
def test_what_is_not_certain_is_left_to_auto_tokenizer(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _certain_class(os.path.relpath(folder(tmp_path))) is None


def loaded_elsewhere(name, **env):
    """(class, ids, whether torch was imported) of a tokenizer loaded in a process of its own."""
    code = (
        "import sys\nfrom ragfit.models.tokenizer import load_tokenizer\ntokenizer = load_tokenizer(sys.argv[1])\n"
        "print(type(tokenizer).__name__, tokenizer(sys.argv[2])['input_ids'], 'torch' in sys.modules, sep='|')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1", **env}
    run = subprocess.run(
        [sys.executable, "-c", code, str(name), TEXT], capture_output=True, text=True, check=True, env=environment
    )
    kind, ids, torch = run.stdout.strip().split("|")
    return kind, json.loads(ids), torch == "True"


@pytest.mark.parametrize("model_type", ["phi3", "qwen3", "mistral"])
def test_a_models_folder_and_a_name_in_the_hubs_cache_need_no_torch(model_type, tmp_path):
    folder = named(tmp_path / "model", "PreTrainedTokenizerFast", model_type=model_type)
    expected = "TokenizersBackend", make_tokenizer()(TEXT)["input_ids"], False
    assert loaded_elsewhere(folder) == expected
    cached = tmp_path / "hub" / "models--some--model"
    shutil.copytree(folder, cached / "snapshots" / ("c0ffee" * 6 + "c0ff"))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee" * 6 + "c0ff")
    assert loaded_elsewhere("some/model", HF_HUB_CACHE=str(tmp_path / "hub")) == expected


def test_a_release_whose_tables_look_different_leaves_it_to_auto_tokenizer(tmp_path, monkeypatch):
    import ragfit.models.tokenizer

    folder = named(tmp_path / "model", "PreTrainedTokenizerFast", model_type="phi3")
    assert _certain_class(folder) is not None
    ragfit.models.tokenizer._tables.cache_clear()
    monkeypatch.setattr(ragfit.models.tokenizer.ast, "parse", lambda text: type("Module", (), {"body": []}))
    try:
        assert _certain_class(folder) is None
        same(folder)
    finally:
        ragfit.models.tokenizer._tables.cache_clear()
