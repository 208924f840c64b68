"""From YAML files and overrides to one configuration. Real Hydra, real files."""

import dataclasses
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ragfit.config import keys, unread
from ragfit.config.load import differences, finish, load_config, read_config, resolved
from ragfit.config.overrides import normalize_overrides, override
from ragfit.config.paths import PROJECT_ROOT, find_existing, find_file, find_model, find_path
from ragfit.config.save import save_config, to_yaml
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
  lora: {bias: none, fan_in_fan_out: false, layers_pattern: , layers_to_transform: , lora_alpha: 16, lora_dropout: 0.1,
    peft_type: LORA, r: 16, target_modules: [qkv_proj], task_type: CAUSAL_LM, use_rslora: true}
  completion_start: <|assistant|>
  instruction_in_prompt:
  max_sequence_len: 4000
train: {output_dir: ./trained_models/, bf16: false, fp16: false, gradient_accumulation_steps: 2, group_by_length: ,
  learning_rate: 1e-4, logging_steps: 10, lr_scheduler_type: cosine, max_steps: -1, num_train_epochs: 1,
  per_device_train_batch_size: 1, optim: paged_adamw_8bit, remove_unused_columns: true, save_steps: 20000,
  save_total_limit: 1, warmup_ratio: 0.03, weight_decay: 0.001, report_to: }
