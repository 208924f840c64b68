"""Runs in processes of their own, to be killed: forked from a server that has imported everything once."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from safetensors.torch import load_file

SETTINGS = ["train.num_train_epochs=2", "train.save_steps=3", "train.logging_steps=3", "train.learning_rate=0.01"]
SETTINGS += ["limit=12", "shuffle=5"]
# Of a log entry: what the clock says, and what is counted from where the process began.
VARYING = ("runtime", "per_second", "num_tokens")


def process(target, *args):
    """A started process that runs `target(*args)`; it takes a moment, not the ten seconds of the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ragfit.training.trainer", "ragfit.models.hf", "peft", "killed_runs"])
    started = context.Process(target=target, args=args, daemon=True)  # not left behind by a test that fails
    started.start()
    return started


def run(overrides, signals=(), moment=None, log=None):
    """Train as `ragfit.run` does, and write what was logged to `output_dir/logged.json`.

    Args:
        overrides: of `configs/training.yaml`.
        signals: `(event, step, signal)`: at that event of a callback, at that step, the process sends itself the signal.
        moment: `(audit event, end of its first argument, how many more)`: the process kills itself there.
        log: a file for what it says.
    """
    import torch

    import ragfit
    from ragfit.errors import Interrupted, RagfitError

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores them
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    if moment:
        sys.addaudithook(_killer(*moment))
    try:
        cfg = ragfit.load_config("training", overrides)
        trainer = ragfit.build_trainer(cfg, ragfit.prepare(cfg), [sender(signals)])
        ragfit.train(trainer)
    except Interrupted as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(128 + error.signal)
    except RagfitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    Path(trainer.args.output_dir, "logged.json").write_text(json.dumps(trainer.state.log_history))


def _killer(event, ending, more=0):
    left = [more]

    def hook(name, args):
        if name == event and args:
            path = str(args[1] if name == "os.rename" else args[0])
            if path.endswith(ending) or (ending.endswith("*") and ending[:-1] in path):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    return hook


def sender(signals):
    """A callback that sends its own process the signals of `run`."""
    from transformers import TrainerCallback

    def method(event):
        def at(self, args, state, control, **kwargs):
            for when, step, number in signals:
                if when == event and step == state.global_step:
                    os.kill(os.getpid(), number)

        return at

    return type("Sender", (TrainerCallback,), {event: method(event) for event, _, _ in signals})()


def logged(output_dir):
    """What a finished run logged with each loss, without what differs between any two runs."""
    entries = json.loads(Path(output_dir, "logged.json").read_text())
    losses = [entry for entry in entries if "loss" in entry or "eval_loss" in entry]
    return [{key: value for key, value in entry.items() if not key.endswith(VARYING)} for entry in losses]


def adapter(output_dir):
    """The weights that a finished run saved."""
    return load_file(Path(output_dir, "checkpoint", "adapter_model.safetensors"))
