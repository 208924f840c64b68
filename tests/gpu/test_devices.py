"""On CUDA the kit steps aside, and one process takes one of several GPUs."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import losses, tiny_trainer

from gpu.on_device import FLOAT32, ON_CPU, only_cuda

STEPS = ["train.max_steps=2", "train.save_strategy=no"]
TWO = pytest.mark.skipif(ON_CPU or torch.cuda.device_count() < 2, reason="needs two GPUs that this process sees")


def test_the_kits_own_step_is_taken_on_a_cpu_alone(config):
    """On CUDA the head is TRL's."""
    from trl.trainer.utils import add_fused_lm_head

    trainer = tiny_trainer(config(*FLOAT32, "train.packing=true", *STEPS))
    base = trainer.model.get_base_model()
    wrapped = base.forward.__func__.__code__.co_filename
    assert (wrapped == add_fused_lm_head.__code__.co_filename) != ON_CPU
    assert bool(base.base_model._forward_hooks) == ON_CPU and trainer.args.dataloader_pin_memory != ON_CPU


def test_labels_alone_reach_the_head(config, monkeypatch):
    """Of a long prompt with a short answer, only the answer's positions are projected, here as on a CPU."""
    from trl.kernels import ChunkedLogProbFunction

    trainer, seen = tiny_trainer(config(*FLOAT32, *STEPS)), []

    def counted(hidden, *args):
        seen.append(len(hidden))
        return ChunkedLogProbFunction.apply(hidden, *args)

    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", SimpleNamespace(apply=counted))
    trainer.train()
    labels = {sum(label != -100 for label in row) for row in trainer.prepared.train["labels"]}
    assert len(seen) == 4 and set(seen) <= labels


@TWO
def test_one_process_takes_one_of_several_gpus(config):
    trainer = tiny_trainer(config(*STEPS))
    assert trainer.args.n_gpu == 1 and {w.device.index for w in trainer.model.parameters()} == {0}
    trainer.train()
    assert len(losses(trainer)) == 2 and torch.cuda.max_memory_allocated(1) == 0


@only_cuda("a CPU is not waited for")
def test_nothing_is_asked_of_the_gpu_between_steps(config):
    """Reading a tensor's value waits for the GPU; the kit's own part of a step reads none."""
    from transformers import TrainerCallback

    trainer = tiny_trainer(config(*FLOAT32, *STEPS))
    kit = [one for one in trainer.callback_handler.callbacks if type(one).__module__.startswith("ragfit.")]
    assert kit

    class Strict(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            torch.cuda.set_sync_debug_mode("error")
            try:
                for one in kit:
                    one.on_step_end(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    trainer.add_callback(Strict())
    trainer.train()
    assert len(losses(trainer)) == 2