instruction: ragfoundry/processing/prompts/prompt_instructions/qa.txt
input_key: prompt
"""
for key in ("template", "data_file", "output_key", "resume_checkpoint", "limit", "shuffle", "hfhub_tag", "use_wandb"):
    ORIGINAL += f"{key}:\n"
ORIGINAL += "experiment:\nwandb_entity:\n"
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
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def test_fields_read_off_the_sources_are_the_classes_fields():
    from peft import LoraConfig, PeftConfig
    from trl import SFTConfig

    known, inherited = set(keys.known_keys()), {field.name for field in dataclasses.fields(PeftConfig)}
    for part, library in (("train", SFTConfig), ("model.lora", LoraConfig)):
        fields = {field.name for field in dataclasses.fields(library) if field.init}
        fields = {f"{part}.{name}" for name in (fields - inherited if library is LoraConfig else fields)}
        mine = {key for key in known if key.rpartition(".")[0] == part}
        assert mine - set(keys.OWN_KEYS) == fields - set(keys.OWN_KEYS)
    tables = (unread.UNREAD, unread.READ_WITH)
    assert set(tables[0]) | set(tables[1]) <= known and not set(tables[0]) & set(tables[1])
    others = {other.partition("=")[0] for table in tables for others in table.values() for other in others}
    assert others | set(keys.RENAMED.values()) <= known
    kinds = {key: keys.is_text(f"train.{key}") for key in ("save_strategy", "run_name", "seed", "accelerator_config")}
    assert list(kinds.values()) == [True, True, False, False]  # the first is an enum of transformers


def test_nothing_heavy_is_imported():
    code = (
        "import sys, ragfit.config.load as c, ragfit.config.notebook; c.load_config('demo');"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert result.stdout == "[]\n", result.stderr


NEAREST = {"learning_rte": "train.learning_rate", "lora.r": "model.lora.r", "data_fle": "data_file", "modle": "model",
           "lr": "train.learning_rate", "train.completion_start": "model.completion_start"}  # fmt: skip


def test_nearest():
    assert {key: keys.unknown_key(key).fix for key in NEAREST} == {
        key: f"Did you mean {NEAREST[key]}?" for key in NEAREST
    }
    assert keys.unknown_key("qqqqqqqq").fix == "See configs/README.md for the keys there are."


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load(name, tmp_path):
    from peft import LoraConfig
    from trl import SFTConfig

    cfg = load_config(name, ["experiment=é ✓", "train.max_grad_norm=1e-5"])
    assert set(cfg) == {"model", "train", *keys.DATA_KEYS}
    LoraConfig(**resolved(cfg, "model")["lora"])
    SFTConfig(**resolved(cfg, "train") | {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False})
    assert find_path(cfg.instruction, "instruction").read_text(encoding="utf-8").strip()
    assert not cfg.model.get("trust_remote_code")
    save_config(cfg, tmp_path / "new" / "a.yaml")
    again = load_config(tmp_path / "new" / "a.yaml")
    assert again == cfg and to_yaml(again) == to_yaml(cfg)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.yaml"]


def test_defaults_are_the_documented_ones():
    assert read_config("training") == read_config("paper/training-asqa")
    original = OmegaConf.create(ORIGINAL.replace("ragfoundry", "ragfit"))
    original.model.trust_remote_code, original.dev_split = False, None
    assert read_config("training") == original
    original.model.max_sequence_len, original.train.output_dir = 2000, "./trained_model/"
    original.instruction = "ragfit/processing/prompts/prompt_instructions/qa-yes-no.txt"
    original.data_file, original.output_key = "pubmed-rag-train.jsonl", "answers"
    assert read_config("paper/training-pubmed") == original


def test_the_original_framework_s_file_loads(write):
    cfg = load_config(write(ORIGINAL))
    assert cfg.model._target_ == "ragfit.models.hf.HFTrain"
    assert cfg.instruction == "ragfit/processing/prompts/prompt_instructions/qa.txt"
    assert cfg.train.learning_rate == 1e-4 and cfg.train.warmup_steps == 0.03 and cfg.train.report_to == "none"
    assert not {"warmup_ratio", "group_by_length"} & set(cfg.train) and "torch_dtype" not in cfg.model


def test_where_files_are_found(write, tmp_path, monkeypatch):
    name = write(SMALL)
    assert load_config(name) == load_config(tmp_path / name) == load_config(f"./{name}")
    assert load_config("training.yaml") == load_config("training")  # of the project
    write(SMALL, "configs/training.yaml")
    assert load_config("training").model.model_name_or_path == "gpt2"  # of the working directory
    assert find_path(name, "data_file").read_text() == SMALL
    assert find_path("ragfit/errors.py", "x") == PROJECT_ROOT / "ragfit/errors.py"
    assert find_existing("nowhere.txt") is None and find_existing(None) is None and find_existing("~") is not None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(name, ["train.output_dir=~/runs"]).train.output_dir == f"{tmp_path}/runs"
    (tmp_path / "experiment").mkdir()  # a folder beside the file is no group of Hydra's
    (tmp_path / "experiment/a.yaml").write_text("x: 1")
    assert load_config(name, ["experiment=run1", "template=a"]).experiment == "run1"


def test_defaults_lists_and_interpolations_work(write):
    write(SMALL, "base.yaml")
    name = write("defaults: [base, _self_]\ntrain: {run_name: 'of ${model.model_name_or_path}'}\nlimit: 3\n")
    cfg = load_config(name, ["train.learning_rate=2e-4"])
    assert (cfg.train.run_name, cfg.limit, cfg.train.learning_rate) == ("of gpt2", 3, 2e-4)


PLACES = [
    (find_file, "no.txt", "^x: there is no 'no.txt' at .* or .*. Set x to a path that exists.$"),
    (find_file, ".", "^x: . is a folder. Name the file in it.$"),
    (find_file, "~nosuchuser/rows", "^x: there is no '~nosuchuser/rows' at "),
    (find_file, "Answer the question briefly. " * 99, "^x: there is no 'Answer the "),
    (find_model, "./none", "^x: there is no './none' at "),
    (lambda value, key: load_config(value), "trainig", "no configuration 'trainig'.* one of: demo, .*paper/training-asqa"),
]  # fmt: skip


@pytest.mark.parametrize(("find", "value", "message"), PLACES, ids=[message[:40] for *_, message in PLACES])
def test_paths_that_are_not_there(find, value, message, write):
    write(SMALL)
    with pytest.raises(ConfigError, match=message):
        find(value, "x")


BAD_FILES = [
    ("", "^my.yaml: it holds no keys and values. Correct the file or the override.$"),
    ("model:\n\tx: 1\n", r"^my.yaml, line 2: .*\\t.*Correct the file"),
    (b"# caf\xe9\nmodel: {}\n", "^my.yaml: .*utf-8.*Correct the file"),
    ("limit: 1\nmodel: {}\nlimit: 2\n", "^my.yaml, line 3: found duplicate key limit"),
    ("model: !!python/object/apply:os.system ['touch PWNED']\n", "^my.yaml, line 1: could not determine"),
    (SMALL.replace("lora:", "lra:"), r"^model.lra: unknown key \(my.yaml\). Did you mean model.lora\?$"),
    (SMALL.replace("1e-4", "fast"), r"^train.learning_rate: 'fast' is not allowed \(my.yaml\). It takes float.$"),
    (SMALL.replace("1e-4", "1, completion_only_loss: false"), "^train.completion_only_loss: False is not allowed"),
    (SMALL.replace("1e-4", "'???'"), "^train.learning_rate: Missing mandatory.*Give the value"),
    (SMALL.replace("1e-4", "'${oc.env:RAGFIT_NOPE}'"), "^train.learning_rate: .*RAGFIT_NOPE"),
    ("model:\ntrain: 3\n", "^train: 3 is not allowed .my.yaml.. It takes dict . None.$"),
    (SMALL.replace("1e-4", "1, do_train: true"), "^train.do_train: it is set, but nothing reads it .* .my.yaml.. Remove it.$"),
    (SMALL.replace("1e-4", "1, load_best_model_at_end: true"), "^train.load_best_model_at_end: .*or set train.eval_strategy.$"),
    (SMALL.replace("1e-4", "1, eval_steps: 5"), "^train.eval_steps: .* Remove it or set train.eval_strategy=steps.$"),
    (SMALL.replace("1e-4", "1, max_length: 512"), "^train.max_length: .* Remove it or set train.packing.$"),
    (SMALL.replace("1e-4", "1, save_strategy: epoch, save_steps: 5"), "^train.save_steps: .*or set train.save_strategy=steps.$"),
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
    assert "\n" not in said and len(said) < 900 and said[-1] in ".?", said


def test_a_wheel_holds_all_that_the_source_tree_does(tmp_path, monkeypatch):
    """Of the files that git would commit. In an empty folder: a configuration, its instruction, and the demo's rows."""
    installed = {found.name.lower(): found.version for found in metadata.distributions()}
    if "pip" not in installed or int(installed.get("setuptools", "0").partition(".")[0]) < 77:
        pytest.skip("offline, pip builds a wheel with the setuptools that is installed, and needs 77 or later")
    source, target, place = (tmp_path / name for name in ("source", "site-packages", "place"))
    for name in ("ragfit", "configs"):
        shutil.copytree(PROJECT_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT_ROOT / name, source)
    place.mkdir()
    words = "pip install --no-deps --no-index --no-build-isolation -q --target".split()  # noqa: SIM905
    subprocess.run([sys.executable, "-m", *words, target, source], check=True)

    def files(folder):
        found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(folder)) for path in found}

    assert files(target / "ragfit") == files(PROJECT_ROOT / "ragfit") | {f"configs/{name}" for name in files(CONFIGS)}
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {"ragfit"}
    code = (
        "import ragfit; from ragfit.config.paths import find_file; from ragfit.data.rows import open_rows;"
        "cfg = ragfit.load_config('demo'); ragfit.load_config('paper/training-asqa');"
        "print(find_file(cfg.instruction, 'x'), *[len(open_rows(cfg[key])) for key in ('data_file', 'dev_split')])"
    )
    monkeypatch.setenv("PYTHONPATH", str(target))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place)
    assert result.stdout == f"{target / load_config('demo').instruction} 138 30\n", result.stderr


