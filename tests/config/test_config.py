"""From YAML files and overrides to one resolved configuration. Real Hydra, real files."""

import dataclasses
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from ragfit.config import schema as keys
from ragfit.config.load import differences, finish, load_config, read_config
from ragfit.config.overrides import normalize_overrides, override
from ragfit.config.paths import PROJECT_ROOT, find_existing, find_file, find_model, find_path, user_path
from ragfit.config.save import save_config, to_yaml
from ragfit.config.schema import nearest
from ragfit.errors import ConfigError

CONFIGS = PROJECT_ROOT / "configs"
SHIPPED = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))

# The training configuration as the original framework documents it.
ORIGINAL = """\
model:
  _target_: ragfoundry.models.hf.HFTrain
  model_name_or_path: microsoft/Phi-3-mini-128k-instruct
  load_in_4bit: false
  load_in_8bit: true
  torch_dtype:
  device_map:
  trust_remote_code: true
  lora:
    bias: none
    fan_in_fan_out: false
    layers_pattern:
    layers_to_transform:
    lora_alpha: 16
    lora_dropout: 0.1
    peft_type: LORA
    r: 16
    target_modules:
      - qkv_proj
    task_type: CAUSAL_LM
    use_rslora: true
  completion_start: <|assistant|>
  instruction_in_prompt:
  max_sequence_len: 4000

train:
  output_dir: ./trained_models/
  bf16: false
  fp16: false
  gradient_accumulation_steps: 2
  group_by_length:
  learning_rate: 1e-4
  logging_steps: 10
  lr_scheduler_type: cosine
  max_steps: -1
  num_train_epochs: 1
  per_device_train_batch_size: 1
  optim: paged_adamw_8bit
  remove_unused_columns: true
  save_steps: 20000
  save_total_limit: 1
  warmup_ratio: 0.03
  weight_decay: 0.001
  report_to:

instruction: ragfoundry/processing/prompts/prompt_instructions/qa.txt
template:
data_file:
input_key: prompt
output_key:
resume_checkpoint:
limit:
shuffle:
hfhub_tag:
use_wandb:
experiment:
wandb_entity:
"""
SMALL = "model: {model_name_or_path: gpt2, lora: {r: 4}}\ntrain: {learning_rate: 1e-4}\nlimit:\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a YAML file in a fresh working directory; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="my.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return write


def plain(cfg):
    return OmegaConf.to_container(cfg, resolve=True)


# --- What is known ----------------------------------------------------------------------------------------------------


def test_fields_read_off_the_sources_are_the_classes_fields():
    from peft import LoraConfig
    from trl import SFTConfig

    assert set(keys.library_fields("train")) == {f.name for f in dataclasses.fields(SFTConfig) if f.init}
    assert set(keys.library_fields("model.lora")) == {f.name for f in dataclasses.fields(LoraConfig) if f.init}
    assert not {k.partition(".")[2] for k in keys.REMOVED} & set(keys.library_fields("train"))
    assert all(new in keys.known_keys() for new in keys.RENAMED.values())
    # `max_length` is a field still, but the one thing that cuts rows here is model.max_sequence_len.
    assert {old for old in keys.RENAMED if old in keys.known_keys()} == {"train.max_length"}


