"""`python -m ragfit.training`: the documented command line, in processes of its own where it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import forked
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny_runs import question_rows

from ragfit.config.load import load_config
from ragfit.config.paths import PROJECT_ROOT
from ragfit.training.__main__ import main

# A template whose marker can be typed in a shell, with a system role.
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@pytest.fixture
def place(tmp_path, tiny_phi3, write_rows):
    """A working directory that is not the project: a model `phi3` and the rows `asqa.jsonl`."""
    copytree(tiny_phi3, tmp_path / "phi3")
    (tmp_path / "phi3" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_rows(question_rows(12), "asqa.jsonl")
    return tmp_path


def command(*words, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    arguments = [sys.executable, "-m", "ragfit.training", *words]
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def forked_command(*words, cwd):
    return forked.command("ragfit.training", *words, cwd=cwd)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_the_documented_command(place):
    before = names(place)
    result = command(
        *["-cp", "configs/paper", "-cn", "training-asqa", "data_file=asqa.jsonl", "output_key=answers"],
        "train.output_dir=./trained_models_context/",
        # The tiny model put in, in each form that Hydra has; a path with a space and an equals sign, and a marker, as they are.
        *["model.model_name_or_path=phi3", "+limit=8", "~hfhub_tag", "shuffle=3", "dev_split=0.25"],
        *("model.lora.target_modules=[qkv_proj,o_proj]", "model.completion_start=<|assistant|>"),
        *("++train.logging_steps=1", "+train.run_name='a run, with = and spaces'"),
        cwd=place,
    )
    assert result.returncode == 0, result.stderr
    assert names(place) == sorted([*before, "trained_models_context"])  # and no folder of Hydra's
    folder = place / "trained_models_context" / "checkpoint"
    saved = load_config(folder / "ragfit.yaml")
    assert (saved.limit, saved.shuffle, saved.dev_split, saved.hfhub_tag) == (8, 3, 0.25, None)
    assert saved.model.load_in_8bit and saved.train.optim == "paged_adamw_8bit"
    assert saved.train.run_name == "a run, with = and spaces"
    lora = json.loads((folder / "adapter_config.json").read_text())
    assert (set(lora["target_modules"]), lora["r"], lora["use_rslora"]) == ({"qkv_proj", "o_proj"}, 16, True)
    assert lora["base_model_name_or_path"] == "phi3"
    weights = load_file(folder / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    lines = result.stdout.splitlines()
    assert lines[0] == "Data: asqa.jsonl, 12 rows in the file" and ["kept", "6"] in [line.split()[:2] for line in lines]
    assert [line for line in lines if line.startswith("  precision") and "8-bit weights" in line]
    steps = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in steps] == ["step 1/3", "step 2/3", "step 3/3"]
    assert lines[-2] == "saved trained_models_context/checkpoint" and lines[-1].startswith("dev loss ")
    # The libraries' chatter, one line a layer and step, stays out.
    assert "MatMul8bitLt" not in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_several_runs_of_a_file_of_one_s_own(place, monkeypatch):
    """A run that is refused has its folder beside the others', and what the environment holds is in none."""
    monkeypatch.setenv("CANARY", "cAnary7x")
    lines = "model: {model_name_or_path: phi3, lora: {r: 4}}\ntrain: {output_dir: out, max_steps: 1, run_name: '${oc.env:CANARY}-${model.lora.r}'}\n"
    lines += "data_file: asqa.jsonl\ninput_key: prompt\noutput_key: answers\nlimit: 2\nexperiment: '3'\n"
    (place / "own.yaml").write_text(lines)
    before = names(place)
    words = "-cp=. -cn=own --multirun model.lora.target_modules=[o_proj] model.lora.r=2,x experiment=4"
    result = forked_command(*words.split(), cwd=place)
    assert "error: run 1: model.lora.r: 'x' is not allowed" in result.stderr
    assert names(place) == sorted([*before, "out"]) and names(place / "out") == ["0", "1", "multirun.yaml"]
    saved = (place / "out" / "0" / "checkpoint" / "ragfit.yaml").read_text()
    assert "run_name: ${oc.env:CANARY}-${model.lora.r}" in saved and "experiment: '4'" in saved
    assert not [path for path in place.rglob("*") if path.is_file() and b"cAnary7x" in path.read_bytes()]


