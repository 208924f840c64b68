"""A trainer whose runs survive: whole checkpoints, a resumed run that equals an uninterrupted one, and a way to stop.

What transformers leaves out, as of 5.23: it writes checkpoints in place; it forgets the losses since the last log, so
that the first loss logged after resuming is too low; it reads a bfloat16 adapter back as float32; it draws
`group_by_length`'s order from whatever state the random numbers have; it trains a step more than `max_steps` when
resumed from the last one; and it skips an evaluation or a log that was due at the end of an epoch when the run was
killed there.
"""

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, nested_gather
from transformers.trainer_utils import rotate_checkpoints

from ragfit.errors import ConfigError, RagfitError, first_line
from ragfit.models.hf import load_adapter
from ragfit.training import checkpoints


class Resumable:
    """To be mixed in before `trl.SFTTrainer`; expects the attributes `cfg` and `prepared`."""

    stop = None  # a `ragfit.training.stop.StopSignals` while a run listens to signals
    status = None  # a `ragfit.runs.status.RunStatus` while a run keeps one
    stopped = False  # whether the run ended before its last step because it was asked to
    newest_checkpoint = None  # its path

    def __init__(self, *args, **kwargs):
        self._staging, self._resumed_from, self._marked, self._rows, self._total_before, self._saved_step = (
            False, None, None, None, 0.0, None,
        )  # fmt: skip
        self._at_step = {}
        super().__init__(*args, **kwargs)
        self.add_callback(RunCallback(self))

    # What is drawn at random.

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # transformers would read every row for its length.
        lengths = [prompt + completion for prompt, completion in self.prepared.report.train.lengths]
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return SeededLengthGroupedSampler(group, lengths, self.data_seed)

    @property
    def data_seed(self):
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _evaluate(self, *args, **kwargs):
        """An evaluation draws nothing that training would have drawn: it may come sooner or later, or twice."""
        before = random_state()
        try:
            return super()._evaluate(*args, **kwargs)
        finally:
            set_random_state(before)

    # Going on.

    def train(self, resume_from_checkpoint=None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint, skipped = checkpoints.newest(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise RagfitError(f"{self.args.output_dir} holds no checkpoint to go on from. {'; '.join(skipped)}")
        resume_from_checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        self._resumed_from, self._marked, self._total_before = resume_from_checkpoint, None, 0.0
        self.stopped, self._saved_step, self.newest_checkpoint = False, None, resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def begin_training(self):
        """Once transformers' own state is restored, restore what it does not, and do what is due."""
        if self.args.should_save:
            checkpoints.set_aside(self.args.output_dir, self._resumed_from)
        self._wait()
        step = self.state.global_step
        if not self._resumed_from:
            return
        self._saved_step = step
        self.state.compute_steps(self.args, self.state.max_steps)  # those of the checkpoint may have been changed
        log = checkpoints.record(self._resumed_from).get("log")
        if log:
            self._set_log(log)
        last = [entry for entry in self.state.log_history if entry["step"] == step]
        at_end = step >= self.state.max_steps
        epoch_ends = at_end or abs(self.state.epoch - round(self.state.epoch)) < 1e-9
        strategy, delay = str(self.args.eval_strategy.value), self.args.eval_delay
        due = strategy == "epoch" and epoch_ends and delay <= self.state.epoch
        due |= strategy == "steps" and (at_end or step % self.state.eval_steps == 0) and delay <= step
        self.control.should_evaluate = due and not any(key.startswith("eval_") for entry in last for key in entry)
        log_due = self.args.logging_strategy.value == "epoch" and epoch_ends
        self.control.should_log = log_due and not any("loss" in entry for entry in last)
        # With one of the two due, this logs or evaluates; a checkpoint is there already.
        self.control.should_save = False
        norm, rate = (log or {}).get("grad_norm"), (log or {}).get("learning_rate")
        self._maybe_log_save_evaluate(
            self._tr_loss, norm, self.model, None, self.state.epoch, None, None, learning_rate=rate
        )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """PEFT reads an adapter as float32; a run in 4 bits trains it in bfloat16. Trainer ignores keys that do not match."""
        types = {name: weight.dtype for name, weight in self.model.named_parameters() if weight.requires_grad}
        adapter = any(Path(resume_from_checkpoint).glob("adapter_model.*"))
        if model is None and adapter and isinstance(self.model, PeftModel):
            load_adapter(self.model, resume_from_checkpoint, lambda reason: ConfigError(
                "resume_checkpoint",
                f"the adapter in {resume_from_checkpoint} does not fit this run's: {reason}",
                "Name a checkpoint of this run, or leave resume_checkpoint empty to start anew.",
            ), self.model.active_adapter, is_trainable=True)  # fmt: skip
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, weight in self.model.named_parameters():
            if name in types:
                weight.data = weight.data.to(types[name])

    def _run_epoch(self, *, epoch, train_dataloader, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # accelerate sets the epoch of the sampler through at most two wrappers; several processes have three.
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        if hasattr(getattr(sampler, "sampler", None), "set_epoch"):
            sampler.sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    # The losses since the last log.

    def _log_state(self):
        """What `log` will want of the steps so far. With several processes, all of them call this."""
        loss = nested_gather(self._tr_loss, self.args.parallel_mode).mean().item()
        return {
            "loss": loss,
            "total": self._total_before + self._total_loss_scalar,
            "last_step": self._globalstep_last_logged,
            "metrics": {name: [float(value) for value in values] for name, values in self._metrics["train"].items()},
            "tokens": self._total_train_tokens,
            # A tensor is read here alone: on a GPU that waits for the step.
            **{name: value.item() if torch.is_tensor(value) else value for name, value in self._at_step.items()},
        }

    def _set_log(self, log):
        self._tr_loss = torch.full_like(self._tr_loss, log["loss"])
        self._total_before, self._total_loss_scalar = log["total"], 0.0
        self._globalstep_last_logged, self._total_train_tokens = log["last_step"], log["tokens"]
        self._set_metrics(log["metrics"])

    def _set_metrics(self, metrics):
        self._metrics["train"].clear()
        self._metrics["train"].update(metrics)

    def log(self, logs, start_time=None):
        if "train_loss" in logs and self.state.global_step:  # transformers' is of the steps since resuming
            logs["train_loss"] = (self._total_before + self._total_loss_scalar) / self.state.global_step
        super().log(logs, start_time)

    # Saving.

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, learning_rate=None, **kwargs):
        self._at_step = {"grad_norm": grad_norm, "learning_rate": learning_rate}
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs)
        if self.args.world_size == 1:
            # A run that is asked to stop in the middle of a step goes back to here.
            metrics = {name: list(values) for name, values in self._metrics["train"].items()}
            self._marked = random_state(), self._tr_loss.clone(), metrics, self._total_train_tokens, self.current_flos

    def back_to_last_step(self):
        """Forget the part of a step that was done: the weights have not changed since, what else has is set back."""
        if self._marked is not None:
            state, self._tr_loss, metrics, self._total_train_tokens, self.current_flos = self._marked
            set_random_state(state)
            self._set_metrics(metrics)

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, checkpoints.STAGING) if self._staging else folder

    def _save_checkpoint(self, model, trial):
        """transformers' checkpoint, written under another name, recorded and renamed."""
        step = self.state.global_step
        if self._saved_step == step:
            return
        output = Path(self._get_output_dir(trial))
        staged, target = output / checkpoints.STAGING / f"checkpoint-{step}", output / f"checkpoint-{step}"
        log = self._log_state()
        if self.args.should_save:
            shutil.rmtree(staged.parent, ignore_errors=True)
        self._wait()
        try:
            self._staging = True
            super()._save_checkpoint(model, trial)
            self._staging = False
            self._wait()
            if self.args.should_save:
                best = self.state.best_global_step and output / f"checkpoint-{self.state.best_global_step}"
                if best and (best == target or best.is_dir()):
                    self.state.best_model_checkpoint = str(best)
                    self.state.save_to_json(staged / checkpoints.STATE)
                checkpoints.publish(staged, target, {"step": step, "log": log, **self.identity()})
        except Exception as error:  # the system's, safetensors' and torch's errors of a full disk have no common class
            shutil.rmtree(staged.parent, ignore_errors=True)
            raise RagfitError(
                f"checkpoint-{step} could not be saved in {output}: {first_line(error)}. Make room there, or set "
                "train.save_total_limit lower, and go on with resume_checkpoint=true; older checkpoints are whole."
            ) from error
        finally:
            self._staging = False
        self._wait()
        self._saved_step, self.newest_checkpoint = step, str(target)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(target))
        if self.args.should_save:
            # By number, since `set_aside` has left only this run's; transformers goes by time.
            rotate_checkpoints(str(output), self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder):
        """Not while the folder has another name."""

    def identity(self):
        """What a resumed run must share with this one."""
        from ragfit.config.save import without_secrets

        if self._rows is None:
            self._rows = checkpoints.rows_digest(self.prepared.train)
        return {"rows": self._rows, "rows_per_step": rows_per_step(self.args), "config": without_secrets(self.cfg)}

    def _wait(self):
        self.accelerator.wait_for_everyone()


