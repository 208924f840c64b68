"""The documented configuration with a tiny Phi-3, and the same computed by plain transformers and peft on the CPU."""

import os

import pytest
import torch
from conftest import make_tokenizer

from ragfit.config.load import load_config
from ragfit.config.overrides import override

ON_CPU = os.environ.get("RAGFIT_GPU_TESTS_ON") == "cpu"
DEVICE = "cpu" if ON_CPU else "cuda"

# What training.yaml leaves open and is on by default on a GPU.
AS_ON_CUDA = ["train.gradient_checkpointing=true"] if ON_CPU else []
PLAIN = ["model.load_in_8bit=false", "train.optim=adamw_torch"]
FLOAT32 = [*PLAIN, "model.torch_dtype=float32"]
FOUR_BITS = ["model.load_in_8bit=false", "model.load_in_4bit=true"]


def only_cuda(reason):
    """Marks a test that a CPU cannot do, with the reason."""
    return pytest.mark.skipif(ON_CPU, reason=f"needs CUDA: {reason}")


def make_phi3(folder, vocabulary=None, dtype=torch.bfloat16, **sizes):
    """Write a Phi-3 with `qkv_proj` and random weights, and a tokenizer of about 570 tokens.

    Args:
        vocabulary: rows of its embedding; by default as many as the tokenizer has ids.
        dtype: of its weights; Phi-3-mini's are bfloat16 on the hub.
        sizes: of `transformers.Phi3Config`.
    """
    from transformers import Phi3Config, Phi3ForCausalLM

    tokenizer = make_tokenizer("digits", "phi-3")
    shape = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 4096,
    }  # fmt: skip
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(vocab_size=vocabulary or len(tokenizer), **shape | sizes, **tokens))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:  # larger than a new model's: what attention sees makes a difference
                weight.normal_(std=0.8 * weight.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def documented(model, data_file, output_dir, *overrides):
    """`configs/training.yaml` as it stands, with what every user sets; only `overrides` change it."""
    return load_config(
        "training",
        [
            override("model.model_name_or_path", str(model)),
            override("data_file", str(data_file)),
            override("train.output_dir", str(output_dir)),
            "output_key=answers",
            "train.logging_steps=1",
            *AS_ON_CUDA,
            *overrides,
        ],
    )


def in_float32(model):
    """A model's weights by name, in float32 on the CPU, dequantized where they are quantized."""
    from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type

    found = {}
    for name, module in model.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            if get_bnb_param_type(weight):
                weight = dequantize_bnb_weight(weight, getattr(module, "state", None))
            found[f"{name}.{key}"] = weight.detach().float().cpu()
    return found


def on_the_cpu(trainer):
    """The trainer's model as plain transformers and peft make it: float32, eager attention, on the CPU, the same weights."""
    from omegaconf import OmegaConf
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        trainer.cfg.model.model_name_or_path, dtype=torch.float32, attn_implementation="eager"
    )
    model = get_peft_model(model, LoraConfig(**OmegaConf.to_container(trainer.cfg.model.lora)))
    weights = in_float32(trainer.model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    return model.eval()


def token_costs(model, row):
    """What each label of a row costs, in nats, from a forward pass of the row alone."""
    ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    learned = labels[1:] != -100
    return torch.nn.functional.cross_entropy(logits[learned], labels[1:][learned], reduction="none")


def expected_step(trainer):
    """(loss, gradients by name) of all rows as one step: the mean over their labels, each row read alone."""
    model = on_the_cpu(trainer)
    labels = trainer.prepared.report.train.loss_tokens
    total = 0.0
    for row in trainer.prepared.train:
        loss = token_costs(model, row).sum() / labels
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


# One optimizer step over all rows, of which the gradients are seen as they are.
ONE_STEP = [
    "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=100", "train.max_steps=1",
    "train.max_grad_norm=1e9", "train.save_strategy=no", "model.lora.lora_dropout=0",
]  # fmt: skip


def fill_adapter(trainer):
    """Give the adapter's second factor values, without which the first one has no gradient."""
    draw = torch.Generator().manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.empty(weight.shape).normal_(std=0.02, generator=draw).to(weight)


def step_taken(trainer):
    """(loss, gradients by name) of a run's one step."""
    from transformers import TrainerCallback

    found = {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            weights = model.named_parameters()
            found.update({name: w.grad.float().cpu() for name, w in weights if w.grad is not None})

    trainer.add_callback(Gradients())
    trainer.train()
    [loss] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return loss, found


def check_step(trainer, of_loss, of_gradients):
    """Take the step, and compare it with the expected one.

    Args:
        of_loss: how far the loss may be from it, as a share of it.
        of_gradients: how far a gradient may be, as a share of its norm.
    """
    fill_adapter(trainer)
    expected_loss, expected = expected_step(trainer)
    loss, found = step_taken(trainer)
    assert found.keys() == expected.keys() and found
    far = max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)
    print(f"loss {loss:.6f}, off by {abs(loss / expected_loss - 1):.2g}, gradients by {far:.2g}")
    assert loss == pytest.approx(expected_loss, rel=of_loss)
    assert far < of_gradients
