"""Merging an adapter into its base: the merged model is the tuned one, and what cannot be merged is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

import ragfit
from ragfit.config.overrides import override
from ragfit.config.paths import PROJECT_ROOT
from ragfit.errors import ConfigError
from ragfit.models.hf import HFTrain
from ragfit.runs.merge import merge_checkpoint

FAST = ["train.learning_rate=0.05", "train.warmup_ratio=0", "train.max_steps=4", "train.lr_scheduler_type=constant"]


@pytest.fixture
def run(tiny_llama, finished_run, write_rows, tmp_path):
    """`run(*overrides, name="run")`: train a few steps; the checkpoint's folder."""

    def run(*overrides, name="run", model=tiny_llama):
        if not overrides and model == tiny_llama:
            return shutil.copytree(finished_run, tmp_path / name) / "checkpoint"
        cfg = tiny_config(model, write_rows(question_rows(8)), tmp_path / name, *FAST, *overrides)
        return ragfit.train(tiny_trainer(cfg))

    return run


load = AutoModelForCausalLM.from_pretrained


def plain(base, *adapters):
    """The base with adapters by plain peft, one merged below the next."""
    model = load(base)
    for adapter in adapters[:-1]:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return PeftModel.from_pretrained(model, adapters[-1])


@pytest.fixture
def logits(tiny_llama):
    """The logits of a model for a text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ids = tokenizer("What is 4 times two? The answer is 8.", return_tensors="pt").input_ids

    def logits(model):
        with torch.no_grad():
            return model.eval()(ids).logits

    return logits


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_merged_is_tuned_and_stops_where_training_taught_it(run, tiny_llama, logits, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    # Llama-2 ships temperature and top_p without do_sample, which transformers has refused to save.
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6, "eos_token_id": 0}))
    checkpoint, end = run(model=base), AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("<|im_end|>")
    (tmp_path / "merged").mkdir()  # an empty folder is taken
    out = merge_checkpoint(checkpoint, tmp_path / "merged")
    merged, tuned = load(out), logits(plain(base, checkpoint))
    assert_same(logits(merged), tuned)
    assert (tuned - logits(load(base))).abs().max() > 0.01  # it learned something
    assert merged.dtype == torch.float32 and merged.config.use_cache is True
    names = {"config.json", "model.safetensors", "tokenizer.json", "ragfit.yaml", "instruction.txt"}
    assert names <= {path.name for path in out.iterdir()} and oct(out.stat().st_mode)[-3:] == "755"
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    kept = json.loads((out / "generation_config.json").read_text())
    assert (kept["temperature"], kept["top_p"], kept["eos_token_id"]) == (0.9, 0.6, [0, end])

    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="^base: there is no .*base.* at .*Set base to a path that exists"):
        merge_checkpoint(checkpoint, tmp_path / "again")
    merged = load(merge_checkpoint(checkpoint, tmp_path / "again", base=str(moved), dtype="bfloat16"))
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(logits(merged).float(), tuned, rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_an_earlier_adapter_is_merged_first(run, tiny_llama, logits, tmp_path):
    first = run("model.lora.r=4", name="first")
    second = run(override("model.trained_adapter", str(first)), name="second")
    expected = logits(plain(tiny_llama, first, second))
    assert_same(logits(load(merge_checkpoint(second, tmp_path / "merged"))), expected)
    evaluated = ragfit.load_checkpoint(tmp_path / "merged").model  # into which nothing is merged again
    assert_same(logits(evaluated), expected)
    assert (logits(plain(tiny_llama, second)) - expected).abs().max() > 0.01  # alone it is another model
    with pytest.raises(ConfigError, match=r"^model.trained_adapter: .* on top of \S*first/checkpoint: python -m "):
        run(override("model.trained_adapter", str(second)), name="third")
    assert "on top of the adapter" in (second / "README.md").read_text()
    shutil.rmtree(first.parent)
    with pytest.raises(ConfigError, match="^model.trained_adapter: there is no .*first"):
        merge_checkpoint(second, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_any_peft_folder_will_do(run, tiny_llama, logits, tmp_path):
    """Without ragfit.yaml the base is the one that the adapter names."""
    checkpoint = run()
    for path in set(checkpoint.iterdir()) - set(checkpoint.glob("adapter_*")):
        path.unlink()
    merged = load(merge_checkpoint(checkpoint, tmp_path / "merged"))
    assert_same(logits(merged), logits(plain(tiny_llama, checkpoint)))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_what_is_refused(run, tiny_llama, tmp_path):
    checkpoint = run()
    weights, settings = checkpoint / "adapter_model.safetensors", checkpoint / "adapter_config.json"

    def refused(folder, out, message, kind=ConfigError, **keys):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(kind, match=message):
            merge_checkpoint(folder, out, **keys)
        assert sorted(tmp_path.rglob("*")) == before  # nothing is left, nothing was touched

    taken, new = tmp_path / "taken", tmp_path / "new"
    taken.mkdir()
    (taken / "file").write_text("mine")
    refused(checkpoint, taken, "^out: .*taken exists and is not empty. Name a new folder")
    refused(checkpoint, taken / "file", "file exists and is not empty")
    refused(tiny_llama, new, "^checkpoint: there is no .*adapter_config.json")
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    doubled = {name: 2 * weight for name, weight in load_file(other / "model.safetensors").items()}
    save_file(doubled, other / "model.safetensors", metadata={"format": "pt"})
    refused(checkpoint, new, "^checkpoint: the base model is not the one that it was trained on", base=str(other))
    whole = load_file(weights)
    save_file({name: weight * 0 for name, weight in whole.items()}, weights, metadata={"format": "pt"})
    refused(checkpoint, new, "^checkpoint: the merged model is not the one that was trained")
    next(iter(whole.values()))[0, 0] = float("nan")
    save_file(whole, weights, metadata={"format": "pt"})
    refused(checkpoint, new, "NaN", Exception)  # PEFT's own
    weights.write_bytes(b"cut")
    refused(checkpoint, new, "header", Exception)  # safetensors' own class
    settings.write_text('{"peft_type": "SHADOW", "shadow_model": "other"}')
    refused(checkpoint, new, "^checkpoint: .* of the kind SHADOW, which cannot be merged")


def test_keys_that_do_not_match_where_there_is_no_fingerprint(run, tiny_llama, tmp_path):
    """Wherever an adapter is loaded: PEFT only warns, and the base alone would pass for the tuned model."""
    checkpoint = run()
    (checkpoint / "fingerprint.json").unlink()
    whole = load_file(checkpoint / "adapter_model.safetensors")
    half = {key: weight for key, weight in whole.items() if "layers.0" in key}
    extra = whole | {"base_model.model.extra.lora_A.weight": torch.ones(2, 2)}
    for weights, message in (
        (half, "it lacks .*layers.1.self_attn.q_proj.lora_A"),
        (extra, "the model has no .*extra.lora_A"),
    ):
        save_file(weights, checkpoint / "adapter_model.safetensors", metadata={"format": "pt"})
        message = f"^checkpoint: the adapter in .* could not be put on .*{message}"
        with pytest.raises(ConfigError, match=message):
            merge_checkpoint(checkpoint, tmp_path / "merged")
        with pytest.raises(ConfigError, match=message):
            ragfit.load_checkpoint(checkpoint)
        with pytest.raises(ConfigError, match=message.replace("checkpoint", "model.trained_adapter", 1)):
            HFTrain(str(tiny_llama), lora={"target_modules": ["q_proj"]}, trained_adapter=str(checkpoint))
    assert not list(tmp_path.glob("*merged*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, 0), (signal.SIGKILL, 1)])
def test_a_killed_merge_leaves_no_half_model(number, left, run, tmp_path):
    """Killed while it writes: what is left of it does not have the name, and stands in nobody's way."""
    checkpoint = run()
    code = f"""import os
from transformers import LlamaForCausalLM
from ragfit.__main__ import main
LlamaForCausalLM.save_pretrained = lambda self, part: ((part / 'half').touch(), os.kill(os.getpid(), {number.value}))
main(['merge', {str(checkpoint)!r}, 'merged'])"""
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env).returncode != 0
    assert len(list(tmp_path.glob("merged.part-*"))) == left and not (tmp_path / "merged").exists()
    assert merge_checkpoint(checkpoint, tmp_path / "merged") == tmp_path / "merged"
