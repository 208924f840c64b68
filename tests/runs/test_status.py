"""What a run's status says, of the file and the lock alone; tests/training/test_survival.py has real runs."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ragfit.config.paths import PROJECT_ROOT
from ragfit.errors import ConfigError, Interrupted
from ragfit.runs.status import RunStatus, read, run_state, run_status

ENDS = {
    "failed": (ValueError("one\nsecond line"), "failed, step 3 of 9: ValueError: one second line"),
    "told": (ConfigError("train.x", "no", "Set it."), "failed, step 3 of 9: train.x: no. Set it."),
    "stopped": (Interrupted("stopped by SIGTERM", 15), "interrupted, step 3 of 9: stopped by SIGTERM"),
    "at once": (KeyboardInterrupt(), "interrupted, step 3 of 9: KeyboardInterrupt"),
}


@pytest.mark.parametrize(("error", "sentence"), ENDS.values(), ids=ENDS)
def test_how_a_run_ends(tmp_path, error, sentence):
    status = RunStatus(tmp_path)
    with pytest.raises(type(error)), status.kept(last_checkpoint="x/checkpoint-1"):
        assert run_state(read(tmp_path))[0] == "running"
        status.set(step=3, total_steps=9)
        raise error
    assert run_state(read(tmp_path))[1].startswith(sentence)
    assert "last checkpoint  x/checkpoint-1" in repr(run_status(tmp_path))


def test_a_push_that_fails_leaves_a_finished_run(tmp_path):
    status = RunStatus(tmp_path)
    with pytest.raises(OSError), status.kept():
        status.set(state="finished", step=3, total_steps=3, saved=f"{tmp_path}/checkpoint", saved_step=3, dev_loss=1.5)
        raise OSError
    assert run_state(read(tmp_path)) == ("finished", f"finished, step 3 of 3: {tmp_path}/checkpoint")
    view = " ".join(repr(run_status(tmp_path)).split())
    assert "dev loss 1.5000" in view and "loss not measured at step 3" in view


def test_a_process_that_is_killed(tmp_path):
    code = (
        "import os\nfrom ragfit.runs.status import RunStatus\nwith RunStatus('.').kept():\n    os.kill(os.getpid(), 9)"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=False)
    state, sentence = run_state(read(tmp_path))
    assert done.returncode == -signal.SIGKILL and state == "killed"
    assert sentence.startswith("killed, step 0 of ?: process ") and sentence.endswith("is gone and said nothing")


def test_two_runs_do_not_share_a_folder(tmp_path):
    with RunStatus(tmp_path).kept():
        before = (tmp_path / "status.json").read_bytes()
        problem = f"^train.output_dir: another run is training into {tmp_path}. Wait for it"
        with pytest.raises(ConfigError, match=problem), RunStatus(tmp_path).kept():
            pytest.fail("two runs in one folder")
        with RunStatus(tmp_path, write=False).kept():  # another process of the run writes nothing and locks nothing
            assert (tmp_path / "status.json").read_bytes() == before


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"state": "running"}'])
def test_a_folder_without_a_status(tmp_path, text):
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    assert read(tmp_path) is None
    with pytest.raises(ConfigError, match="^folder: no run has written a status.json into"):
        run_status(tmp_path)


def test_what_anybody_may_have_written_is_shown_as_text(tmp_path):
    facts = {
        "state": "failed",
        "reason": "<script>",
        "loss": ["x"],
        "step": "<i x>",
        "pid": 1,
        "host": "",
        "updated": "",
    }
    (tmp_path / "status.json").write_text(json.dumps(facts))
    html = run_status(tmp_path)._repr_html_()
    assert "<script>" not in html and "<i x>" not in html
