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

KEYS = ["train.num_train_epochs=2", "train.save_steps=3", "train.logging_steps=3", "train.learning_rate=1e-2"]


@pytest.mark.parametrize("keys", [FLOAT32, []], ids=["float32", "as documented"])
def test_a_killed_run_goes_on_to_the_same_adapter(phi3, rows_file, tmp_path, keys):
    given = [f"model.model_name_or_path={phi3}", f"data_file={rows_file}", "output_key=answers", "shuffle=5"]
    killed, straight = (
        [*given, f"train.output_dir={tmp_path / name}", *AS_ON_CUDA, *KEYS, *keys] for name in ("killed", "straight")
    )
    # In a process of its own, which kills itself at step 8. Not forked: CUDA does not survive that.
    process = multiprocessing.get_context("spawn").Process(
        target=run, args=(killed, [("on_step_end", 8, signal.SIGKILL)]), daemon=True
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ragfit.run_status(tmp_path / "killed").state == "killed"
    steps = []
    for overrides in ([*killed, "resume_checkpoint=true"], straight):
        trainer = tiny_trainer(ragfit.load_config("training", overrides))
        steps.append([resume_path(trainer.cfg)])
        ragfit.train(trainer)
        assert trainer.state.global_step == 12
        steps[-1].append(losses(trainer))
    (resumed, again), (_, never_killed) = steps
    assert resumed.endswith("checkpoint-6")
    found, expected = adapter(tmp_path / "killed"), adapter(tmp_path / "straight")
    assert found.keys() == expected.keys() and expected
    if ON_CPU:
        assert again == never_killed
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        return
    # Kernels on a GPU add in no fixed order, and Adam makes a whole step of a gradient that is all rounding. A run
    # with other rows, another dropout or a new optimizer is farther from it than half of what was learned.
    assert again == pytest.approx(never_killed, rel=0.02)
    learned = sum(float(w.float().norm() ** 2) for key, w in expected.items() if "lora_B" in key) ** 0.5
    apart = sum(float((found[key].float() - w.float()).norm() ** 2) for key, w in expected.items()) ** 0.5
    assert apart < 0.05 * learned
