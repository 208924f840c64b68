"""A run that SIGKILL ended goes on on the same device, and ends as one that nobody killed."""

import multiprocessing
import signal

import pytest
import torch
from killed_runs import adapter, run
from tiny_runs import losses, tiny_trainer

import ragfit
from gpu.on_device import AS_ON_CUDA, FLOAT32, ON_CPU
from ragfit.training.checkpoints import resume_path

KEYS = [
    "train.num_train_epochs=2",
    "train.save_steps=3",
    "train.logging_steps=3",
    "shuffle=5",
    "train.learning_rate=1e-2",
]
WAYS = {"float32": FLOAT32, "as documented": []}


def killed(overrides):
    """Train in a process of its own, which kills itself at step 8. (Not forked: CUDA does not survive that.)"""
    process = multiprocessing.get_context("spawn").Process(
        target=run, args=(overrides, [("on_step_end", 8, signal.SIGKILL)]), daemon=True
    )
    process.start()
    process.join(300)
    return process.exitcode


@pytest.mark.parametrize("name", WAYS)
def test_a_killed_run_goes_on_to_the_same_adapter(phi3, rows_file, tmp_path, name):
    def overrides(folder):
        paths = {"model.model_name_or_path": phi3, "data_file": rows_file, "train.output_dir": tmp_path / folder}
        return [
            *(f"{key}={path}" for key, path in paths.items()),
            "output_key=answers",
            *AS_ON_CUDA,
            *KEYS,
            *WAYS[name],
        ]

    assert killed(overrides("killed")) == -signal.SIGKILL
    assert ragfit.run_status(tmp_path / "killed").state == "killed"
    again = tiny_trainer(ragfit.load_config("training", [*overrides("killed"), "resume_checkpoint=true"]))
    start = {n: w.detach().cpu().clone() for n, w in again.model.named_parameters() if w.requires_grad}
    assert resume_path(again.cfg).endswith("checkpoint-6")
    ragfit.train(again)
    straight = tiny_trainer(ragfit.load_config("training", overrides("straight")))
    ragfit.train(straight)

    assert again.state.global_step == straight.state.global_step == 12
    found, expected = adapter(tmp_path / "killed"), adapter(tmp_path / "straight")
    assert found.keys() == expected.keys() and len(start) == len(expected)
    if ON_CPU:
        assert losses(again) == losses(straight)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        return
    # Kernels on a GPU add in no fixed order, and Adam makes a whole step of a gradient that is all rounding. A run
    # with other rows, another dropout or a new optimizer is farther from it than half of what was learned.
    assert losses(again) == pytest.approx(losses(straight), rel=0.02)
    learned = sum(float(w.float().norm() ** 2) for key, w in expected.items() if "lora_B" in key) ** 0.5
    apart = sum(float((found[key].float() - w.float()).norm() ** 2) for key, w in expected.items()) ** 0.5
    assert apart < 0.05 * learned