def test_nothing_heavy_is_imported():
    code = (
        "import sys, ragfit.config.load as c, ragfit.config.notebook; c.load_config('demo');"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert result.stdout == "[]\n", result.stderr


def test_types_read_off_the_sources():
    types = keys.known_keys()
    assert types["train.save_strategy"] == Literal["no", "steps", "epoch", "best"]  # an enum of transformers
    assert types["train.accelerator_config"] == dict | str | None
    assert types["model.lora.target_modules"] == list[str] | str | None
    assert types["model.lora.bias"] == Literal["none", "all", "lora_only"]
    assert types["model.lora.loftq_config"] is dict  # LoftQConfig | dict
    for kind in types.values():
        TypeAdapter(kind).json_schema()  # which pydantic can check, and a message can say


@pytest.mark.parametrize(
    "key, expected",
    [
        ("learning_rte", "train.learning_rate"),
        ("lora.r", "model.lora.r"),
        ("model.lora.rr", "model.lora.r"),
        ("model.r", "model.lora.r"),
        ("data_fle", "data_file"),
        ("modle", "model"),
        ("train.warmup_ration", "train.warmup_ratio"),
        ("train.completion_start", "model.completion_start"),
        ("lr", "train.learning_rate"),
        ("qqqqqqqq", None),
    ],
)
def test_nearest(key, expected):
    assert nearest(key) == expected
    assert nearest(key + "x" * 1_000_000) in (None, expected)  # and that at once


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load(name):
    from peft import LoraConfig

    cfg = load_config(name)
    assert set(cfg) == {"model", "train", "translated", *keys.DATA_KEYS}
    LoraConfig(**plain(cfg.model.lora))
    assert find_path(cfg.instruction, "instruction").read_text(encoding="utf-8").strip()
    assert not cfg.model.get("trust_remote_code")


def test_shipped_train_part_is_taken_by_sft_config(tmp_path):
    from trl import SFTConfig

    for name in ("training", "demo"):
        train = plain(load_config(name).train)
        SFTConfig(**{**train, "output_dir": str(tmp_path), "use_cpu": True, "bf16": False})


def test_defaults_are_the_documented_ones():
    assert read_config("training") == read_config("paper/training-asqa")
    original = OmegaConf.create(ORIGINAL.replace("ragfoundry", "ragfit"))
    original.model.trust_remote_code = False
    original.dev_split = None
    assert read_config("training") == original
    changed = {
        "model.max_sequence_len": 2000,
        "train.output_dir": "./trained_model/",
        "instruction": "ragfit/processing/prompts/prompt_instructions/qa-yes-no.txt",
        "data_file": "pubmed-rag-train.jsonl",
        "output_key": "answers",
    }
    for key, value in changed.items():
        OmegaConf.update(original, key, value)
    assert read_config("paper/training-pubmed") == original


def test_the_original_framework_s_file_loads(write):
    cfg = load_config(write(ORIGINAL))
    assert cfg.model._target_ == "ragfit.models.hf.HFTrain"
    assert cfg.instruction == "ragfit/processing/prompts/prompt_instructions/qa.txt"
    assert cfg.train.learning_rate == 1e-4 and cfg.train.warmup_steps == 0.03 and cfg.train.report_to == "none"
    assert not {"warmup_ratio", "group_by_length"} & set(cfg.train) and "torch_dtype" not in cfg.model
    assert dict(cfg.translated) == {
        "model._target_": "ragfoundry.models.hf.HFTrain -> ragfit.models.hf.HFTrain",
        "instruction": f"ragfoundry/{cfg.instruction.partition('/')[2]} -> {cfg.instruction}",
        "train.warmup_ratio": "0.03 -> train.warmup_steps",
        "train.report_to": "null -> none",
    }


def test_a_variant_of_the_original_loads(write):
    quantization = "  quantization_config:\n    _target_: transformers.BitsAndBytesConfig\n    load_in_8bit: true\n"
    text = ORIGINAL.replace("  load_in_4bit: false\n  load_in_8bit: true\n", quantization) + "dev_split: 0.1\n"
    cfg = load_config(write(text))
    assert cfg.model.quantization_config == {"load_in_8bit": True}
    dropped = "transformers.BitsAndBytesConfig -> dropped, it is the class that is made of these keys"
    assert cfg.translated["model.quantization_config._target_"] == dropped
    assert cfg.dev_split == 0.1


def test_where_files_are_found(write, tmp_path):
    name = write(SMALL)
    assert load_config(name) == load_config(tmp_path / name) == load_config(f"./{name}")
    assert load_config("training.yaml") == load_config("training")  # of the project
    write(SMALL, "configs/training.yaml")
    assert load_config("training").model.model_name_or_path == "gpt2"  # of the working directory
    assert find_path(name, "data_file").read_text() == SMALL
    assert find_path("ragfit/errors.py", "x") == PROJECT_ROOT / "ragfit/errors.py"
    assert find_existing("nowhere.txt") is None and find_existing(None) is None and find_existing("~") is not None
    places = f"{tmp_path}/no.txt or {PROJECT_ROOT}/no.txt"
    with pytest.raises(ConfigError, match=f"instruction: there is no 'no.txt' at {places}. Set instruction"):
        find_path("no.txt", "instruction")


UNREACHABLE = [
    (
        "Answer the question with the documents below. " * 8,
        "'Answer the .*… .3.. characters. cannot be looked up: File name too long",
    ),
    ("rows/" * 900 + "rows", "'rows/rows/.*… .4,5.. characters. cannot be looked up: File name too long"),
    ("~nosuchuser/rows", "'~nosuchuser/rows.*' cannot be looked up: Could not determine home directory"),
    ("a\0b", r"'a\\x00b.*' cannot be looked up: embedded null byte"),
    ("\ud800", ".* cannot be looked up: .*surrogates not allowed"),
]


@pytest.mark.parametrize(
    ("value", "message"), UNREACHABLE, ids=["a text", "long", "nobody's home", "NUL", "half a character"]
)
def test_a_path_that_cannot_be_looked_up(value, message):
    """Whatever is to be found there: one sentence with the key, one of what to do."""
    for find, key, advice in (
        (lambda value: user_path(value, "train.output_dir"), "train.output_dir", "another path"),
        (lambda value: find_file(value, "instruction"), "instruction", "the path of a file that holds the text"),
        (find_model, "model.model_name_or_path", "another path"),
        (lambda value: load_config(f"{value}.yaml"), "config", "another path"),
    ):
        with pytest.raises(ConfigError, match=rf"^{key}: {message}\. Set {key} to {advice}\.$"):
            find(value)


def test_a_folder_that_may_not_be_entered(write, tmp_path):
    write("", "locked/rows.jsonl")
    (tmp_path / "locked").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # nobody: root may enter every folder
    try:
        with pytest.raises(
            ConfigError,
            match="^data_file: 'locked/rows.jsonl' cannot be looked up: Permission denied. Set data_file to another path.$",
        ):
            find_file("locked/rows.jsonl", "data_file")
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "locked").chmod(0o700)


def test_only_regular_files_are_read(write, tmp_path):
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="^config: pipe.yaml is a pipe or a device. Write its content into a file.$"):
        load_config("pipe.yaml")
    with pytest.raises(ConfigError, match="^instruction: /dev/zero is a pipe or a device"):
        find_file("/dev/zero", "instruction")
    with pytest.raises(ConfigError, match="^data_file: . is a folder. Name the file in it.$"):
        find_file(".", "data_file")


