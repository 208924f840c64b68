"""Real models made tiny, and real tokenizers and rows where they are. Nothing here needs a network.

`RAGFIT_TOKENIZERS` may name a folder with real tokenizers; tests that want them are skipped where it is not set.
"""

import functools
import itertools
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kernels, browser and commands share two cores, and PyTorch's threads spin while they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["RAGFIT_CACHE_GB"] = "0"  # prepared rows of a test are not kept in the user's cache

import pytest
from tiny_tokenizers import *  # noqa: F403  (what tests import from here)
from tiny_tokenizers import make_tokenizer

pytest_plugins = ["browser"]


def pytest_configure(config):
    """Hide GPUs from tests that are of a CPU: from all but `pytest tests/gpu`. (xdist's workers inherit it.)"""
    asked = [Path(arg.partition("::")[0]).resolve() for arg in config.args]
    only_gpu = all(path.is_relative_to(Path(__file__).resolve().parent / "gpu") for path in asked)
    if "PYTEST_XDIST_WORKER" not in os.environ and (not only_gpu or os.environ.get("RAGFIT_GPU_TESTS_ON") == "cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of about 570 tokens with a ChatML template; pad, BOS and EOS differ."""
    return make_tokenizer("digits", "chatml")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """`tiny_model("llama")` or `tiny_model("phi3")`: a folder with a real model of a few thousand weights and its tokenizer."""
    from tiny_runs import save_tiny

    return functools.cache(lambda arch: save_tiny(arch, tmp_path_factory.mktemp(f"tiny-{arch}")))


@pytest.fixture(scope="session")
def tiny_llama(tiny_model):
    """A folder with a tiny LlamaForCausalLM (q_proj, k_proj, v_proj, …) and its tokenizer."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_phi3(tiny_model):
    """A folder with a tiny Phi3ForCausalLM (qkv_proj, gate_up_proj, …) and its tokenizer."""
    return tiny_model("phi3")


@pytest.fixture(scope="session")
def finished_run(tiny_llama, tmp_path_factory):
    """The output folder of a run that has ended, with its checkpoint/. Tests that change it copy it first."""
    from tiny_runs import question_rows, tiny_config, tiny_trainer

    import ragfit

    folder = tmp_path_factory.mktemp("finished")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in question_rows(8)))
    keys = ["dev_split=2", "train.max_steps=4", "train.learning_rate=0.05", "train.lr_scheduler_type=constant"]
    ragfit.train(tiny_trainer(tiny_config(tiny_llama, folder / "rows.jsonl", folder / "run", *keys)))
    return folder / "run"


@pytest.fixture
def write_rows(tmp_path):
    """`write_rows(rows, name="rows.jsonl")`: write dicts as JSONL, return the path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


REAL_TOKENIZERS = (
    "llama-2-7b-chat", "llama-3.1-8b-instruct", "mistral-7b-instruct-v0.1", "phi-3-mini-128k-instruct-apr2024",
    "phi-3-mini-4k-instruct", "qwen3", "smollm2-135m-instruct", "zephyr-7b-beta",
)  # fmt: skip


def real_folder():
    """The folder of real tokenizers; skips the test where there is none."""
    if not (folder := os.environ.get("RAGFIT_TOKENIZERS")):
        pytest.skip("RAGFIT_TOKENIZERS is not set: no real tokenizers here")
    return Path(folder)


@pytest.fixture(params=REAL_TOKENIZERS)
def real_tokenizers(request):
    """Each real tokenizer in turn; its folder's name is `tokenizer.kit_name`."""
    folder = real_folder() / request.param
    return _loaded(folder) if folder.is_dir() else pytest.skip(f"there is no {folder}")


@functools.cache
def _loaded(folder):
    from ragfit.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    tokenizer.kit_name = folder.name
    return tokenizer


def real_rows(name, count):
    """The first rows of a real data file beside the real tokenizers; skips where there is none."""
    path = real_folder().parent / "data" / name
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


MODEL_KEYS = {
    "model_name_or_path": None, "completion_start": "", "instruction_in_prompt": False, "max_sequence_len": None,
    "over_length": None, "chat_template_kwargs": None,
}  # fmt: skip
DATA_KEYS = {"instruction": None, "template": None, "input_key": "prompt", "output_key": "answers"}
DATA_KEYS |= {"limit": None, "shuffle": None, "dev_split": None}


def make_config(data_file, **settings):
    """What `prepare` reads of a configuration; the keys of `model` need no prefix: `over_length="cut_end"`."""
    from omegaconf import OmegaConf

    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    model = MODEL_KEYS | {name: value for name, value in given.items() if name in MODEL_KEYS}
    data = DATA_KEYS | {name: value for name, value in given.items() if name not in MODEL_KEYS}
    return OmegaConf.create({"model": model, "train": {}, "data_file": str(data_file), **data})
