"""What a notebook's parameters cell chooses, called directly and through papermill."""

import logging
import subprocess
import sys

import nbformat
import pytest
from omegaconf import OmegaConf

from ragfit.config.notebook import from_parameters, overrides_for
from ragfit.config.overrides import split_overrides
from ragfit.config.paths import PROJECT_ROOT
from ragfit.config.save import to_yaml
from ragfit.errors import ConfigError


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)


def cell(**given):
    """A parameters cell as our notebooks define it, with what papermill sets."""
    parts = {"model": overrides_for("model"), "train": overrides_for("train")}
    return {"config": None, "overrides": None, **parts, **given}


def test_assignments_are_recorded_and_shown():
    model, train = overrides_for("model"), overrides_for("train")
    assert repr(train) == "train: as the configuration says"
    train.output_dir = "./x"
    train.warmup_ratio = 0.1
    train.lr_scheduler_kwargs.num_cycles = 2
    model.lora.r = 8
    model.lora.target_modules = ["q_proj"]
    model.generation = {"max_new_tokens": 5}
    assert repr(train) == "train.output_dir = './x'\ntrain.warmup_ratio = 0.1\ntrain.lr_scheduler_kwargs.num_cycles = 2"
    assert repr(model.lora) == "model.lora.r = 8\nmodel.lora.target_modules = ['q_proj']"
    assert model.lora.r == 8
    assert not hasattr(model, "_repr_html_")


@pytest.mark.parametrize(
    ("given", "config", "demo"),
    [
        ({}, "demo", True),
        ({"overrides": "data_file="}, "demo", True),
        ({"config": "demo"}, "demo", False),
        ({"data_file": "x.jsonl"}, "training", False),
        ({"overrides": "data_file=x.jsonl output_key=answers"}, "training", False),
        ({"config": "paper/training-pubmed", "data_file": "x.jsonl"}, "paper/training-pubmed", False),
    ],
)
def test_which_configuration(given, config, demo):
    chosen = from_parameters(cell(**given))
    assert (chosen.config, chosen.demo) == (config, demo)


@pytest.mark.parametrize(
    "given, key, value",
    [
        ({"model": {"completion_start": "Answer:\\n"}}, "model.completion_start", "Answer:\n"),
        ({"data_file": "a, b=c/${x}'.jsonl"}, "data_file", "a, b=c/${x}'.jsonl"),
        ({"limit": 10, "overrides": "limit=20"}, "limit", 20),
        ({"overrides": ["limit=3", "model.completion_start=<|x|>"]}, "model.completion_start", "<|x|>"),
        ({"train": {"learning_rate": "1e-5"}}, "train.learning_rate", 1e-5),
        ({"model": {"lora": {"r": 8, "target_modules": ["a"]}}}, "model.lora.r", 8),
        ({"model": {"lora": None}}, "model.lora", None),
    ],
)
def test_what_comes_out(given, key, value):
    cfg = from_parameters(cell(**{"config": "training", **given})).cfg
    assert OmegaConf.select(cfg, key) == value


def test_order_of_assignments_and_overrides():
    train = overrides_for("train")
    train.learning_rate = 1
    train.warmup_ratio = 0.2
    train.learning_rate = "2e-5"
    chosen = from_parameters(cell(data_file="x.jsonl", train=train, overrides="train.max_steps=5"))
    given = "data_file='x.jsonl' train.warmup_ratio=0.2 train.learning_rate='2e-5' train.max_steps=5"
    assert " ".join(chosen.overrides) == given
    assert (chosen.cfg.train.learning_rate, chosen.cfg.train.warmup_steps, chosen.cfg.train.max_steps) == (2e-5, 0.2, 5)


@pytest.mark.parametrize(
    "text, parts",
    [
        (None, []),
        ("limit=3\nshuffle=1\n", ["limit=3", "shuffle=1"]),
        ("instruction=my file.txt limit=3", ["instruction=my file.txt", "limit=3"]),
        ("a='x b=c' d=\"e f=1\"", ["a='x b=c'", 'd="e f=1"']),
        ("m.t=[a, b] ++x.y={c: 1, d: 2} ~train.bf16", ["m.t=[a, b]", "++x.y={c: 1, d: 2}", "~train.bf16"]),
        ("data_file=don't.jsonl limit=3", ["data_file=don't.jsonl", "limit=3"]),
        ("output_key= limit=3", ["output_key=", "limit=3"]),
        (["a=1", " b=2 "], ["a=1", "b=2"]),
    ],
)
def test_overrides_in_one_text(text, parts):
    assert split_overrides(text) == parts


