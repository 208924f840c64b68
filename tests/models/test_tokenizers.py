"""A tokenizer is the one that AutoTokenizer gives, and comes without torch where its configuration names no class of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REAL_TOKENIZERS, make_tokenizer, real_folder

from ragfit.models.tokenizer import is_generic, load_tokenizer

TEXT = "<s>[INST] Where  is\n\n東京 é 12? [/INST]<|im_start|>x<|end|> \n</s> 👩‍👩‍👧\u0301"
MODEL_TYPES = {
    "llama-2-7b-chat": "llama", "llama-3.1-8b-instruct": "llama", "mistral-7b-instruct-v0.1": "mistral",
    "phi-3-mini-128k-instruct-apr2024": "phi3", "phi-3-mini-4k-instruct": "phi3", "qwen3": "qwen3",
    "smollm2-135m-instruct": "llama", "zephyr-7b-beta": "mistral",
}  # fmt: skip


def named(folder, tokenizer_class, model=None, **more):
    """A small tokenizer's folder whose configuration names a class, with a `config.json` where one is given."""
    make_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": tokenizer_class, **more}))
    if model is not None:
        (folder / "config.json").write_text(json.dumps(model))
    return str(folder)


def assert_same(folder):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert ours.chat_template == theirs.chat_template and ours.special_tokens_map == theirs.special_tokens_map
    assert ours.name_or_path == theirs.name_or_path and len(ours) == len(theirs)


@pytest.mark.parametrize("part", ["model", "tokenizer"])
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_a_real_tokenizer_is_the_one_that_auto_tokenizer_gives(name, part, tmp_path):
    folder = shutil.copytree(real_folder() / name, tmp_path / "folder")
    if part == "model":
        (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[name]}))
    assert is_generic(str(folder)) == name.startswith(("llama-3.1", "smollm2"))
    assert_same(str(folder))


@pytest.mark.parametrize("model_type", [None, "llama", "phi3", "qwen2", "mistral"])
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer"])
def test_every_class_and_type_gives_what_auto_tokenizer_gives(tokenizer_class, model_type, tmp_path):
    model = None if model_type is None else {"model_type": model_type}
    assert_same(named(tmp_path / "model", tokenizer_class, model))


LLAMA = {"model_type": "llama"}
GENERIC = [
    (True, "PreTrainedTokenizerFast", LLAMA, {}),
    (True, "TokenizersBackend", None, {}),
    (False, "LlamaTokenizer", LLAMA, {}),
    (False, "TokenizersBackend", LLAMA, {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
    (False, "TokenizersBackend", {"model_type": "qwen2"}, {}),  # AutoTokenizer takes Qwen2Tokenizer
    (False, "TokenizersBackend", LLAMA | {"model_name": "phi3"}, {}),  # and here LlamaTokenizer
]


def test_what_is_not_certain_is_left_to_auto_tokenizer(tmp_path):
    for number, (expected, tokenizer_class, model, more) in enumerate(GENERIC):
        assert is_generic(named(tmp_path / str(number), tokenizer_class, model, **more)) is expected, number


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


def test_a_models_folder_and_a_name_in_the_hubs_cache_need_no_torch(tmp_path):
    folder = named(tmp_path / "model", "PreTrainedTokenizerFast", LLAMA)
    expected = "TokenizersBackend", make_tokenizer()(TEXT)["input_ids"], False
    assert loaded_elsewhere(folder) == expected
    cached = tmp_path / "hub" / "models--some--model"
    shutil.copytree(folder, cached / "snapshots" / ("c0ffee" * 6 + "c0ff"))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee" * 6 + "c0ff")
    assert loaded_elsewhere("some/model", HF_HUB_CACHE=str(tmp_path / "hub")) == expected