def test_the_home_folder_stands_for_a_tilde_wherever_the_run_is_looked_for(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(write(SMALL), ["train.output_dir=~/runs"]).train.output_dir == f"{tmp_path}/runs"


def test_folders_beside_the_file_are_no_groups(write, tmp_path):
    name = write(SMALL)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/a.yaml").write_text("x: 1")
    assert load_config(name, ["experiment=run1", "template=a"]).experiment == "run1"


def test_defaults_lists_and_interpolations_work(write):
    write(SMALL, "base.yaml")
    name = write("defaults: [base, _self_]\ntrain: {run_name: 'of ${model.model_name_or_path}'}\nlimit: 3\n")
    cfg = load_config(name, ["train.learning_rate=2e-4"])
    assert (cfg.train.run_name, cfg.limit, cfg.train.learning_rate) == ("of gpt2", 3, 2e-4)


WHOLE = "a whole number of at least 1"
BAD_FILES = [
    ("", r"^my.yaml: it is empty\. Write the keys model and train there"),
    ("# nothing\n", "^my.yaml: it is empty"),
    ("- a\n", r"^my.yaml: it is not a mapping of keys to values\. Begin it like configs/training.yaml\."),
    ("model:\n\tx: 1\n", r"^my.yaml, line 2: this is not YAML: .*\\t.*Correct that line"),
    ("a: [1, 2\nb: 1\n", "^my.yaml, line 2: this is not YAML"),
    ("a: *b\n", "^my.yaml, line 1: this is not YAML: found undefined alias"),
    (b"# caf\xe9\nmodel: {}\n", "^my.yaml: it cannot be read: .*Save it as UTF-8"),
    ("limit: 1\nmodel: {}\nlimit: 2\n", r"^my.yaml, line 3: limit is there twice \(line 1\)\. Remove one"),
    ("model:\n  lora:\n    r: 1\n    r: 2\n", r"line 4: model.lora.r is there twice \(line 3\)"),
    ("model: !!python/object/apply:os.system ['touch PWNED']\n", "^my.yaml: could not determine a constructor"),
    (SMALL.replace("lora:", "lra:"), r"^model.lra: unknown key \(my.yaml, line 1\)\. Did you mean model.lora\?"),
    (SMALL + "learning_rte: 1\n", r"^learning_rte: unknown key \(my.yaml, line 4\)\. Did you mean train.learning_rate\?"),
    (SMALL + "on: 1\n", r"^True: unknown key \(my.yaml\)"),
    (SMALL + "qqqqqqqq: 1\n", "The configuration has: instruction, template"),
    (SMALL + "train.seed: 5\n", r"^train.seed: a key with dots \(my.yaml, line 4\)\. Write seed as a key below train:, indented\."),
    ("model: {model_name_or_path: a, lora.r: 3}\n", r"^model.lora.r: a key with dots \(my.yaml, line 1\)\. Write r as a key below model.lora:"),
    (SMALL + "train.learning_rate: 5\n", r"^my.yaml, line 4: train.learning_rate is there twice \(line 2\)"),
    (SMALL + "train.learning_rat: 5\n", r"^train.learning_rat: unknown key \(my.yaml, line 4\)\. Did you mean train.learning_rate"),
    (SMALL.replace("gpt2", "gpt2, 1.5: x"), r"^model.1.5: unknown key \(my.yaml, line 1\)"),
    (SMALL + "translated: 3\n", r"^translated: 3, not keys and values \(my.yaml, line 4\)"),
    (SMALL.replace("1e-4", "fast"), r"^train.learning_rate: 'fast' is not allowed \(my.yaml, line 2\)\. It takes a number of at least 0\."),
    (SMALL.replace("1e-4", "1, warmup_ratio: 3%"), r"^train.warmup_ratio: '3%' is not allowed \(my.yaml, line 2\)\. It takes a number between 0 and 1"),
    (SMALL.replace("1e-4", "1, warmup_ratio: 3"), "^train.warmup_ratio: 3 is not allowed"),
    (SMALL.replace("1e-4", "1, weight_decay: -0.1"), "^train.weight_decay: -0.1 is not allowed"),
    (SMALL.replace("1e-4", "1, completion_only_loss: false"), "^train.completion_only_loss: False is not allowed"),
    (SMALL.replace("1e-4", "true"), "^train.learning_rate: True is not allowed"),
    (SMALL.replace("1e-4", "[1]"), r"^train.learning_rate: \[1\] is not allowed"),
    (SMALL.replace("1e-4", ".nan"), "^train.learning_rate: nan is not allowed"),
    (SMALL.replace("1e-4", "'???'"), r"^train.learning_rate: \?\?\?, a value still to be given \(my.yaml, line 2\)\. Set train.l"),
    (SMALL.replace("1e-4", "'${nope}'"), r"^train.learning_rate: it cannot be resolved: Interpolation key 'nope' not found \(my.yaml, line 2\)\. Correct the \$\{…\}; NAME of the environment is \$\{oc.env:NAME\}\."),
    (SMALL.replace("1e-4", "'${oc.env:RAGFIT_NOPE}'"), r"^train.learning_rate: it cannot be resolved: .*RAGFIT_NOPE.* \(my.yaml, line 2\)"),
    (SMALL.replace("1e-4", "'${nope'"), "^my.yaml: .*nope.*Correct the file"),
    (SMALL.replace("{r: 4}", "[4]"), r"^model.lora: \[4\] is not allowed .* It takes keys and values or empty\."),
    (SMALL.replace("r: 4", "r: {a: 1}"), r"^model.lora.r: \{'a': 1\} is not allowed .* It takes a whole number"),
    (SMALL.replace("r: 4", "rank: 4"), r"^model.lora.rank: unknown key \(my.yaml, line 1\)"),
    (SMALL.replace("model_name_or_path: gpt2, ", ""), r"^model.model_name_or_path: it is not set \(my.yaml, line 1\)\. Set a model's name"),
    ("train: {}\n", r"^model.model_name_or_path: it is not set \(my.yaml\)"),
    ("model:\ntrain: {}\n", r"^model: empty, not keys and values \(my.yaml, line 1\)\. Write keys under model:, indented\."),
    ("model: {model_name_or_path: a}\ntrain: 3\n", r"^train: 3, not keys and values \(my.yaml, line 2\)"),
    (SMALL.replace("limit:", "limit: 0"), rf"^limit: 0 is not allowed \(my.yaml, line 3\)\. It takes {WHOLE} or empty\."),
    (SMALL.replace("gpt2", "a, load_in_8bit: true, load_in_4bit: true"), r"^model.load_in_4bit: true, as model.load_in_8bit is \(my.yaml, line 1\)\. Set one to false"),
    (SMALL.replace("1e-4", "1, warmup_steps: 5, warmup_ratio: 0.1"), r"^train.warmup_ratio: 0.1, but train.warmup_steps, its present name, is 5 \(my.yaml, line 2\)\. Leave train.warmup_ratio empty"),
    (SMALL + "input_key: q\noutput_key: q\n", r"^output_key: 'q', as input_key is, so the model would learn to repeat its prompt \(my.yaml, line 5\)\. Set output_key"),
    # Files that grow when they are read.
    ("a: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)), "^my.yaml: it holds more than 10,000 values, with its aliases .* written out.*Write what is needed"),
    ("a: &a {b: *a}\n", "^my.yaml: it holds more than 10,000 values"),
    ("a: " + "[" * 3000 + "]" * 3000 + "\n", "^my.yaml: it is nested too deeply"),
    ("a: " + "[" * 60 + "]" * 60 + "\n", "^my.yaml: it holds more than 10,000 values, .*or too deep ones"),
    ("a: " + "x" * 2**20, "^my.yaml: it is larger than 1 MB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[str(text)[-40:] for text, _ in BAD_FILES])
def test_bad_files(write, text, message):
    name = write(text)
    check(lambda: load_config(name), message)
    assert not Path("PWNED").exists()


def check(load, message):
    """One line that names key and place, and ends with what to do."""
    with pytest.raises(ConfigError, match=message) as caught:
        load()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1200 and said[-1] in ".?", said


@pytest.mark.slow
@pytest.mark.parametrize("text", ["0123456", "12e4567", "1e5", "0x1f", "1_000", "12:30", "1.10", "7"])
def test_text_that_yaml_reads_as_a_number_stays_the_text_that_was_written(write, text):
    cfg = load_config(
        write(SMALL.replace("gpt2", f"gpt2, revision: {text}") + f"experiment: {text}\ndev_split: 0x1f\n")
    )
    assert (cfg.model.revision, cfg.experiment, cfg.dev_split) == (text, text, 31)
    save_config(cfg, "again.yaml")
    assert load_config("again.yaml") == cfg
    assert load_config("my.yaml", ["experiment=x"]).model.revision == text
    assert load_config("my.yaml", ["model.revision=0777"]).model.revision == "0777"


def test_other_bad_files(write, tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="config: folder.yaml is a folder. Name the file in it."):
        load_config("folder.yaml")
    with pytest.raises(ConfigError, match=r"no configuration 'trainig'.* mean training\?.* paper/training-asqa"):
        load_config("trainig")
    with pytest.raises(ConfigError, match=r"Did you mean paper/training-pubmed\?"):
        load_config("training-pubmed")
    with pytest.raises(ConfigError, match="no configuration ''"):
        load_config("")


# --- Installed ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder of an installed wheel, made of the files that git would commit."""
    installed = {found.name.lower(): found.version for found in metadata.distributions()}
    if "pip" not in installed or int(installed.get("setuptools", "0").partition(".")[0]) < 77:
        pytest.skip("offline, pip builds a wheel with the setuptools that is installed, and needs 77 or later")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site-packages")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT_ROOT / name, source)
    for name in ("ragfit", "configs"):
        shutil.copytree(PROJECT_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "-q"]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", target, source], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return target


def test_a_wheel_holds_all_that_the_source_tree_does(wheel):
    def files(folder):
        return {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert files(wheel / "ragfit") == files(PROJECT_ROOT / "ragfit") | {f"configs/{name}" for name in files(CONFIGS)}
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"ragfit"}


@pytest.mark.parametrize("name", SHIPPED)
def test_configurations_of_a_wheel_and_what_they_name(wheel, name, tmp_path):
    """In an empty folder: the same configuration, its instruction, and the demo's rows."""
    code = (
        "import sys, ragfit; from ragfit.config.paths import find_file; from ragfit.data.rows import open_rows; cfg = ragfit.load_config(sys.argv[1]);"
        "print(find_file(cfg.instruction, 'instruction'), *[len(open_rows(find_file(cfg[k], k))) for k in ('data_file', 'dev_split') if 'demo' in str(cfg[k])])"
    )
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    result = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, cwd=tmp_path, env=env)
    rows = " 138 30" if name == "demo" else ""
    assert result.stdout == f"{wheel / load_config(name).instruction}{rows}\n", result.stderr


@pytest.mark.slow
def test_the_module_of_a_wheel(wheel, tmp_path):
    command = [sys.executable, "-m", "ragfit.training", "-cn", "demo", "model.model_name_or_path=./none"]
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert "there is no './none' at " in result.stderr and "Traceback" not in result.stderr, result.stderr


# --- Translations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, result, note",
    [
        (
            "group_by_length: true",
            {"train_sampling_strategy": "group_by_length"},
            "true -> train.train_sampling_strategy: group_by_length",
        ),
        ("group_by_length: false", {}, "false -> dropped, it is the default"),
        ("group_by_length:", {}, None),
        ("warmup_ratio: 0.1", {"warmup_steps": 0.1}, "0.1 -> train.warmup_steps"),
        ("warmup_ratio: '0.1'", {"warmup_steps": 0.1}, "0.1 -> train.warmup_steps"),
        ("warmup_ratio:", {}, None),
        ("{warmup_ratio: 0.1, warmup_steps: 0}", {"warmup_steps": 0.1}, "0.1 -> train.warmup_steps"),
        ("{warmup_ratio: , warmup_steps: 7}", {"warmup_steps": 7}, None),
        ("evaluation_strategy: steps", {"eval_strategy": "steps"}, "steps -> train.eval_strategy"),
        ("eval_strategy: no", {"eval_strategy": "no"}, None),
        ("evaluation_strategy: no", {"eval_strategy": "no"}, "false -> train.eval_strategy"),
        ("no_cuda: true", {"use_cpu": True}, "true -> train.use_cpu"),
        ("per_gpu_train_batch_size: 2", {"per_device_train_batch_size": 2}, "2 -> train.per_device_train_batch_size"),
        ("overwrite_output_dir: true", {}, "true -> dropped, there is no such setting any more"),
        ("tpu_num_cores:", {}, None),
        ("max_steps:", {}, None),
        ("max_grad_norm: '1'", {"max_grad_norm": 1}, None),
        ("max_steps: 1e3", {"max_steps": 1000}, None),
        ("max_steps: ' 10 '", {"max_steps": 10}, None),
        ("bf16: 'False'", {"bf16": False}, None),
        ("bf16: 1", {"bf16": True}, None),
        ("run_name: 5", {"run_name": "5"}, None),
        ("logging_steps: '1e-1'", {"logging_steps": 0.1}, None),
        ("report_to: [tensorboard]", {"report_to": ["tensorboard"]}, None),
        ("lr_scheduler_kwargs: {any: {goes: here}}", {"lr_scheduler_kwargs": {"any": {"goes": "here"}}}, None),
        ("lr_scheduler_kwargs: '{\"min_lr\": 0.1}'", {"lr_scheduler_kwargs": {"min_lr": 0.1}}, None),
    ],
)
def test_train_values(write, train, result, note):
    train = train if train.startswith("{") else "{" + train + "}"
    cfg = load_config(write(f"model: {{model_name_or_path: a}}\ntrain: {train}\n"))
    assert plain(cfg.train) == {"report_to": "none", "output_dir": "./trained_models", **result}
    assert list(cfg.translated.values()) == ([note] if note else [])
    assert finish(cfg) == cfg


@pytest.mark.parametrize(
    "text, key, value",
    [
        ("model: {torch_dtype: bfloat16}", "model.dtype", "bfloat16"),
        ("model: {lora: }", "model.lora", None),
        ("model: {lora: {r: '8'}}", "model.lora.r", 8),
        ("model: {lora: {init_lora_weights: 'true'}}", "model.lora.init_lora_weights", True),
        ("model: {lora: {init_lora_weights: pissa_niter_16}}", "model.lora.init_lora_weights", "pissa_niter_16"),
        ("model: {lora: {target_modules: '[a, b]'}}", "model.lora.target_modules", ["a", "b"]),
        ("model: {lora: {target_modules: '[qkv]_proj'}}", "model.lora.target_modules", "[qkv]_proj"),
        ("model: {lora: {rank_pattern: {^x: 3}}}", "model.lora.rank_pattern", {"^x": 3}),
        ("model: {device_map: 0}", "model.device_map", 0),
        ("model: {completion_start: ''}", "model.completion_start", None),
        ("model: {completion_start: ' '}", "model.completion_start", " "),
        ("model: {completion_start: 'null'}", "model.completion_start", "null"),
        ("train: {max_seq_length: 512}", "model.max_sequence_len", 512),
        ("train: {max_length: '512'}", "model.max_sequence_len", 512),
        ("model: {max_sequence_len: 9}\ntrain: {max_seq_length: 512}", "model.max_sequence_len", 9),
        ("use_wandb: true", "train.report_to", "wandb"),
        ("use_wandb: 'true'\ntrain: {report_to: none}", "train.report_to", "wandb"),
        ("use_wandb: true\ntrain: {report_to: tensorboard}", "train.report_to", "tensorboard"),
        ("use_wandb: 1", "train.report_to", "wandb"),
        ("use_wandb: 'null'", "use_wandb", None),
        ("shuffle: true", "shuffle", 42),
        ("shuffle: false", "shuffle", None),
        ("shuffle: 0", "shuffle", 0),
        ("shuffle: '7'", "shuffle", 7),
        ("dev_split: '0.1'", "dev_split", 0.1),
        ("dev_split: '100'", "dev_split", 100),
        ("dev_split: dev.jsonl", "dev_split", "dev.jsonl"),
        ("resume_checkpoint: 'true'", "resume_checkpoint", True),
        ("output_key: 1", "output_key", "1"),
        ("template: ''", "template", None),
        ("train:", "train.report_to", "none"),
    ],
)
def test_values(write, text, key, value):
    model = "model:\n  model_name_or_path: a\n"
    text = text.replace("model: {", "model: {model_name_or_path: a, ") if text.startswith("model:") else model + text
    cfg = load_config(write(text))
    found = OmegaConf.select(cfg, key)
    assert (plain(found) if OmegaConf.is_config(found) else found) == value
    assert type(value) is not bool or found is value
    assert finish(cfg) == cfg


def test_another_class_takes_any_key(write):
    text = "model: {_target_: my.Model, lora: 5, mine: {a: 1}, torch_dtype: x, max_sequence_len: '7'}\n"
    cfg = load_config(write(text), ["model.yours=2"])
    assert plain(cfg.model) == {**plain(read_config("my.yaml").model), "max_sequence_len": 7, "yours": 2}
    cfg = load_config(write("model: {model_name_or_path: a}\n"), ["model._target_=my.Model", "model.mine=1"])
    assert cfg.model.mine == 1


# --- Overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, key, value",
    [
        (["train.learning_rate=1e-5"], "train.learning_rate", 1e-5),
        (["train.seed=3"], "train.seed", 3),
        (["+train.seed=3"], "train.seed", 3),
        (["++train.seed=3"], "train.seed", 3),
        (["train.lr_scheduler_kwargs.num_cycles=2"], "train.lr_scheduler_kwargs.num_cycles", 2),
        (["~train.weight_decay"], "train.weight_decay", None),
        (["~train.group_by_length"], "train.train_sampling_strategy", None),
        (["~limit"], "limit", None),
        (["~model.lora"], "model.lora", None),
        (["model.lora=null"], "model.lora", None),
        (["model.lora={r: 8, use_dora: true}"], "model.lora.use_dora", True),
        (["model.lora.target_modules=[a,b]"], "model.lora.target_modules", ["a", "b"]),
        (["model.lora.target_modules.0=a"], "model.lora.target_modules", ["a"]),
        (["model.lora.rank_pattern={a.b: 3}"], "model.lora.rank_pattern", {"a.b": 3}),
        (["model.lora.r=8"], "model.lora.lora_alpha", 16),
        (["model.completion_start=<|x|>"], "model.completion_start", "<|x|>"),
        (["model.completion_start=[/INST]"], "model.completion_start", "[/INST]"),
        (["model.completion_start=[INST"], "model.completion_start", "[INST"),
        (["model.completion_start=a: {b}\n"], "model.completion_start", "a: {b}\n"),
        (["model.completion_start='it''s'"], "model.completion_start", "'it''s'"),
        (["model.completion_start="], "model.completion_start", None),
        (["model.completion_start=null"], "model.completion_start", None),
        (["data_file='a, b.jsonl'"], "data_file", "a, b.jsonl"),
        (["data_file=a b.jsonl"], "data_file", "a b.jsonl"),
        (["experiment=1e3"], "experiment", "1e3"),
        (["experiment=${model.model_name_or_path}"], "experiment", "microsoft/Phi-3-mini-128k-instruct"),
        (["train.warmup_ratio=0.5"], "train.warmup_steps", 0.5),
        (["train.warmup_steps=50"], "train.warmup_steps", 50),
        (["train.warmup_steps=50", "train.warmup_ratio=0.5"], "train.warmup_steps", 0.5),
        (["train.warmup_ratio=0.5", "train.warmup_steps=50"], "train.warmup_steps", 50),
        (["train.warmup_ratio=0.5", "~train.warmup_ratio"], "train.warmup_steps", None),
        (["~train.warmup_steps"], "train.warmup_steps", None),
        (["train.max_length=512"], "model.max_sequence_len", 512),
        (["train.train_sampling_strategy=sequential"], "train.train_sampling_strategy", "sequential"),
        (["model.dtype=float16"], "model.dtype", "float16"),
        (["model.torch_dtype=float16"], "model.dtype", "float16"),
        (["limit=3", "limit=4"], "limit", 4),
        (["hydra.run.dir=x", "limit=4"], "limit", 4),
        ("limit=5", "limit", 5),
    ],
)
def test_overrides(overrides, key, value):
    cfg = load_config("training", overrides)
    found = OmegaConf.select(cfg, key)
    assert (plain(found) if OmegaConf.is_config(found) else found) == value


def test_old_name_over_a_file_with_the_new_one():
    assert load_config("demo", ["train.warmup_ratio=0.5"]).train.warmup_steps == 0.5
    assert load_config("demo", ["model.lora.r=2"]).model.lora.r == 2


NUMBER = "It takes a number of at least 0"
BAD_OVERRIDES = [
    ("learning_rte=1", r"^learning_rte: unknown key \(an override\)\. Did you mean train.learning_rate\?$"),
    ("+learning_rte=1", r"Did you mean train.learning_rate\?"),
    ("++train.x_y_z=1", "^train.x_y_z: unknown key"),
    ("lora.r=1", r"Did you mean model.lora.r\?"),
    ("~train.larning_rate", r"Did you mean train.learning_rate\?"),
    ("train.learning_rate.x=1", "^train.learning_rate.x: unknown key"),
    ("model.lora.rank=3", "^model.lora.rank: unknown key .* Did you mean model.lora.r"),
    ("=3", "^: unknown key|unknown key"),
    ("train.learning_rate", "^The override 'train.learning_rate' cannot be read: .* Write key=value"),
    ("model.lora.target_modules=[a,b", "^The override 'model.lora.target_modules=…' cannot be read"),
    ("model.lora.r='4", "cannot be read: .*Write key=value, close brackets and quotes, and quote text"),
    ("limit=1,2", "Ambiguous value for argument .*Correct the file or the override"),
    ("+train.learning_rate=2", "An item is already at 'train.learning_rate'"),
    ("db@x=2", "config group"),
    ("@limit=3", "Correct the file or the override"),
    ("limit=${nope}", r"^limit: it cannot be resolved: Interpolation key 'nope' not found \(an override of .*\)\. Correct the"),
    ("train=3", r"^train: 3, not keys and values \(an override of .*training.yaml\)"),
    ("model=null", "^model: empty, not keys and values"),
    ("limit=-1", rf"^limit: -1 is not allowed \(an override of .*training.yaml\)\. It takes {WHOLE} or empty\.$"),
    ("limit=many", "^limit: 'many' is not allowed"),
    ("limit=true", "^limit: True is not allowed"),
    ("shuffle=x", "^shuffle: 'x' .*It takes a whole number between 0 and 4294967295 or true or false or empty"),
    ("shuffle=-1", "^shuffle: -1 "),
    ("dev_split=0", "^dev_split: 0 .*Set a share between 0 and 1, a number of rows, or the path"),
    ("dev_split=1.5", "^dev_split: 1.5 "),
    ("dev_split=true", "^dev_split: True "),
    ("use_wandb=perhaps", "^use_wandb: 'perhaps' .*true or false or empty"),
    ("model.max_sequence_len=0", f"^model.max_sequence_len: 0 .*{WHOLE}"),
    ("model.max_sequence_len=4k", "^model.max_sequence_len: '4k' .*a whole number"),
    ("model.over_length=cut", "^model.over_length: 'cut' .*Did you mean cut_end.*one of cut_end, cut_start, drop or empty"),
    ("model.instruction_in_prompt=maybe", "^model.instruction_in_prompt: 'maybe' .*true or false"),
    ("model.model_name_or_path=null", r"^model.model_name_or_path: it is not set \(an override of"),
    ("model.lora=true", "^model.lora: True .*keys and values"),
    ("model.lora.r=0", f"^model.lora.r: 0 .*{WHOLE}"),
    ("model.lora.r=4.5", f"^model.lora.r: 4.5 .*{WHOLE}"),
    ("model.lora.lora_dropout=2", "^model.lora.lora_dropout: 2 .*a number between 0 and 1"),
    ("model.lora.peft_type=IA3", "^model.lora.peft_type: 'IA3' .*one of LORA"),
    ("model.lora.bias=some", "^model.lora.bias: 'some' .* It takes one of all, lora_only, none"),
    ("model.lora.modules_to_save=head", "^model.lora.modules_to_save: 'head' .* It takes a list of texts or empty"),
    ("model.lora.target_modules=[1]", r"^model.lora.target_modules: \[1\] .* It takes a list of texts or text or empty"),
    ("train.learning_rate=1e-4x", f"^train.learning_rate: '1e-4x' .*{NUMBER}"),
    ("train.learning_rate=-1", f"^train.learning_rate: -1 .*{NUMBER}"),
    ("train.learning_rate=.nan", f"^train.learning_rate: '.nan' .*{NUMBER}"),
    ("train.lr_scheduler_type=cosin", "^train.lr_scheduler_type: 'cosin' .*Did you mean cosine"),
    ("train.optim=adamm", "^train.optim: 'adamm' .*It takes one of .*adamw_torch"),
    ("train.num_train_epochs=0", "^train.num_train_epochs: 0, so nothing would be trained .*Set a number above 0"),
    ("train.max_steps=-7", "^train.max_steps: -7 .*at least -1"),
    ("train.per_device_train_batch_size=0", f"^train.per_device_train_batch_size: 0 .*{WHOLE}"),
    ("train.gradient_accumulation_steps=-2", "^train.gradient_accumulation_steps: -2 "),
    ("train.warmup_ratio=-1", r"^train.warmup_ratio: -1 is not allowed \(an override of .*It takes a number between 0 and 1"),
    ("train.seed=-1", "^train.seed: -1 .*between 0 and"),
    ("train.seed=" + "9" * 5000, r"^train.seed: .* \(5,00. characters\) is not allowed"),
    ("train.dataloader_num_workers=1e9", "^train.dataloader_num_workers: 1000000000.* .*between 0 and 1024"),
    ("train.pad_to_multiple_of=-8", "^train.pad_to_multiple_of: -8 .*between 1 and 65536"),
    ("train.push_to_hub=true", "^train.push_to_hub: it is set, but nothing reads it .*set hfhub_tag"),
    ("train.resume_from_checkpoint=x", "^train.resume_from_checkpoint: it is set, but .*Set resume_checkpoint"),
    ("output_key=prompt", "^output_key: 'prompt', as input_key is, .*Set output_key to the key of a row"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_OVERRIDES, ids=[text[:40] for text, _ in BAD_OVERRIDES])
def test_bad_overrides(text, message):
    check(lambda: load_config("training", [text]), message)


hard = ["<|assistant|>", "${x}", "\\${x}", "\\\\${", "a\\", "'", '"', "\\'", "a\n'\\\n"]
hard += ["null", "true", "1e-4", "", " ", "a=b,{c}[d]"]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(hard)
scalars = texts.filter(lambda t: t != "???") | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
reserved = ("null", "true", "false", "inf", "nan")
words = st.from_regex(r"[a-z_][a-z0-9_.-]{0,6}", fullmatch=True).filter(lambda word: word not in reserved)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=6)


@settings(max_examples=120, deadline=None)
@given(values)
def test_override_round_trip(value):
    """The override means this very value to Hydra, in a configuration too."""
    parsed = OverridesParser.create().parse_override(override("x", value)).value()
    found = OmegaConf.to_container(OmegaConf.create({"x": parsed}), resolve=True)["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(texts.filter(lambda t: t not in ("", "???")))
def test_text_survives_override_and_saving(tmp_path_factory, text):
    cfg = load_config("demo", [override("model.completion_start", text), override("experiment", text)])
    assert cfg.model.completion_start == cfg.experiment == text
    path = tmp_path_factory.mktemp("saved") / "a.yaml"
    save_config(cfg, path)
    assert load_config(path) == cfg and plain(load_config(path)) == plain(cfg)


@pytest.mark.parametrize(
    "value, message",
    [
        ("???", "x: '\\?\\?\\?' means a missing value"),
        ({"^a": 1}, "x: Hydra's overrides cannot express a key of"),
        ({"1": 1}, "cannot express a key"),
        (object(), "x: an object of type object is not a value"),
    ],
)
def test_values_that_no_override_can_express(value, message):
    with pytest.raises(ConfigError, match=message):
        override("x", value)


@pytest.mark.slow
def test_normalized_for_the_command_line():
    cfg = read_config("training")
    given = ["limit=3", "train.seed=1", "train.warmup_steps=5", "train.seed=1,2", "~limit"]
    assert normalize_overrides(given, cfg) == [
        "++limit=3",
        "++train.seed=1",
        "++train.warmup_ratio=null",
        "++train.warmup_steps=5",
        "++train.seed=1,2",
        "++limit=null",
    ]
    assert normalize_overrides(["hydra.run.dir=x", "hydra/launcher=basic", "~dev_split"], cfg) == [
        "hydra.run.dir=x",
        "hydra/launcher=basic",
        "++dev_split=null",
    ]


# --- Hydra's own state ------------------------------------------------------------------------------------------------


def test_a_hydra_that_runs_already_is_put_back():
    with initialize_config_dir(str(CONFIGS), version_base=None):
        before = GlobalHydra.instance().hydra
        load_config("demo")
        assert GlobalHydra.instance().hydra is before
        assert compose("training").limit is None
    assert not GlobalHydra.instance().is_initialized()


def test_inside_hydra_main_and_multirun(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import hydra\nfrom hydra.core.hydra_config import HydraConfig\n"
        "from ragfit.config.load import finish, load_config\n"
        "@hydra.main(version_base=None, config_path=None)\n"
        "def main(cfg):\n"
        "    cfg = finish(cfg)\n"
        "    demo = load_config('demo').train.output_dir\n"
        "    print(cfg.limit, cfg.train.warmup_steps, demo, HydraConfig.get().job.num)\n"
        "main()\n"
    )
    arguments = f"-cd {CONFIGS} -cn training --multirun limit=1,2 hydra.sweep.dir=x".split()
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=tmp_path, env=env)
    lines = [line for line in result.stdout.splitlines() if not line.startswith("[")]
    assert lines == ["1 0.03 ./trained_demo 0", "2 0.03 ./trained_demo 1"], result.stderr


# --- Showing and saving -----------------------------------------------------------------------------------------------


def test_differences(write):
    cfg = load_config("training", ["limit=5", "model.lora.r=8", "train.seed=1"])
    assert differences(cfg, "training") == [
        ("model.lora.r", 16, 8),
        ("train.report_to", None, "none"),
        ("train.seed", None, 1),
        ("train.warmup_steps", None, 0.03),
        ("limit", None, 5),
        ("train.warmup_ratio", 0.03, None),
    ]
    assert differences(load_config("demo"), "demo") == []


@pytest.mark.parametrize("name", SHIPPED)
def test_saved_and_loaded_again(name, tmp_path):
    cfg = load_config(name, ["experiment=é ✓", "train.max_grad_norm=1e-5"])
    save_config(cfg, tmp_path / "new" / "a.yaml")
    again = load_config(tmp_path / "new" / "a.yaml")
    assert again == cfg and to_yaml(again) == to_yaml(cfg)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.yaml"]


def test_translated_keys_head_the_saved_file():
    assert to_yaml(load_config("training")).startswith(
        "# train.warmup_ratio: 0.03 -> train.warmup_steps\n# train.report_to: null -> none\nmodel:\n"
    )
