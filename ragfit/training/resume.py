"""A trainer whose runs survive being killed or stopped, and end with the adapter of a run that nobody interrupted.

What transformers leaves out, as of 5.24, is done here over its private methods, for want of public ones: it writes
checkpoints in place; it draws `group_by_length`'s order from whatever state the random numbers have; an evaluation
takes random numbers that dropout would have had; it trains a step more than `max_steps` when resumed from the last one;
and several processes resume an epoch in another epoch's order.
"""

import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.config.save import without_secrets
from ragfit.errors import ConfigError, RagfitError, first_line
from ragfit.models.adapter import load_adapter
from ragfit.runs.status import RunStatus
from ragfit.training import checkpoints
from ragfit.training.stop import StopSignals


class Resumable:
    """To be mixed in before `trl.SFTTrainer`, by a class that has `cfg` and `prepared`."""

    stop: StopSignals | None = None  # while a run listens to signals
    status: RunStatus | None = None  # while a run keeps one
    stopped: bool = False  # whether the run ended before its last step because it was asked to
    newest_checkpoint: str | None = None  # that was written last, or that training goes on from
    first_step: int = 0  # the steps that were done when training began
    resume_from: str | None = None  # the checkpoint that `ragfit.train` goes on from
    _staging = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(RunCallback(self))

    # What is drawn at random.

    def _get_train_sampler(
        self, train_dataset: torch.utils.data.Dataset | None = None
    ) -> torch.utils.data.Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # transformers would read every row for its length.
        lengths = [prompt + completion for prompt, completion in self.prepared.report.train.lengths]
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthGroupedSampler(group, lengths, seed)

    @explained("The evaluation", LESS_TO_EVALUATE)
    def _evaluate(self, *args, **kwargs) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):  # dropout draws the same whether or not an evaluation came before
            return super()._evaluate(*args, **kwargs)

    # Going on.

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs) -> TrainOutput:
        if resume_from_checkpoint is True:
            resume_from_checkpoint, _ = checkpoints.newest(self.args.output_dir)
            if resume_from_checkpoint is None:
                problem = f"{self.args.output_dir} holds no checkpoint that is whole"
                raise RagfitError("resume_from_checkpoint", problem, "Leave it out to start anew.")
        self.newest_checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        self.stopped = False
        return super().train(resume_from_checkpoint=self.newest_checkpoint, **kwargs)

    def begin_training(self) -> None:
        """Called when transformers has restored its state and before the first step."""
        if self.args.should_save:
            checkpoints.set_aside(self.args.output_dir, self.newest_checkpoint)
        self.accelerator.wait_for_everyone()
        self.first_step = self.state.global_step
        if self.newest_checkpoint:
            # The intervals of the checkpoint may have been changed since.
            self.state.compute_steps(self.args, self.state.max_steps)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Trainer accepts missing keys, and an adapter in bfloat16, as a run in 4 bits has it, becomes float32."""
        adapter = any(Path(resume_from_checkpoint).glob("adapter_model.*"))
        if model is None and adapter and isinstance(self.model, PeftModel):
            load_adapter(self.model, resume_from_checkpoint, lambda reason: ConfigError(
                "resume_checkpoint",
                f"the adapter in {resume_from_checkpoint} does not fit this run's: {reason}",
                "Name a checkpoint of this run, or leave resume_checkpoint empty to start anew.",
            ), self.model.active_adapter, is_trainable=True)  # fmt: skip
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _run_epoch(self, *, epoch: int, train_dataloader: torch.utils.data.DataLoader, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # accelerate sets the epoch of the sampler through at most two wrappers; several processes have three.
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        if hasattr(sampler.sampler, "set_epoch"):
            sampler.sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)
        if self.stopped:
            self._save_checkpoint(self.model_wrapped, None)

    # Saving.

    def _get_output_dir(self, trial: object) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, checkpoints.STAGING)) if self._staging else folder

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """transformers' checkpoint, written under another name, recorded and renamed."""
        step = self.state.global_step
        if self.newest_checkpoint and checkpoints.step_of(self.newest_checkpoint) == step:
            return
        output = Path(self._get_output_dir(trial))
        staged, target = output / checkpoints.STAGING / f"checkpoint-{step}", output / f"checkpoint-{step}"
        try:
            self._staging = True
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                best = self.state.best_global_step and output / f"checkpoint-{self.state.best_global_step}"
                if best and (best == target or best.is_dir()):
                    self.state.best_model_checkpoint = str(best)
                    self.state.save_to_json(staged / checkpoints.STATE)
                checkpoints.publish(staged, target, {"step": step, **self._identity})
        except Exception as error:  # the system's, safetensors' and torch's errors of a full disk have no common class
            shutil.rmtree(staged.parent, ignore_errors=True)
            raise RagfitError(
                "train.output_dir",
                f"checkpoint-{step} could not be saved in {output}: {first_line(error)}",
                "Make room there, or set train.save_total_limit lower, and go on with resume_checkpoint=true; older "
                "checkpoints are whole.",
            ) from error
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()
        self.newest_checkpoint = str(target)
        if self.args.should_save:
            # By number, since `set_aside` has left only this run's; transformers goes by time.
            rotate_checkpoints(str(output), self.args.save_total_limit, self.state.best_model_checkpoint)

    @functools.cached_property
    def _identity(self) -> dict[str, object]:
        """What a resumed run must share with this one."""
        rows = checkpoints.rows_digest(self.train_dataset)
        return {"rows": rows, "rows_per_step": rows_per_step(self.args), "config": without_secrets(self.cfg)}


class RunCallback(TrainerCallback):
    """Stops a run that was asked to stop, with a checkpoint, and keeps its status."""

    def __init__(self, trainer: Resumable):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.began = time.monotonic()
        if self.trainer.status:
            newest = self.trainer.newest_checkpoint
            self.trainer.status.set(step=state.global_step, total_steps=state.max_steps, last_checkpoint=newest)
        self.trainer.begin_training()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self._asked():
            self.trainer.stopped = control.should_training_stop = True
        pace = (time.monotonic() - self.began) / (state.global_step - self.trainer.first_step)
        self._tell(step=state.global_step, seconds_per_step=round(pace, 2))

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.trainer.stopped and state.epoch % 1:  # in the middle of an epoch nothing of its end is due
            control.should_log = control.should_evaluate = control.should_save = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs
    ) -> None:
        if logs and "loss" in logs:
            self._tell(loss=logs["loss"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.trainer.status:
            self.trainer.status.set(last_checkpoint=self.trainer.newest_checkpoint, step=state.global_step)

    def _asked(self) -> bool:
        trainer, stop = self.trainer, self.trainer.stop
        if stop is None:
            return False
        if trainer.args.world_size > 1:  # what one process is asked, all are
            signal = torch.tensor(stop.asked() or 0, device=trainer.args.device)
            stop.ask(int(trainer.accelerator.gather(signal).max()) or None)
        return stop.asked() is not None

    def _tell(self, **facts) -> None:
        if self.trainer.status:
            self.trainer.status.beat(**facts)


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """The order of an epoch follows from the seed and its number alone."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def rows_per_step(args: TrainingArguments) -> int:
    """The rows of one optimizer step, over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size
