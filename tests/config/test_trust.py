"""A checkpoint of a stranger's: what its own files say runs no code, reads nothing of the user's, and is named."""

import contextlib
import json
import shutil

import pytest
import yaml
from tiny_runs import one_thread, question_rows, tiny_config, with_code  # noqa: F401

import ragfit
from ragfit.__main__ import main
from ragfit.config.load import load_config
from ragfit.config.save import save_config
from ragfit.config.trust import believed
from ragfit.models.tokenizer import load_tokenizer
from ragfit.runs.merge import merge_checkpoint


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(6))


@pytest.fixture
def checkpoint(finished_run, tmp_path):
    """A copy of a finished run's checkpoint."""
    return shutil.copytree(finished_run, tmp_path / "run") / "checkpoint"


def change(checkpoint, keys):
    """Write keys, dotted ones below a part, into a checkpoint's ragfit.yaml."""
    path = checkpoint / "ragfit.yaml"
    text = path.read_text() if path.exists() else ""
    tree = yaml.safe_load(text) or {}
    for key, value in keys.items():
        *above, last = key.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    checkpoint.mkdir(exist_ok=True)
    digests = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    path.write_text(yaml.safe_dump(tree) + digests)


def warned(caplog):
    """What was set aside, by the warnings."""
    return [record.getMessage() for record in caplog.records if record.name == "ragfit.config.trust"]


# A key, a value, and whether it is named as set aside. None of these counts.
SET_ASIDE = [
    ("model.trust_remote_code", True, True),
    ("model.trust_remote_code", False, False),  # nothing is lost by it
    ("model._target_", "evil.Model", True),
    ("model._target_", "ragfoundry.models.hf.HFTrain", False),
    ("model.attn_implementation", "evil/kernel", True),
    ("model.device_map", {"": {"_target_": "evil.Model"}}, True),
    ("model.generation._target_", "pandas.read_pickle", True),
    ("model.generation.eos_token_id", {"_target_": "evil.Model"}, True),
    ("model.quantization_config", {"_target_": "evil.Model", "load_in_4bit": True}, True),
    ("model.lora.megatron_core", "evil", False),
    ("model.lora.target_modules", [{"_target_": "evil.Model"}], False),
    ("model.model_name_or_path", "${oc.env:A_SECRET}", True),
    ("data_file", "${oc.env:A_SECRET}/${model.revision}", True),
    ("data_file", "diary.jsonl", True),  # a file of the user's, in the working directory
    ("dev_split", "configs/demo/dev.jsonl", True),
    ("train.deepspeed", "evil.json", False),  # nothing is trained
    ("train.output_dir", "/evil", False),
    ("hfhub_tag", "evil/evil", False),
    ("instruction", "/etc/hostname", True),
    ("defaults", ["evil"], True),
    ("hydra.searchpath", ["pkg://evil"], True),
]