@pytest.mark.parametrize(
    "given, message",
    [
        ({"overrides": "limt=3"}, r"limt: unknown key .an override of .*. Did you mean limit\?"),
        ({"overrides": "limit=3, shuffle=1"}, "limit: the override 'limit=…' is not in Hydra's grammar"),
        ({"model": "gpt2"}, r"model: 'gpt2' is not allowed .*It takes dict"),
        ({"model": {"lora": {"alpha": 2}}}, r"model.lora.alpha: unknown key .* model.lora.lora_alpha"),
        ({"shuffle": print}, r"shuffle: an override cannot express"),
        ({"In": ["", "# Parameters\ndata_fle = 'x'\n"]}, r"data_fle: unknown parameter. Did you mean data_file\?"),
        ({"In": ["# Parameters\ntran.max_steps = 1\n"]}, r"tran: unknown parameter. Did you mean train\?"),
    ],
)
def test_errors(given, message):
    with pytest.raises(ConfigError, match=message):
        from_parameters(cell(**{"config": "training", **given}), extra=("examples", "answers"))


def test_only_papermills_cell_is_checked():
    cells = ["mine = 1", "# Parameters of mine\nx = 1", "# Parameters\nexamples = 3\nlimit = 2", "import os\nyours = 2"]
    assert from_parameters(cell(In=cells, limit=2), extra=("examples",)).cfg.limit == 2
    with pytest.raises(ConfigError, match="examples: unknown parameter"):
        from_parameters(cell(In=cells))


def test_what_the_environment_holds_in_a_parameter(monkeypatch):
    """As in a YAML file: the message that refuses a secret says to write it so."""
    monkeypatch.setenv("MINE", "planted")
    train = overrides_for("train")
    train.hub_token = train.run_name = "${oc.env:MINE}"
    given = {"data_file": "${oc.env:MINE}/${x}.jsonl", "model": {"generation": {"a": ["${oc.env:MINE}"]}}}
    cfg = from_parameters(cell(train=train, **given)).cfg
    found = (cfg.train.hub_token, cfg.train.run_name, cfg.data_file, cfg.model.generation.a)
    assert found == ("planted", "planted", "planted/${x}.jsonl", ["planted"])
    assert "planted" not in to_yaml(cfg)


@pytest.mark.slow
def test_papermill_dotted_parameters_and_a_file(tmp_path):
    """In a notebook with our parameters cell; it writes the chosen configuration to `out.yaml`."""
    names = "config = data_file = output_key = limit = use_wandb = overrides = None\n"
    setting = "from ragfit.config.notebook import from_parameters, overrides_for\nfrom ragfit import save_config\n"
    setting += f'{names}model = overrides_for("model")\ntrain = overrides_for("train")'
    choosing = f"save_config(from_parameters(globals()).cfg, {str(tmp_path / 'out.yaml')!r})"
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(source) for source in (setting, choosing)]
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(book, tmp_path / "book.ipynb")
    given = "data_file: a.jsonl\noutput_key: answers\nlimit: 7\nmodel:\n  lora: {r: 4}\n  completion_start: <|a|>\n"
    (tmp_path / "given.yaml").write_text(given)
    words = "-p train.output_dir ./x -p train.learning_rate 1e-5 -p train.warmup_ratio 0.1 -p use_wandb true -p limit 9"
    words += f" -p overrides shuffle=3 -f {tmp_path / 'given.yaml'}"
    books = [str(tmp_path / "book.ipynb"), str(tmp_path / "out.ipynb")]
    command = [sys.executable, "-m", "papermill", *books, *words.split()]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert result.returncode == 0, result.stderr
    cfg = OmegaConf.load(tmp_path / "out.yaml")
    assert (cfg.data_file, cfg.output_key, cfg.limit, cfg.shuffle, cfg.use_wandb) == ("a.jsonl", "answers", 9, 3, True)
    assert (cfg.model.lora.r, cfg.model.lora.lora_alpha, cfg.model.completion_start) == (4, 16, "<|a|>")
    assert (cfg.train.output_dir, cfg.train.learning_rate, cfg.train.warmup_steps) == ("./x", 1e-5, 0.1)
    assert cfg.train.report_to == "wandb"


def test_a_notebook_warns_of_a_secret(caplog):
    with caplog.at_level(logging.WARNING):
        chosen = from_parameters(cell(train={"hub_token": "hf_mine"}, experiment="of hf_" + "mine0" * 7))
        from_parameters(cell(train={"hub_token": "${oc.env:HOME}"}))
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in said] == ["experiment", "train.hub_token"]
    assert "mine" not in " ".join(said) + to_yaml(chosen.cfg) and chosen.cfg.train.hub_token == "hf_mine"