ERRORS = [
    ("data_file=x.jsonl trane.output_dir=x", "trane: unknown key (an override of "),
    ("-cn paper/training-aqsa", "config: there is no configuration "),
    ("-cp no/such/folder", "--config-path: there is no 'no/such/folder' at "),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[words[:60] for words, _ in ERRORS])
def test_errors_end_with_a_sentence(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    # Python prints the text of a SystemExit to stderr and exits with 1.
    assert isinstance(caught.value.code, str) and caught.value.code.startswith(f"error: {message}")


FOLDERS = [
    ("", "project/configs/training.yaml"),
    ("-cn demo.yaml", "project/configs/demo.yaml"),
    ("-cp configs/paper -cn training-asqa", "project/configs/paper/training-asqa.yaml"),
    ("--config-pa configs/paper --config-n training-asqa", "project/configs/paper/training-asqa.yaml"),
    ("-cp=mine -cn=own --config-dir=configs", "here/mine/own.yaml"),
    ("-cn paper/training-asqa", "project/configs/paper/training-asqa.yaml"),
    ("-cn local", "here/configs/local.yaml"),
]


@pytest.mark.parametrize(("words", "expected"), FOLDERS, ids=[words or "nothing" for words, _ in FOLDERS])
def test_where_a_configuration_is_looked_for(words, expected, tmp_path, monkeypatch, capsys):
    """Hydra itself would look beside training.py. Seen in what `--cfg job` shows: each own file has its own limit."""
    for limit, name in enumerate(("mine/own.yaml", "configs/local.yaml"), 70):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"model: {{model_name_or_path: x}}\ntrain: {{}}\nlimit: {limit}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["training.py"])
    main([*words.split(), "--cfg", "job"])
    where, _, rest = expected.partition("/")
    source = (PROJECT_ROOT if where == "project" else tmp_path) / rest
    assert OmegaConf.create(capsys.readouterr().out) == OmegaConf.load(source)


WRITTEN = ["--multirun train.seed=1,2", "hydra.output_subdir=.hydra", "--cfg job"]
WRITTEN += ["-cn=demo --multirun train.hub_token=mine,other", "-cn=demo --multirun model.generation.api_key=mine"]


@pytest.mark.parametrize("words", WRITTEN)
def test_hydra_is_given_no_secret_to_write_or_show(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("model: {model_name_or_path: x}\ntrain: {hub_token: mine}\n")
    with pytest.raises(SystemExit, match="Hydra writes or shows all of .*, and this is a secret. Remove it") as caught:
        main(words.split() if "demo" in words else ["-cp=.", "-cn=own", *words.split()])
    assert "mine" not in caught.value.code + "".join(capfd.readouterr()) and names(tmp_path) == ["own.yaml"]


@pytest.mark.parametrize("words", ["train.hub_tokn=mine", "train.hub_tokn='mine", "model.generation={api_key: mine"])
def test_the_value_of_an_override_is_in_no_error(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([words])
    assert str(caught.value.code).startswith("error: ") and "mine" not in caught.value.code


@pytest.mark.slow
def test_a_secret_of_the_environment_is_used_and_written_nowhere(place, monkeypatch):
    """The seed comes from there too, and is a number to the trainer."""
    options = "hydra.run.dir=hydra hydra.output_subdir=.hydra train.seed='${oc.env:SEED}'"
    monkeypatch.setenv("CANARY", "cAnary7x")
    monkeypatch.setenv("SEED", "7")
    lines = "model: {model_name_or_path: phi3, max_sequence_len: 900}\ntrain: {output_dir: out, max_steps: 1}\n"
    (place / "own.yaml").write_text(lines)
    words = "data_file=asqa.jsonl input_key=prompt output_key=answers limit=2 train.hub_token='${oc.env:CANARY}' train.run_name='${oc.env:CANARY}'"
    result = forked_command("-cp=.", "-cn=own", *words.split(), *options.split(), cwd=place)
    assert result.returncode == 0, result.stderr
    files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert {Path(name).name for name in files} & {"overrides.yaml"} and "training_args.bin" in str(list(files))
    assert not [name for name, content in files.items() if b"cAnary7x" in content]
    assert "cAnary7x" not in result.stdout + result.stderr