@pytest.mark.parametrize(("key", "value", "named"), SET_ASIDE, ids=[f"{key}={value}" for key, value, _ in SET_ASIDE])
def test_what_a_checkpoint_may_not_say(key, value, named, tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET", "s3cret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diary.jsonl").write_text("{}")
    change(tmp_path / "checkpoint", {"model.max_sequence_len": 7, key: value})
    tree, set_aside = believed(tmp_path / "checkpoint")
    assert tree.pop("model") == {"max_sequence_len": 7} and not any(tree.values())
    assert bool(set_aside) is named and all(key.startswith(name) for name in set_aside)


def test_what_a_checkpoint_may_say(tmp_path):
    model = {"model_name_or_path": "org/name", "max_sequence_len": 7, "lora": {"target_modules": ["o_proj"]}}
    model["generation"] = {"temperature": 1e-5, "do_sample": False}
    change(tmp_path / "checkpoint", {"model": model, "data_file": "rows.jsonl", "dev_split": 0.1, "train.bf16": False})
    for name in ("template.txt", "rows.jsonl"):  # its own
        (tmp_path / "checkpoint" / name).write_text("{query}{output}")
    names = {"data_file": "rows.jsonl", "template": "template.txt"}
    own = {key: str(tmp_path / "checkpoint" / name) for key, name in names.items()}
    tree, set_aside = believed(tmp_path / "checkpoint")
    assert (tree, set_aside) == ({"model": model, "dev_split": 0.1, "train": {"bf16": False}, **own}, [])


def test_the_rows_of_a_run_count_while_they_are_the_same(tmp_path):
    """A checkpoint keeps their digests, which a stranger cannot have of a file that they have not read."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}')
    keys = {"model": {"model_name_or_path": "a"}, "data_file": str(tmp_path / "rows.jsonl"), "dev_split": 0.5}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(keys))
    save_config(load_config(tmp_path / "own.yaml"), tmp_path / "checkpoint" / "ragfit.yaml")
    assert believed(tmp_path / "checkpoint")[0]["data_file"] == str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "b"}')
    tree, set_aside = believed(tmp_path / "checkpoint")
    assert "data_file" not in tree and set_aside == ["data_file"]


def test_code_of_the_base_runs_where_the_user_says_so(checkpoint, tiny_llama, tmp_path, caplog):
    base, ran = shutil.copytree(tiny_llama, tmp_path / "base"), tmp_path / "ran"
    with_code(base, ran)
    change(checkpoint, {"model.trust_remote_code": True, "model.model_name_or_path": str(base)})
    with pytest.raises(ValueError, match="trust.remote.code"):
        merge_checkpoint(checkpoint, tmp_path / "merged")
    with pytest.raises(ValueError, match="trust_remote_code"):
        ragfit.load_checkpoint(checkpoint)
    assert not ran.exists()
    for line, advice in zip(warned(caplog), ("--trust-remote-code", "override"), strict=True):
        assert "ragfit.yaml says more than counts here" in line and advice in line
    caplog.clear()
    merge_checkpoint(checkpoint, tmp_path / "merged", trust_remote_code=True)
    assert ran.exists()
    ran.unlink()
    (base / "own.py").write_text((base / "own.py").read_text() + "\n")  # not the module that is loaded already
    trainer = ragfit.load_checkpoint(checkpoint, overrides=["model.trust_remote_code=true"])
    assert ran.exists() and type(trainer.model.get_base_model()).__name__ == "OwnModel"
    assert warned(caplog) == []


def test_code_of_the_tokenizer_does_not_run(tiny_llama, tmp_path):
    folder, ran = shutil.copytree(tiny_llama, tmp_path / "model"), tmp_path / "ran"
    with_code(folder, ran)
    shutil.copy(tiny_llama / "config.json", folder / "config.json")
    path = folder / "tokenizer_config.json"
    keys = json.loads(path.read_text())
    auto_map = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    for tokenizer_class in ("PreTrainedTokenizerFast", "AutoModelForCausalLM", "utils", None, "OwnTokenizer"):
        path.write_text(json.dumps(keys | {"tokenizer_class": tokenizer_class, "auto_map": auto_map}))
        with contextlib.suppress(Exception):  # of transformers or of the kit
            load_tokenizer(folder)
        assert not ran.exists()
    with pytest.raises(ValueError, match="custom code which must be executed"):
        load_tokenizer(folder)
    assert type(load_tokenizer(folder, trust_remote_code=True)).__name__ == "OwnTokenizer" and ran.exists()


def test_a_module_in_the_working_directory_is_not_imported(checkpoint, tmp_path, monkeypatch, caplog, capsys):
    """`python -m` looks for modules there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("A_SECRET", "s3cret")
    (tmp_path / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from ragfit.models.hf import HFTrain\nclass Model(HFTrain):\n    pass\ndef call(**keys): ...\n"
    )
    (tmp_path / "secret.txt").write_text("s3cret")
    change(checkpoint, {
        "model._target_": "evil.Model", "model.generation": {"_target_": "evil.call"}, "hydra": {"searchpath": ["pkg://evil"]},
        "defaults": ["evil"], "instruction": str(tmp_path / "secret.txt"), "model.completion_start": "${oc.env:A_SECRET}",
    })  # fmt: skip
    (checkpoint / "instruction.txt").unlink()
    main(["evaluate", str(checkpoint), "--rows", "1"])
    main(["merge", str(checkpoint), "merged"])
    assert not (tmp_path / "ran").exists() and "s3cret" not in caplog.text + capsys.readouterr().out
    assert len(warned(caplog)) == 2  # of the evaluation and of the merging
    main(["evaluate", str(checkpoint), "--rows", "1", "model._target_=evil.Model"])
    assert (tmp_path / "ran").exists()


def test_a_link_to_a_file_of_the_user_s_is_not_followed(checkpoint, tmp_path):
    (tmp_path / "diary.txt").write_text("not for others")
    (checkpoint / "instruction.txt").unlink(missing_ok=True)
    (checkpoint / "instruction.txt").symlink_to(tmp_path / "diary.txt")
    assert "instruction" not in believed(checkpoint)[0]
    assert not (merge_checkpoint(checkpoint, tmp_path / "merged") / "instruction.txt").exists()
    # As the hub's cache lays a checkpoint out: snapshots/REVISION beside blobs.
    cached = tmp_path / "hub" / "snapshots" / "1"
    shutil.copytree(checkpoint, cached, ignore=shutil.ignore_patterns("instruction.txt"))
    (tmp_path / "hub" / "blobs").mkdir()
    (tmp_path / "hub" / "blobs" / "abc").write_text("Be brief.")
    (cached / "instruction.txt").symlink_to("../../blobs/abc")
    assert believed(cached)[0]["instruction"] == str(cached / "instruction.txt")
