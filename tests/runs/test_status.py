"""What a run's status says before its training begins; the rest is in tests/training/test_survival.py, with real runs."""

import os
import subprocess
import sys

import pytest

from ragfit.config.paths import PROJECT_ROOT
from ragfit.errors import ConfigError
from ragfit.runs.status import RunStatus, read, run_state, run_status


def finish(folder):
    status = RunStatus(folder)
    status.begin()
    (folder / "checkpoint").mkdir()
    status.set(state="finished", doing=None, step=3, saved=f"{folder}/checkpoint")
    return read(folder)


def test_while_a_model_is_loaded(tmp_path):
    with RunStatus(tmp_path).loading():
        sentence = f"running loading the model, before the first step, process {os.getpid()}"
        assert run_state(read(tmp_path)) == ("running", sentence)
    assert read(tmp_path) is None
    before = finish(tmp_path)
    assert "an earlier run" not in repr(run_status(tmp_path))
    with RunStatus(tmp_path).loading():
        assert f"an earlier run     its adapter was saved in {before['saved']}" in repr(run_status(tmp_path))
    assert read(tmp_path) == before


def test_a_model_that_cannot_be_loaded(tmp_path):
    before = finish(tmp_path)
    with pytest.raises(ValueError), RunStatus(tmp_path, ["s3cret"]).loading():
        raise ValueError("s3cret\nsecond line")
    sentence = "failed while loading the model, before the first step: ValueError: •••"
    assert run_state(read(tmp_path)) == ("failed", sentence)
    assert f"its adapter was saved in {before['saved']}" in repr(run_status(tmp_path))


def test_a_process_that_is_killed_while_it_loads(tmp_path):
    code = "import os, signal\nfrom ragfit.runs.status import RunStatus\nwith RunStatus('.').loading():\n    os.kill(os.getpid(), signal.SIGKILL)"
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=False)
    state, sentence = run_state(read(tmp_path))
    assert state == "killed" and sentence.startswith("killed while loading the model, before the first step: process ")


def test_a_run_that_is_refused_is_told_once(tmp_path):
    error = ConfigError("train.optim", "'x' is not an optimizer", "Set train.optim=adamw_torch.")
    assert RunStatus(tmp_path).refused(error) and not RunStatus(tmp_path).refused(error)
    assert run_state(read(tmp_path)) == ("failed", f"failed, before the first step: {error}")
