"""A trainer whose runs survive being killed or stopped, and end with the adapter of a run that nobody interrupted.

What transformers leaves out for that, as of 5.24, is done here over its private methods, for want of public ones: it
writes checkpoints in place; it trains a step more than `max_steps` when resumed from the last one; several processes
resume an epoch in another epoch's order; a resumed run keeps the old learning rate, whatever its arguments say; and a
run of NaNs ends as a success.
"""

import functools
import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from trl import SFTTrainer

from ragfit.config.save import without_secrets
from ragfit.errors import RagfitError
from ragfit.models import fingerprint
from ragfit.models.adapter import load_adapter
from ragfit.runs.save import write_fingerprint
from ragfit.training import checkpoints

logger = logging.getLogger(__name__)


class SurvivingTrainer(SFTTrainer):
    """To be derived from by a class that has `cfg` and `prepared`.

    Attributes:
        changed: for each key that was changed when the run went on, (from that step on, its value).
        newest_checkpoint: of the run's output folder, or None.
        weights_step: the step whose weights the model holds: the best one's once the best model was loaded.
    """

    changed: checkpoints.Changes = {}
    _best_step: int | None = None
    _healthy: str | Path | None = None  # the last checkpoint, whose weights computed what is finite
    _staging = False

    @property
    def newest_checkpoint(self) -> Path | None:
        return checkpoints.newest(self.args.output_dir)

    @property
    def weights_step(self) -> int:
        return self.state.global_step if self._best_step is None else self._best_step

    @property
    def _sharded(self) -> bool:
        """Whether processes hold parts of the weights, so that none can compute by itself."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def figures(self) -> dict[str, float | int | None]:
        """`saved_step`, and the `loss` and `dev_loss` that were logged there; None where none was."""
        logged = {}
        for entry in self.state.log_history:
            logged |= entry if entry.get("step") == self.weights_step else {}
        return {"saved_step": self.weights_step, "loss": logged.get("loss"), "dev_loss": logged.get("eval_loss")}

    # What is not finite.

    def check_finite(self, what: str, value: torch.Tensor | float | list, step: int, always: bool = False) -> None:
        """End the run where a number is infinite or none, unless `train.stop_on_nan` is false.

        Raises:
            RagfitError: with the last checkpoint that is known to be healthy, in all processes or in none.
        """
        finite = torch.as_tensor(value, device=self.args.device).isfinite().all().int()
        if self.args.world_size > 1:
            finite = self.accelerator.gather(finite[None]).min()
        if finite or not (always or self.cfg.train.get("stop_on_nan", True)):
            return
        kept, on = "there is no checkpoint from before", "start again"
        if self._healthy:
            kept = f"{self._healthy} is the last healthy checkpoint"
            on = f"go on with resume_checkpoint={self._healthy}"
        raise RagfitError(
            "train.stop_on_nan",
            f"not a finite number: the {what} of step {step:,}; {kept}",
            f"Lower train.learning_rate, set train.max_grad_norm, or use bf16 instead of fp16, and {on}.",
        )

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.check_finite("loss", loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, *args, **kwargs) -> torch.Tensor | float:
        """Called before each update: what is not finite here has not reached the weights."""
        norm = super()._get_grad_norm(*args, **kwargs)
        if not self.args.fp16:  # whose scaler leaves out the steps that overflow
            self.check_finite("gradient norm", norm, self.state.global_step + 1)
        return norm

    def _check_weights(self, always: bool = False) -> None:
        """No NaNs are saved: the weights give the ends of two rows a finite loss.

        Where processes hold parts of the weights, the losses of the steps alone are looked at.
        """
        if not self._sharded:
            model, rows = self.accelerator.unwrap_model(self.model), fingerprint.rows_for(self.prepared)
            scores = list(itertools.chain(*fingerprint.measure(model, rows)["log_probs"]))
            self.check_finite("loss after the update", scores, self.state.global_step, always)

    # Going on.

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs) -> TrainOutput:
        output, resume = self.args.output_dir, resume_from_checkpoint or None
        if resume is True and (resume := self.newest_checkpoint) is None:
            raise RagfitError("resume_from_checkpoint", f"{output} holds no checkpoint", "Leave it out to start anew.")
        self.changed = checkpoints.changes(resume, self._identity) if resume else {}
        for key, values in self.changed.items():
            logger.warning("resume_checkpoint: %s is %s from step %s on", key, values[-1][1], values[-1][0])
        self._best_step, self._healthy = None, resume
        if self.args.should_save:
            checkpoints.set_aside(output, resume)
        self.accelerator.wait_for_everyone()
        try:
            trained = super().train(resume_from_checkpoint=resume and str(resume), **kwargs)
            self._check_weights(always=True)
        finally:
            self.is_in_train = False
        return trained

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What a resumed run is compared by."""
        return checkpoints.identity(without_secrets(self.cfg), self.args, self.train_dataset)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Trainer accepts missing keys, and an adapter in bfloat16, as a run in 4 bits has it, becomes float32."""
        adapter = any(Path(resume_from_checkpoint).glob("adapter_model.*"))
        if model is None and adapter and isinstance(self.model, PeftModel):
            name = self.model.active_adapter
            load_adapter(self.model, resume_from_checkpoint, "resume_checkpoint", name, is_trainable=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if model is None and not self._sharded:
            for what in ("base", "tuned"):
                fingerprint.check(resume_from_checkpoint, self.model, what)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The optimizer's state is the checkpoint's; its settings, rates and all intervals are those of this run."""
        settings = [dict(group, params=None) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.state.compute_steps(self.args, self.state.max_steps)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):  # it would forget how long there was no improvement
                saved = self.state.stateful_callbacks.get("EarlyStoppingCallback", {})
                vars(callback).update(saved.get("attributes", {}))
        if isinstance(scheduler := self.lr_scheduler, LambdaLR) and not self.is_deepspeed_enabled:
            scheduler.base_lrs = [group["initial_lr"] for group in settings]
            for group, new, rate in zip(self.optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
                group |= new | {"params": group["params"], "lr": new["initial_lr"] * rate(scheduler.last_epoch)}
            scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what is logged

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **kwargs) -> None:
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

    # Saving.

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best_step = self.state.best_global_step

    def _get_output_dir(self, trial: object) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, checkpoints.STAGING)) if self._staging else folder

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """transformers' checkpoint, written under another name, recorded and renamed."""
        output, step = Path(self._get_output_dir(trial)), self.state.global_step
        staged, target = output / checkpoints.STAGING / f"checkpoint-{step}", output / f"checkpoint-{step}"
        if target.is_dir():
            return
        self._check_weights()
        sound = True
        try:
            self._staging = True
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                best = self.state.best_global_step and output / f"checkpoint-{self.state.best_global_step}"
                if best and (best == target or best.is_dir()):
                    self.state.best_model_checkpoint = str(best)
                    self.state.save_to_json(staged / checkpoints.STATE)
                if not self._sharded:
                    try:
                        write_fingerprint(self, staged)
                    except ValueError:  # of NaNs: it is kept, and so are the older ones
                        sound = False
                checkpoints.publish(staged, target, {**self._identity, "changed": self.changed})
                if sound:  # by number, since `set_aside` has left only this run's; transformers goes by time
                    rotate_checkpoints(output, self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:  # on a full disk, what was written makes room for the status
            self._staging = False
            if self.args.should_save:
                shutil.rmtree(staged.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._healthy = target if sound else self._healthy