VALUES = [
    ("train: {group_by_length: true}", "train.train_sampling_strategy", "group_by_length"),
    ("train: {warmup_ratio: '0.1'}", "train.warmup_steps", 0.1),
    ("train: {warmup_ratio: 0.1, warmup_steps: 7}", "train.warmup_steps", 7.0),
    ("train: {evaluation_strategy: no}", "train.eval_strategy", "no"),
    ("train: {max_steps: 1e3}", "train.max_steps", 1000),
    ("train: {lr_scheduler_kwargs: {any: {goes: here}}}", "train.lr_scheduler_kwargs", {"any": {"goes": "here"}}),
    ("train: {max_seq_length: 512}", "model.max_sequence_len", 512),
    ("train: {max_length: 512, packing: true}", "train.max_length", 512),
    ("train:", "train.output_dir", "./trained_models"),
    ("use_wandb: 'true'", "train.report_to", "wandb"),
    ("model: {torch_dtype: bfloat16}", "model.dtype", "bfloat16"),
    ("model: {lora: {init_lora_weights: 'true'}}", "model.lora.init_lora_weights", True),
    ("model: {lora: {target_modules: '[a, b]'}}", "model.lora.target_modules", ["a", "b"]),
    ("model: {lora: {rank_pattern: {^x.y: 3}}}", "model.lora.rank_pattern", {"^x.y": 3}),
    ("model: {chat_template_kwargs: {a: 'False', b: 'TRUE', d: none, e: '1.10', f: [1]}}",
     "model.chat_template_kwargs", {"a": False, "b": True, "d": "none", "e": "1.10", "f": [1]}),
    ("train.seed: 5", "train.seed", 5),
    ("model: {completion_start: 'Answer:\\n'}", "model.completion_start", "Answer:\n"),  # as YAML's 'quotes' leave it
    ("dev_split: '0.1'", "dev_split", 0.1),
    ("resume_checkpoint: 'true'", "resume_checkpoint", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "value"), VALUES, ids=[text for text, *_ in VALUES])
def test_values(write, text, key, value):
    model = "model:\n  model_name_or_path: a\n"
    text = text.replace("model: {", "model: {model_name_or_path: a, ") if text.startswith("model:") else model + text
    cfg = load_config(write(text))
    found = plain(OmegaConf.select(cfg, key))
    assert found == value and type(found) is type(value)
    assert finish(cfg) == cfg
    save_config(cfg, "again.yaml")
    assert load_config("again.yaml") == cfg


