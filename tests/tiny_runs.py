"""Configurations for runs of the tiny models, and rows whose answers they can learn."""

import json

import pytest
import torch
from tiny_tokenizers import make_tokenizer

from ragfit.config.load import load_config
from ragfit.config.overrides import override


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads cost these models more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MARKER = "<|im_start|>assistant\n"


def tiny(arch, tokenizer, **sizes):
    """A model with a few thousand random weights.

    Args:
        arch: "llama" or "phi3".
        sizes: of its configuration, where they are others.
    """
    import transformers

    shape = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": len(tokenizer),
    }  # fmt: skip
    shape |= {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")} | sizes
    name = {"llama": "Llama", "phi3": "Phi3"}[arch]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**shape))
    # As chat models have it: generation stops at the template's end of turn too.
    end = "<|im_end|>" if "<|im_end|>" in tokenizer.chat_template else "<|end|>"
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
    return model


def save_tiny(arch, folder):
    """Write a tiny model and its tokenizer of about 570 tokens, with a ChatML template; the folder."""
    tokenizer = make_tokenizer("digits", "chatml")
    tiny(arch, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def question_rows(count, words=3):
    """Rows with prompts of different lengths, and answers of a few tokens."""
    return [
        {"prompt": f"What is {n} times two? " + "no idea. " * (n % 5 * words), "answers": [f"The answer is {2 * n}."]}
        for n in range(count)
    ]


def tiny_config(model, data_file, output_dir, *overrides, config="training"):
    """`configs/training.yaml` with a tiny model put in, unquantized, two LoRA targets, nothing else changed.

    Args:
        model: folder of a tiny model, of the fixtures `tiny_llama` and `tiny_phi3`.
        overrides: Hydra overrides, which win.
    """
    targets = ["qkv_proj", "o_proj"] if "phi3" in str(model) else ["q_proj", "v_proj"]
    return load_config(
        config,
        [
            override("model.model_name_or_path", str(model)),
            override("model.completion_start", MARKER),
            override("model.lora.target_modules", targets),
            override("data_file", str(data_file)),
            override("train.output_dir", str(output_dir)),
            "output_key=answers",
            "model.load_in_8bit=false",
            "train.optim=adamw_torch",
            "train.logging_steps=1",
            *overrides,
        ],
    )


def tiny_trainer(cfg, callbacks=()):
    """`prepare` and `build_trainer` in one."""
    import ragfit

    return ragfit.build_trainer(cfg, ragfit.prepare(cfg), callbacks)


def losses(trainer):
    """The training losses a run logged, in order."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def adapter_weights(model):
    """Trainable tensors by name, copied."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


def notebook_parameters(model, data_file, output_dir):
    """Parameters of `train.ipynb` that train a tiny model with the default configuration; dotted names as papermill's."""
    return {
        "data_file": str(data_file),
        "output_key": "answers",
        "dev_split": 0.25,
        "model.model_name_or_path": str(model),
        "model.load_in_8bit": False,
        "model.completion_start": MARKER,
        "model.lora.target_modules": ["q_proj"],
        "train.optim": "adamw_torch",
        "train.output_dir": str(output_dir),
        "train.logging_steps": 1,
    }


def with_code(folder, ran):
    """Give a model's folder code of its own, for the model and the tokenizer, which leaves a file behind when it runs."""
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "owncode",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        f"Path({str(ran)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'owncode'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
