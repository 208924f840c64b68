"""The documented configuration with a tiny Phi-3, and the same computed by plain transformers and peft on the CPU."""

import os

import pytest
import torch
from tiny_runs import losses, tiny
from tiny_tokenizers import make_tokenizer

from ragfit.config.load import load_config
from ragfit.config.overrides import override

ON_CPU = os.environ.get("RAGFIT_GPU_TESTS_ON") == "cpu"
DEVICE = "cpu" if ON_CPU else "cuda"

# What training.yaml leaves open and is on by default on a GPU.
AS_ON_CUDA = ["train.gradient_checkpointing=true"] if ON_CPU else []
PLAIN = ["model.load_in_8bit=false", "train.optim=adamw_torch"]
FLOAT32 = [*PLAIN, "model.torch_dtype=float32"]
BF16 = [*PLAIN, "model.torch_dtype=bfloat16"]
FOUR_BITS = ["model.load_in_8bit=false", "model.load_in_4bit=true"]
# How far loss and gradients may be from float32's, as a share. A label one place off, a row that sees another or a lost
# scale are above 0.3. bfloat16 rounds to 0.4 %, in each of some 30 products, or holds the weights as they are; quantized
# models are compared with their own weights, dequantized, and LLM.int8 on a GPU rounds what goes into a product too.
EXACT, ROUNDED, IN_8_BITS = (1e-5, 1e-3), (0.005, 0.05), (0.01, 0.1)
# One optimizer step over all rows, of which the gradients are seen as they are.
ONE_STEP = [
    "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=100", "train.max_steps=1",
    "train.max_grad_norm=1e9", "train.save_strategy=no", "model.lora.lora_dropout=0",
]  # fmt: skip


def only_cuda(reason):
    """Marks a test that a CPU cannot do, with the reason."""
    return pytest.mark.skipif(ON_CPU, reason=f"needs CUDA: {reason}")


def make_phi3(folder, vocabulary=None, **sizes):
    """Write a Phi-3 with `qkv_proj` and random weights in bfloat16, as on the hub, and a tokenizer of about 570 tokens.

    Args:
        vocabulary: rows of its embedding; by default as many as the tokenizer has ids.
        sizes: of `transformers.Phi3Config`.
    """
    tokenizer = make_tokenizer("digits", "phi-3")
    shape = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": vocabulary or len(tokenizer),
    }  # fmt: skip
    model = tiny("phi3", tokenizer, **shape | sizes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:  # larger than a new model's: what attention sees makes a difference
                weight.normal_(std=0.8 * weight.shape[-1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def documented(model, data_file, output_dir, *overrides):
    """`configs/training.yaml` as it stands, with what every user sets; only `overrides` change it."""
    keys = {"model.model_name_or_path": str(model), "data_file": str(data_file), "train.output_dir": str(output_dir)}
    keys |= {"output_key": "answers", "train.logging_steps": 1}
    given = [override(key, value) for key, value in keys.items()]
    return load_config("training", [*given, *AS_ON_CUDA, *overrides])


def on_the_cpu(trainer):
    """The trainer's model as plain transformers and peft make it: float32, eager attention, on the CPU, the same weights."""
    from omegaconf import OmegaConf
    from peft import LoraConfig, get_peft_model
    from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type
    from transformers import AutoModelForCausalLM

    path = trainer.cfg.model.model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(model, LoraConfig(**OmegaConf.to_container(trainer.cfg.model.lora)))
    modules = dict(trainer.model.named_modules())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            owner, _, key = name.rpartition(".")
            value = getattr(modules[owner], key)
            if get_bnb_param_type(value):
                value = dequantize_bnb_weight(value, getattr(modules[owner], "state", None))
            weight.copy_(value)
    return model.eval()


def token_costs(model, row):
    """What each label of a row costs, in nats, from a forward pass of the row alone."""
    ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    learned = labels[1:] != -100
    return torch.nn.functional.cross_entropy(logits[learned], labels[1:][learned], reduction="none")


def check_step(trainer, of_loss, of_gradients):
    """Take a run's one step, and compare it with all rows as one step, each read alone: the mean over their labels.

    Args:
        of_loss: how far the loss may be from it, as a share of it.
        of_gradients: how far a gradient may be, as a share of its norm.
    """
    from transformers import TrainerCallback

    found, draw = {}, torch.Generator().manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:  # a new adapter's is zero, and then the first factor has no gradient
            weight.data = torch.empty(weight.shape).normal_(std=0.02, generator=draw).to(weight)
    model, labels = on_the_cpu(trainer), trainer.prepared.report.train.loss_tokens
    expected_loss = sum(token_costs(model, row).sum() / labels for row in trainer.prepared.train)
    expected_loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            weights = model.named_parameters()
            found.update({name: w.grad.float().cpu() for name, w in weights if w.grad is not None})

    trainer.add_callback(Gradients())
    trainer.train()
    [loss] = losses(trainer)
    assert found.keys() == expected.keys() and found
    far = max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)
    print(f"loss {loss:.6f}, off by {abs(loss / expected_loss.item() - 1):.2g}, gradients by {far:.2g}")
    assert loss == pytest.approx(expected_loss.item(), rel=of_loss)
    assert far < of_gradients