def test_another_class_takes_any_key(write):
    text = "model: {_target_: my.Model, lora: 5, mine: {a: 1}, torch_dtype: x, max_sequence_len: '7'}\n"
    cfg = load_config(write(text), ["model.yours=2"])
    assert resolved(cfg, "model") == plain(read_config("my.yaml").model) | {"max_sequence_len": 7, "yours": 2}
    cfg = load_config(write("model: {model_name_or_path: a}\n"), ["model._target_=my.Model", "model.mine=1"])
    assert cfg.model.mine == 1


OVERRIDES = [
    (["train.lr_scheduler_kwargs.num_cycles=2"], "train.lr_scheduler_kwargs.num_cycles", 2),
    (["~train.weight_decay"], "train.weight_decay", None),
    (["model.lora.rank_pattern={a.b: 3}"], "model.lora.rank_pattern", {"a.b": 3}),
    (["model.completion_start=a: {b}\n"], "model.completion_start", "a: {b}\n"),
    (["model.completion_start='Answer:\\n'"], "model.completion_start", "Answer:\n"),  # as a shell leaves it
    (["model.completion_start='it''s'"], "model.completion_start", "'it''s'"),
    (["model.completion_start="], "model.completion_start", None),
    (["model.chat_template_kwargs.a='false'"], "model.chat_template_kwargs.a", False),  # as papermill's -p gives it
    (["model.chat_template_kwargs='{a: \"false\"}'"], "model.chat_template_kwargs.a", False),
    (["experiment=1e3"], "experiment", "1e3"),
    (["experiment=${model.model_name_or_path}"], "experiment", "microsoft/Phi-3-mini-128k-instruct"),
    ("limit=5", "limit", 5),
    (["+train.learning_rate=2"], "train.learning_rate", 2.0),
]


@pytest.mark.parametrize(("overrides", "key", "value"), OVERRIDES, ids=[str(words) for words, *_ in OVERRIDES])
def test_overrides(overrides, key, value):
    assert plain(OmegaConf.select(load_config("training", overrides), key)) == value


def test_what_the_user_gives_counts_more_than_what_a_file_says(capsys):
    """Under an earlier name, and over what belongs to other values of the file."""
    assert load_config("demo", ["train.warmup_ratio=0.5"]).train.warmup_steps == 0.5
    saves = load_config("demo", ["train.save_steps=2"])  # beside `save_strategy: "no"`
    assert (saves.train.save_strategy, saves.train.save_steps) == ("steps", 2)
    assert load_config("demo", ["train.eval_steps=2"]).train.eval_strategy == "steps"
    quiet = load_config("training", ["train.save_strategy=no"])  # whose save_steps nothing reads then
    assert quiet.train.save_strategy == "no" and not {"save_steps", "save_total_limit"} & set(quiet.train)
    assert finish(quiet) == quiet
    check(lambda: load_config("demo", ["train.save_steps=2", "train.save_strategy=no"]), "^train.save_steps: it is set")
    assert load_config("demo", ["data_file=mine.jsonl", "dev_split=0.1"]).dev_split == 0.1
    assert capsys.readouterr().err == "" and load_config("demo", ["data_file=mine.jsonl"]).dev_split is None
    assert "configs/demo/dev.jsonl is not taken over beside a data_file of yours" in capsys.readouterr().err


BAD_OVERRIDES = [
    ("learning_rte=1", r"^learning_rte: unknown key \(an override of .*\). Did you mean train.learning_rate\?$"),
    ("train.learning_rate", "^train.learning_rate: the override 'train.learning_rate=…' is not in Hydra's grammar. Write"),
    ("model.lora.r='4", "is not in Hydra's grammar. Write key=value, close brackets and quotes, and quote text"),
    ("db@x=2", "config group"),
    ("limit=${nope}", r"^limit: Interpolation key 'nope' not found \(an override of .*\). Give the value, or correct it.$"),
    ("limit=-1", r"^limit: -1 is not allowed \(an override of .*training.yaml\). It takes PositiveInt . None.$"),
    ("model.over_length=cut", "^model.over_length: 'cut' .*'drop', 'cut_documents', 'cut_start', 'cut_end'"),
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


def test_normalized_for_the_command_line():
    given = "limit=3 train.seed=1,2 ~limit hydra.run.dir=x hydra/launcher=basic experiment=3"
    normal = "++limit=3 ++train.seed=1,2 ++limit=null hydra.run.dir=x hydra/launcher=basic ++experiment='3'"
    assert normalize_overrides(given.split()) == normal.split()


def test_differences():
    cfg = load_config("training", ["limit=5", "model.lora.r=8", "train.seed=1"])
    assert sorted(differences(cfg, "training")) == [
        ("limit", None, 5), ("model.lora.r", 16, 8), ("train.report_to", None, "none"), ("train.seed", None, 1),
        ("train.warmup_ratio", 0.03, None), ("train.warmup_steps", None, 0.03),
    ]  # fmt: skip
    assert differences(load_config("demo"), "demo") == []
