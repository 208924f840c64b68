"""The preflight against the run that follows it: padding, precision, steps, memory; and where memory gives out."""

import functools
import json
import resource
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from conftest import make_tokenizer
from killed_runs import process
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import ragfit
from ragfit import before_torch
from ragfit.config.explain import explained
from ragfit.training.preflight import memory_estimate


@pytest.fixture
def config(tiny_phi3, write_rows, tmp_path):
    """`config(*overrides)`: the tiny Phi-3 over 60 of 320 rows of very different lengths."""
    rows = write_rows(question_rows(320, words=30))
    keys = ("train.save_strategy=no", "limit=60")
    return lambda *overrides: tiny_config(tiny_phi3, rows, tmp_path / "out", *keys, *overrides)


def facts(trainer):
    return {label: (value, note) for label, value, note in ragfit.preflight(trainer).items}


FOUR, GROUPED = "train.per_device_train_batch_size=4", "train.group_by_length=true"
BATCHES = {
    "one row": [],
    "random": [FOUR],
    "grouped": [FOUR, GROUPED],
    "a multiple": [FOUR, GROUPED, "+train.pad_to_multiple_of=64"],
    "dropped": [FOUR, "train.seed=7", "+train.data_seed=8", "train.dataloader_drop_last=true", "limit=43"],
}


@pytest.mark.slow
@pytest.mark.parametrize("keys", BATCHES.values(), ids=BATCHES)
def test_padding_is_that_of_the_batches_that_are_trained(config, keys):
    trainer = tiny_trainer(config(*keys))
    before = torch.random.get_rng_state()
    said = facts(trainer)["padding"]
    assert facts(trainer)["padding"] == said and torch.equal(before, torch.random.get_rng_state())  # a look
    masks, collator = [], trainer.data_collator

    def recorded(rows):
        batch = collator(rows)
        masks.append(batch["attention_mask"])
        return batch

    trainer.data_collator = recorded
    trainer.train()
    masks = masks[: len(trainer.get_train_dataloader())]  # without that of the last look at the loss
    real, positions = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    assert said[0] == f"{1 - real / positions:.1%}"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_precision_is_said_and_done(config, monkeypatch, asked, fast):
    monkeypatch.setattr("ragfit.training.arguments.bf16_is_fast", lambda: fast)
    trainer = tiny_trainer(config(f"train.bf16={'null' if asked is None else str(asked).lower()}", "train.max_steps=1"))
    said, seen = facts(trainer)["precision"], set()
    projection = next(module for name, module in trainer.model.named_modules() if name.endswith("down_proj"))
    # The looks at what the model computes, before and after training, are in float32.
    projection.register_forward_hook(lambda module, args, output: seen.add(output.dtype) if module.training else None)
    trainer.train()
    expected = fast if asked is None else asked
    assert seen == {torch.bfloat16 if expected else torch.float32}
    compute = "bfloat16 autocast" if expected else "no autocast"
    assert said == (compute, "weights in float32")


@pytest.mark.parametrize("keys", [[], ["model.load_in_8bit=true"], ["model.load_in_4bit=true"]])
def test_parameters_are_counted(config, tiny_phi3, keys):
    trainer = tiny_trainer(config(*keys, "model.lora.target_modules=[qkv_proj]", "model.lora.r=4"))
    base = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_phi3).parameters())
    adapter = 2 * (4 * 16 + 48 * 4)  # layers × (A: r × 16, B: 48 × r)
    share = f"{adapter / (base + adapter):.2%}"
    assert facts(trainer)["parameters"] == (f"{adapter:,} of {base + adapter:,} are trained", share)


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ([], 30), (["train.max_steps=3"], 3), (["train.num_train_epochs=1.5"], 45),
        ([FOUR, "train.gradient_accumulation_steps=4"], 4), (["train.num_train_epochs=0.01"], 1),
        ([FOUR, "limit=43", "train.gradient_accumulation_steps=1", "train.dataloader_drop_last=true"], 10),
    ],
)  # fmt: skip
def test_steps_are_those_that_the_trainer_takes(config, keys, steps):
    trainer = tiny_trainer(config(*keys))
    assert facts(trainer)["steps"][0] == str(steps)


def test_more_memory_than_there_is_is_a_warning(config):
    trainer = tiny_trainer(config("train.per_device_train_batch_size=10000000"))
    assert [said for said in ragfit.preflight(trainer).warnings if "The memory estimate exceeds what is free" in said]


# --- Memory ---------------------------------------------------------------------------------------------------------------


def measure(cfg, path):
    """Write (estimated, held) in bytes, above what a process held before the model."""
    torch.set_num_threads(1)
    prepared, before = ragfit.prepare(cfg), psutil.Process().memory_info().rss
    trainer = ragfit.build_trainer(cfg, prepared)
    estimated = memory_estimate(trainer)[0]
    before_torch.give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the process's peak begins anew
    trainer.train()
    _, _, peak = Path("/proc/self/status").read_text().partition("VmHWM:")  # in kB
    path.write_text(json.dumps([estimated, int(peak.split()[0]) * 1024 - before]))


def large(folder, layers):
    tokenizer = make_tokenizer("digits", "chatml")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": layers, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[], ["train.gradient_checkpointing=true"], ["model.lora=null"]])
def test_the_estimate_of_memory_is_that_of_a_run_to_a_factor_of_two(write_rows, tmp_path, keys):
    more = ("train.save_strategy=no", "train.max_steps=2", "train.bf16=false", "train.per_device_train_batch_size=2")
    rows = write_rows(question_rows(10, words=40))
    cfg = tiny_config(large(tmp_path / "model", 8), rows, tmp_path / "out", *more, *keys)
    process(measure, cfg, tmp_path / "measured.json").join(600)
    estimated, held = json.loads((tmp_path / "measured.json").read_text())
    assert held > 2**27 and 0.5 < estimated / held < 2


def limited(spare, work, path):
    """Do something in a process that may take so many bytes more than it has, and write what it raised."""
    torch.set_num_threads(1)
    _, _, size = Path("/proc/self/status").read_text().partition("VmSize:")  # in kB
    resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[0]) * 1024 + spare, resource.RLIM_INFINITY))
    try:
        work()
    except Exception as error:
        path.write_text("\n".join([str(error), *getattr(error, "__notes__", [])]))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "eval"])
def test_out_of_memory_says_what_to_lower(part, write_rows, tmp_path):
    """The allocator is really refused: the process may take 1 GiB more, and 400 long rows together take more."""
    long = question_rows(1, words=300)[0]["prompt"] + "no idea. " * 150
    rows = write_rows([{"prompt": f"{n} {long}", "answers": [str(n)]} for n in range(800)])
    keys = ("dev_split=400", "train.max_steps=1", "train.gradient_accumulation_steps=1", "train.bf16=false",
            "train.save_strategy=no", "train.eval_strategy=steps", f"train.per_device_{part}_batch_size=400")  # fmt: skip
    cfg = tiny_config(large(tmp_path / "model", 1), rows, tmp_path / "out", *keys)
    process(limited, 2**30, functools.partial(ragfit.run, cfg), tmp_path / "said").join(600)
    said = (tmp_path / "said").read_text()
    assert f"Lower train.per_device_{part}_batch_size" in said and "alloc" in said
    assert ragfit.run_status(tmp_path / "out").state == "failed"


def test_an_error_of_memory_holds_no_tensors():
    """A notebook keeps the last error; with its frames' tensors there would be no room to try again."""

    def step():
        tensor = torch.ones(3)
        refs.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    refs = []
    with pytest.raises(Exception, match="out of memory"), explained("Training"):
        step()
    assert refs[0]() is None
