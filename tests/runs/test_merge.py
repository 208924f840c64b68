"""Merging an adapter into its base: the merged model is the tuned one, and what cannot be merged is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import forked
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import ragfit
from ragfit.config.overrides import override
from ragfit.config.paths import PROJECT_ROOT
from ragfit.errors import ConfigError
from ragfit.models.hf import HFTrain
from ragfit.runs.merge import merge_checkpoint
from ragfit.views import SavedView

FAST = ["train.learning_rate=0.05", "train.warmup_ratio=0", "train.max_steps=4", "train.lr_scheduler_type=constant"]


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(8))


@pytest.fixture
def run(tiny_llama, finished_run, rows, tmp_path):
    """`run(*overrides, name="run")`: train a few steps; the checkpoint's folder."""

    def run(*overrides, name="run", model=tiny_llama):
        if not overrides and model == tiny_llama:
            return shutil.copytree(finished_run, tmp_path / name) / "checkpoint"
        return ragfit.train(tiny_trainer(tiny_config(model, rows, tmp_path / name, *FAST, *overrides)))

    return run


@pytest.fixture
def ids(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return tokenizer("What is 4 times two? The answer is 8.", return_tensors="pt").input_ids


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


def plain(base, *adapters):
    """The base with adapters by plain peft, one merged below the next."""
    model = AutoModelForCausalLM.from_pretrained(base)
    for adapter in adapters[:-1]:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return PeftModel.from_pretrained(model, adapters[-1])


KINDS = {
    "LoRA": [],
    "rsLoRA": ["model.lora.use_rslora=true", "model.lora.lora_alpha=7"],
    "DoRA": ["model.lora.use_dora=true"],
    "all layers and biases": ["model.lora.target_modules=all-linear", "model.lora.bias=all"],
    "a trained head": ["model.lora.modules_to_save=[lm_head]"],
    "trained tokens": ["model.lora.trainable_token_indices=[3,4]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_tuned(kind, run, tiny_llama, ids, tmp_path):
    checkpoint = run(*KINDS[kind])
    out = merge_checkpoint(checkpoint, tmp_path / "merged")
    tuned = logits(plain(tiny_llama, checkpoint), ids)
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(merged, ids), tuned, rtol=1e-4, atol=1e-5)
    assert (
        tuned - logits(AutoModelForCausalLM.from_pretrained(tiny_llama), ids)
    ).abs().max() > 0.01  # it learned something
    assert merged.dtype == torch.float32 and merged.config.use_cache is True
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "ragfit.yaml", "instruction.txt"} <= names
    assert "adapter_config.json" not in names and oct(out.stat().st_mode)[-3:] == "755"
    assert (out / "instruction.txt").read_text() == (checkpoint / "instruction.txt").read_text()


@pytest.mark.slow
def test_an_earlier_adapter_is_merged_first(run, tiny_llama, ids, tmp_path):
    first = run("model.lora.r=4", name="first")
    second = run(override("model.trained_adapter", str(first)), name="second")
    expected = logits(plain(tiny_llama, first, second), ids)
    merged = AutoModelForCausalLM.from_pretrained(merge_checkpoint(second, tmp_path / "merged"))
    torch.testing.assert_close(logits(merged, ids), expected, rtol=1e-4, atol=1e-5)
    evaluated = ragfit.load_checkpoint(tmp_path / "merged").model  # into which nothing is merged again
    torch.testing.assert_close(logits(evaluated, ids), expected, rtol=1e-4, atol=1e-5)
    assert (logits(plain(tiny_llama, second), ids) - expected).abs().max() > 0.01  # alone it is another model
    # Which is said where the adapter is shown.
    view = SavedView(second)
    assert f"on top of the adapter {first}" in repr(view) and "ragfit.merge" in view.html()
    assert "on top of" not in repr(SavedView(first))
    shutil.rmtree(first.parent)
    with pytest.raises(ConfigError, match="^model.trained_adapter: there is no .*first"):
        merge_checkpoint(second, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_base_and_type_can_be_named(run, tiny_llama, ids, tmp_path):
    moved = shutil.copytree(tiny_llama, tmp_path / "moved")
    checkpoint = run(model=moved)
    moved = moved.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="^base: there is no .*moved.* at .*Set base to a path that exists"):
        merge_checkpoint(checkpoint, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(
        merge_checkpoint(checkpoint, tmp_path / "merged", base=str(moved), dtype="bfloat16")
    )
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(logits(merged, ids).float(), logits(plain(moved, checkpoint), ids), rtol=0.1, atol=0.1)


def test_any_peft_folder_will_do(run, tiny_llama, ids, tmp_path):
    """Without ragfit.yaml the base is the one that the adapter names."""
    checkpoint = run()
    for path in checkpoint.iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()
    merged = AutoModelForCausalLM.from_pretrained(merge_checkpoint(checkpoint, tmp_path / "merged"))
    torch.testing.assert_close(logits(merged, ids), logits(plain(tiny_llama, checkpoint), ids), rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_a_base_that_the_environment_names(run, tiny_llama, ids, tmp_path, monkeypatch):
    moved = shutil.copytree(tiny_llama, tmp_path / "models" / "moved")
    monkeypatch.setenv("MY_MODELS", str(tmp_path / "models"))
    checkpoint = run("model.model_name_or_path='${oc.env:MY_MODELS}/moved'")
    assert "${oc.env:MY_MODELS}/moved" in (checkpoint / "ragfit.yaml").read_text()
    moved = moved.parent.rename(tmp_path / "elsewhere") / "moved"
    monkeypatch.setenv("MY_MODELS", str(tmp_path / "elsewhere"))
    merged = AutoModelForCausalLM.from_pretrained(merge_checkpoint(checkpoint, tmp_path / "merged"))
    torch.testing.assert_close(logits(merged, ids), logits(plain(moved, checkpoint), ids), rtol=1e-4, atol=1e-5)
    monkeypatch.delenv("MY_MODELS")
    with pytest.raises(ConfigError, match="MY_MODELS.*--base"):
        merge_checkpoint(checkpoint, tmp_path / "again")


@pytest.mark.slow
def test_an_adapter_trained_on_8_bit_weights(run, tiny_llama, ids, tmp_path):
    """By the command line; the base is loaded in full."""
    checkpoint = run("model.load_in_8bit=true")
    result = forked.command("ragfit.merge", str(checkpoint), "merged", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "trained on 8-bit weights and merged into full ones" in result.stdout and "saved merged" in result.stdout
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert getattr(merged.config, "quantization_config", None) is None
    torch.testing.assert_close(logits(merged, ids), logits(plain(tiny_llama, checkpoint), ids), rtol=1e-4, atol=1e-5)


def test_what_is_refused(run, tiny_llama, tmp_path):
    checkpoint = run()

    def refused(folder, out, message, **keys):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError, match=message):
            merge_checkpoint(folder, out, **keys)
        assert sorted(tmp_path.rglob("*")) == before  # nothing is left, nothing was touched

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    refused(checkpoint, taken, "^out: .*taken exists and is not empty. Name a new folder")
    refused(checkpoint, taken / "file", "file exists and is not empty")
    new = tmp_path / "new"
    refused(tiny_llama, new, "^checkpoint: .* holds a whole model, not an adapter. Load it as it is")
    refused(taken, new, "holds no adapter")
    refused(tmp_path / "nowhere", new, "checkpoint: there is no")
    refused(checkpoint, new, "float33.*type of torch", dtype="float33")

    quantized = shutil.copytree(tiny_llama, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    refused(checkpoint, new, "is stored quantized", base=str(quantized))

    wide = shutil.copytree(tiny_llama, tmp_path / "wide")
    other = json.loads((wide / "config.json").read_text()) | {"hidden_size": 32}
    config = LlamaForCausalLM.config_class(**other)
    LlamaForCausalLM(config).save_pretrained(wide)
    refused(checkpoint, new, "could not be merged into .*wide", base=str(wide))

    weights = load_file(checkpoint / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, checkpoint / "adapter_model.safetensors", metadata={"format": "pt"})
    refused(checkpoint, new, "could not be merged")
    (checkpoint / "adapter_model.safetensors").write_bytes(b"cut")
    refused(checkpoint, new, "could not be merged")
    (checkpoint / "adapter_model.safetensors").unlink()
    refused(checkpoint, new, "it has no adapter_model.safetensors. .*another copy")
    (checkpoint / "adapter_config.json").write_text("{")
    refused(checkpoint, new, "adapter_config.json is not JSON")


# What became of an adapter's keys, and what is said of it.
KEYS = {
    "no prefix": (lambda key: key.removeprefix("base_model.model."), "it lacks .*layers.0.self_attn.q_proj.lora_A"),
    "another prefix": (
        lambda key: key.replace("model.model.layers", "model.layers"),
        "it lacks .*layers.0.self_attn.q_proj.lora_A",
    ),
    "half of them": (lambda key: key if "layers.0" in key else None, "it lacks .*layers.1.self_attn.q_proj.lora_A"),
    "none": (lambda key: None, "it lacks .*layers.0"),
    "one too many": (lambda key: [key, "base_model.model.extra.lora_A.weight"], "the model has no .*extra.lora_A"),
}


def change_keys(folder, change):
    """Rename an adapter's keys by a function, which may give several or None."""
    path, new = folder / "adapter_model.safetensors", {}
    for key, weight in load_file(path).items():
        names = change(key) or []
        new |= {name: weight.clone() for name in ([names] if isinstance(names, str) else names)}
    save_file(new, path, metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEYS)
def test_keys_that_do_not_match(kind, run, tiny_llama, rows, tmp_path):
    """Wherever an adapter is loaded: PEFT only warns, and the base alone would pass for the tuned model."""
    change, message = KEYS[kind]
    checkpoint = run("train.save_steps=2")
    for folder in (checkpoint, checkpoint.parent / "checkpoint-4"):
        change_keys(folder, change)
    with pytest.raises(ConfigError, match=f"could not be merged into .*{message}.*--base"):
        merge_checkpoint(checkpoint, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))
    with pytest.raises(ConfigError, match=f"^model.trained_adapter: .*{message}"):
        HFTrain(str(tiny_llama), lora={"target_modules": ["q_proj"]}, trained_adapter=str(checkpoint))
    with pytest.raises(ConfigError, match=f"^checkpoint: the adapter in .* could not be put on .*{message}"):
        ragfit.load_checkpoint(checkpoint)
    (checkpoint.parent / "checkpoint-4" / "ragfit_checkpoint.json").unlink()  # as of one that this kit has not written
    cfg = tiny_config(tiny_llama, rows, checkpoint.parent, *FAST, "train.max_steps=6", "resume_checkpoint=true")
    with pytest.raises(
        ConfigError, match=f"^resume_checkpoint: the adapter in .*checkpoint-4 does not fit this run's: .*{message}"
    ):
        ragfit.train(tiny_trainer(cfg))


def test_a_trained_head_that_is_missing(run, tiny_llama, tmp_path):
    checkpoint = run("model.lora.modules_to_save=[lm_head]")
    change_keys(checkpoint, lambda key: None if "lm_head" in key else key)
    with pytest.raises(ConfigError, match="could not be merged into .*lm_head"):
        merge_checkpoint(checkpoint, tmp_path / "merged")
    with pytest.raises(ConfigError, match="could not be put on .*lm_head"):
        ragfit.load_checkpoint(checkpoint)


@pytest.mark.parametrize("settings", [
    IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    LoHaConfig(target_modules=["q_proj"]),
    LoraConfig(target_modules=["q_proj", "embed_tokens"], use_dora=True),
    LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
], ids=lambda settings: type(settings).__name__)  # fmt: skip
def test_other_adapters_of_peft(settings, tiny_llama, ids, tmp_path):
    """All of their keys count as found."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), settings)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(
        merge_checkpoint(tmp_path / "adapter", tmp_path / "merged", base=str(tiny_llama))
    )
    torch.testing.assert_close(logits(merged, ids), logits(model, ids), rtol=1e-4, atol=1e-5)


def test_a_prompt_is_not_merged(tiny_llama, tmp_path):
    settings = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), settings).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ConfigError, match="of the kind PROMPT_TUNING, which changes no weights"):
        merge_checkpoint(tmp_path / "prompt", tmp_path / "merged", base=str(tiny_llama))


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "SHADOW", "shadow_model": "other"},
        {"peft_type": "XLORA", "hidden_size": 16, "adapters": {"a": "other"}},
    ],
)
def test_an_adapter_has_no_other_folder_read(settings, tiny_llama, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=f"of the kind {settings['peft_type']}, whose settings name other models"):
        merge_checkpoint(tmp_path / "adapter", tmp_path / "merged", base=str(tiny_llama))


@pytest.mark.slow
def test_a_killed_merge_leaves_no_half_model(run, tmp_path):
    """Killed while it writes: what is left of it does not have the name, and stands in nobody's way."""
    checkpoint = run()
    waits = "import signal, time\nfrom transformers import LlamaForCausalLM as model\nmodel.save_pretrained = lambda self, part: ((part / 'half').touch(), print('writing', flush=True), time.sleep(60))\n"
    code = f"{waits}from ragfit.__main__ import main\nmain(['merge', {str(checkpoint)!r}, 'merged'])"
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
    for signal_name, left in (("SIGTERM", 0), ("SIGKILL", 1)):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "writing\n"
        process.send_signal(getattr(signal, signal_name))
        process.wait()
        assert len(list(tmp_path.glob("merged.part-*"))) == left and not (tmp_path / "merged").exists()
    assert merge_checkpoint(checkpoint, tmp_path / "merged") == tmp_path / "merged"


def test_an_empty_folder_is_taken(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (merge_checkpoint(run(), tmp_path / "empty") / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(run, tmp_path):
    """No file may grow over 8 kB."""
    limited = "ulimit -f 8; trap '' XFSZ; exec \"$@\""
    command = ["bash", "-c", limited, "-", sys.executable, "-m", "ragfit.merge", str(run()), "merged"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search("^error: Merging failed: .*File too large.* Make room there", result.stderr, re.MULTILINE)
    assert not list(tmp_path.glob("merged*"))


def test_the_generation_config_of_the_base_stays(run, tiny_llama, tmp_path):
    """Llama-2 ships temperature and top_p without do_sample, which transformers has refused to save."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}))
    out = merge_checkpoint(run(model=base), tmp_path / "merged")
    kept = json.loads((out / "generation_config.json").read_text())
    assert (kept["temperature"], kept["top_p"], kept["eos_token_id"]) == (0.9, 0.6, 2)
