"""The documented configuration as it stands, with a tiny Phi-3: 8 bits, `paged_adamw_8bit`, `qkv_proj`, checkpointing."""

import math
from statistics import mean

import pytest
import torch
from tiny_runs import adapter_weights, losses, tiny_trainer

import ragfit
from gpu.on_device import BF16, DEVICE, FLOAT32, FOUR_BITS, make_phi3, only_cuda

LEARNING = ["train.num_train_epochs=5", "train.learning_rate=1e-2", "train.warmup_ratio=0", "dev_split=2"]
# Overrides, the class of the base's linear layers and the type of their weights, that of the adapter's.
RUNS = {
    "as documented": ([], "Linear8bitLt", torch.int8, torch.bfloat16),
    "8 bits, bf16 autocast": (["train.bf16=true"], "Linear8bitLt", torch.int8, torch.bfloat16),
    "8 bits, fp16 autocast": (["train.fp16=true"], "Linear8bitLt", torch.int8, torch.float32),
    "4 bits": (FOUR_BITS, "Linear4bit", torch.uint8, torch.bfloat16),
    "bf16 weights": (BF16, "Linear", torch.bfloat16, torch.float32),
    "bf16 autocast": ([*FLOAT32, "train.bf16=true"], "Linear", torch.float32, torch.float32),
    "bf16 weights, fp16 autocast": ([*BF16, "train.fp16=true"], "Linear", torch.bfloat16, torch.float32),
    "fp16 autocast": ([*FLOAT32, "train.fp16=true"], "Linear", torch.float32, torch.float32),
}
SCALED = only_cuda("fp16 autocast with a GradScaler")


@pytest.mark.parametrize("name", [pytest.param(name, marks=SCALED if "fp16" in name else []) for name in RUNS])
def test_a_run_learns_and_its_checkpoint_gives_the_same_loss(config, name):
    keys, kind, weights, adapter = RUNS[name]
    trainer = tiny_trainer(config(*LEARNING, *keys))
    layers = [m for n, m in trainer.model.named_modules() if n.endswith("qkv_proj.base_layer")]
    found = {(type(layer).__name__, layer.weight.dtype, layer.weight.device.type) for layer in layers}
    assert found == {(kind, weights, DEVICE)}
    before = adapter_weights(trainer.model)
    assert len(before) == 2 * len(layers) and all("qkv_proj.lora_" in n for n in before)
    assert {(w.dtype, w.device.type) for w in before.values()} == {(adapter, DEVICE)}
    assert trainer.args.activation_checkpointing  # by default on a GPU

    folder = ragfit.train(trainer)
    seen = losses(trainer)
    assert trainer.model.is_gradient_checkpointing and all(map(math.isfinite, seen))
    assert mean(seen[-5:]) < 0.7 * mean(seen[:5])
    # A gradient has reached every layer, also through checkpointing.
    assert not [n for n, w in adapter_weights(trainer.model).items() if torch.equal(w, before[n])]
    # The saved adapter on a base loaded again. Not exactly: a checkpoint is read as float32, and cast by layer.
    again = ragfit.load_checkpoint(folder)
    assert ragfit.dev_loss(again) == pytest.approx(ragfit.dev_loss(trainer), rel=0.01)


def test_the_optimizer_is_the_paged_one_of_8_bits(config):
    import bitsandbytes

    trainer = tiny_trainer(config("train.max_steps=1"))
    facts = {label: f"{value} {note}" for label, value, note in ragfit.preflight(trainer).items}
    device = f"{torch.get_num_threads()} thread" if DEVICE == "cpu" else torch.cuda.get_device_name()
    assert device in facts["device"] and trainer.args.gradient_checkpointing
    assert "8-bit weights" in facts["precision"] and "bfloat16" in facts["precision"]
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, bitsandbytes.optim.AdamW) and optimizer.is_paged and optimizer.args.optim_bits == 8


@only_cuda("a CPU has no paged memory")
def test_large_states_of_the_optimizer_are_paged(config, tmp_path):
    """bitsandbytes pages states of 100,000 values and more, which the tiny model's adapter has not."""
    sizes = {"hidden_size": 2304, "intermediate_size": 512, "num_hidden_layers": 2}
    wide = make_phi3(tmp_path / "wide", num_attention_heads=24, num_key_value_heads=24, **sizes)
    trainer = tiny_trainer(config("train.max_steps=3", model=wide))
    trainer.train()
    states = {w.numel(): state["state1"] for w, state in trainer.optimizer.optimizer.state.items()}
    paged = {numel: getattr(state, "is_paged", False) for numel, state in states.items()}
    assert paged == {2304 * 16: False, 3 * 2304 * 16: True}
    assert states[3 * 2304 * 16].dtype == torch.uint8 and all(map(math.isfinite, losses(trainer)))