class RunCallback(TrainerCallback):
    """Stops a run that was asked to stop, and keeps its status."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic(), state.global_step
        if self.trainer.status:
            newest = self.trainer.newest_checkpoint
            self.trainer.status.set(step=state.global_step, total_steps=state.max_steps, last_checkpoint=newest)
        self.trainer.begin_training()
        return self.trainer.control

    def on_substep_end(self, args, state, control, **kwargs):
        if args.world_size == 1 and self._asked():  # several processes stop together, after a whole step
            self.trainer.stopped = control.should_training_stop = True

    def on_step_end(self, args, state, control, **kwargs):
        if self._asked():
            self.trainer.stopped = control.should_training_stop = True
            control.should_evaluate = False  # that may take longer than a scheduler waits; it is done on resuming
        began, first = self.began
        pace = (time.monotonic() - began) / (state.global_step - first)
        self._tell(step=state.global_step, seconds_per_step=round(pace, 2))

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.stopped:
            self.trainer.back_to_last_step()
            control.should_log = control.should_evaluate = False
            control.should_save = state.global_step > 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._tell(loss=(logs or {}).get("loss"))

    def on_save(self, args, state, control, **kwargs):
        if self.trainer.status:
            self.trainer.status.set(last_checkpoint=self.trainer.newest_checkpoint, step=state.global_step)

    def _asked(self):
        if self.trainer.stop is None:
            return False
        if self.trainer.args.world_size > 1:  # what one process is asked, all are
            signal = torch.tensor(self.trainer.stop.asked() or 0, device=self.trainer.args.device)
            self.trainer.stop.ask(int(self.trainer.accelerator.gather(signal).max()) or None)
        return self.trainer.stop.asked() is not None

    def _tell(self, **facts):
        if self.trainer.status:
            self.trainer.status.beat(**{key: value for key, value in facts.items() if value is not None})


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """The order of an epoch follows from the seed and its number alone."""

    def __init__(self, batch_size, lengths, seed):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def rows_per_step(args):
    """The rows of one optimizer step, over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def random_state():
    """The state of every generator that training draws from."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.random.get_rng_state(), cuda


def set_random_state(state):
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.random.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
