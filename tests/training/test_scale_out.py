"""Several processes: two over gloo train as one does (test_cache.py: and prepare their rows once)."""

import json
import os
import re
import subprocess
import sys
import time

import forked
import psutil
import pytest
from tiny_runs import MARKER, question_rows

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "one": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": [
        # With --cpu, accelerate asks for MPI; as for GPUs, it starts torchrun's processes, which find none.
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
    ],
}  # fmt: skip


def command_line(launcher, model, data, output, *overrides):
    """The documented command line, under a launcher."""
    return [
        *LAUNCHERS[launcher], "-m", "ragfit.training", f"data_file={data}", "output_key=answers",
        f"model.model_name_or_path={model}", "model.load_in_8bit=false", "model.lora.lora_dropout=0", "model.lora.target_modules=[q_proj,v_proj]",
        f"model.completion_start='{MARKER}'", "train.optim=adamw_torch", "train.logging_steps=1",
        f"train.output_dir={output}", "shuffle=7", "dev_split=0.2", "+train.seed=3", *overrides,
    ]  # fmt: skip


SETTINGS = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(launcher, *args):
    words = command_line(launcher, *args)
    if launcher == "one":
        done = forked.command(*words[2:], CUDA_VISIBLE_DEVICES="")
    else:
        done = subprocess.run(words, env=SETTINGS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def logged(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {key: [entry[key] for entry in history if key in entry] for key in ("loss", "grad_norm", "eval_loss")}


def write(folder, count):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in question_rows(count)))
    return path


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """The same global batch of four rows: one process with four, two processes with two each."""
    folder = tmp_path_factory.mktemp("scale")
    data = write(folder, 40)
    keys = ["train.per_device_train_batch_size=1", "++train.eval_strategy=steps", "++train.eval_steps=4"]
    found = {}
    for launcher in LAUNCHERS:
        accumulated = f"train.gradient_accumulation_steps={4 if launcher == 'one' else 2}"
        done = launch(launcher, tiny_model("llama"), data, folder / launcher, *keys, accumulated)
        found[launcher] = (folder / launcher, done)
    return found


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_train_as_one(runs, launcher):
    from safetensors.torch import load_file

    one, two = logged(runs["one"][0]), logged(runs[launcher][0])
    assert len(one["loss"]) == 8 and len(one["eval_loss"]) == 2
    for key, values in one.items():
        assert two[key] == pytest.approx(values, rel=2e-4), key
    weights = [load_file(runs[name][0] / "checkpoint" / "adapter_model.safetensors") for name in ("one", launcher)]
    for name, weight in weights[0].items():
        assert abs(weights[1][name] - weight).max() < 1e-4, name
    output = runs[launcher][1].stdout  # what is said is said once
    assert len(re.findall(r"rows\.jsonl, 40 rows", output)) == output.count("saved ") == 1


def test_dev_loss_is_the_single_process_s_packed_and_on_two(tiny_model, tmp_path):
    """After a step that moves nothing. A mean of the means of batches of two would be off by a thousandth of it."""
    rows = question_rows(40)
    for number, row in enumerate(
        rows
    ):  # one token beside many: a mean over batches or processes is not one over tokens
        row["answers"] = ["yes"] if number % 3 else [f"The answer is {number}, " + "and no idea " * 20]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [
        "dev_split=11",
        "train.max_steps=1",
        "train.learning_rate=0",
        "train.eval_strategy=steps",
        "train.eval_steps=1",
    ]
    packed, found = ["train.packing=true", "train.max_length=400"], []
    for launcher, size, more in (("one", 1, []), ("one", 2, packed), ("torchrun", 2, []), ("torchrun", 2, packed)):
        output = tmp_path / str(len(found))
        size = f"train.per_device_eval_batch_size={size}"
        launch(launcher, tiny_model("llama"), tmp_path / "rows.jsonl", output, *keys, size, *more)
        found += logged(output)["eval_loss"]
    assert found == [pytest.approx(found[0], rel=1e-5)] * 4


@pytest.mark.parametrize("to", ["the launcher", "1"])
def test_sigterm_ends_both_with_a_checkpoint(tiny_model, tmp_path, to):
    """As SLURM sends it: torchrun passes it on. Or one process alone gets it: both stop after the same step, and say why."""
    output = tmp_path / "out"
    endless = ("train.max_steps=100000", "train.save_steps=100000")
    command = command_line("torchrun", tiny_model("llama"), write(tmp_path, 40), output, *endless)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=SETTINGS, stdout=log, stderr=log)
    for _ in range(600):
        time.sleep(0.2)
        if "\nstep " in (tmp_path / "log").read_text():
            break
    ranks = {one.environ().get("RANK"): one for one in psutil.Process(process.pid).children(recursive=True)}
    (process if to == "the launcher" else ranks[to]).terminate()
    assert process.wait(60) != 0
    status = json.loads((output / "status.json").read_text())
    said = (tmp_path / "log").read_text()
    assert status["state"] == "interrupted" and "stopped by SIGTERM" in status["reason"], said[-3000:]
    assert "TypeError" not in said
    assert status["last_checkpoint"] == f"{output}/checkpoint-{status['step']}"
    files = {path.name for path in (output / f"checkpoint-{status['step']}").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= files  # both were there
