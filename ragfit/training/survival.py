"""A trainer whose runs survive being killed or stopped, and end with the adapter of a run that nobody interrupted.

What transformers leaves out for that, as of 5.24, is done here over its private methods, for want of public ones.
"""

import dataclasses
import math
from pathlib import Path

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from trl import SFTTrainer

from ragfit.draw.progress import say
from ragfit.errors import RagfitError
from ragfit.files import sync
from ragfit.models import fingerprint
from ragfit.models.adapter import load_adapter
from ragfit.runs.save import write_fingerprint
from ragfit.runs.status import to_json
from ragfit.training import checkpoints


class SurvivingTrainer(SFTTrainer):
    """To be derived from by a class that has `cfg` and `prepared`."""

    changed: dict[str, list] = {}  # of `checkpoints.changes`, where the run went on from one
    weights_step = 0  # whose weights the model holds after training: the best one's, where these are loaded
    _resumed: str | Path | None = None

    @property
    def _whole(self) -> bool:
        """Whether each process holds all weights and can compute by itself."""
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def check_finite(self, what: str, value: torch.Tensor | float, step: int) -> None:
        """End the run as failed where a number is infinite or none, in all processes or in none."""
        finite = torch.as_tensor(value, device=self.args.device).isfinite().int()
        if not self.accelerator.gather(finite.reshape(1)).min():
            # No checkpoint gets its name before its weights are found healthy.
            kept = checkpoints.newest(self.args.output_dir) or self._resumed
            on = f"go on with resume_checkpoint={kept}, the last healthy checkpoint" if kept else "start again"
            fix = f"Lower it, set train.max_grad_norm, or use bf16 instead of fp16, and {on}."
            raise RagfitError("train.learning_rate", f"the {what} of step {step:,} is not a finite number", fix)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.check_finite("loss", loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, *args, **kwargs) -> torch.Tensor | float:
        norm = super()._get_grad_norm(*args, **kwargs)
        if not self.args.fp16:  # whose scaler leaves out the steps that overflow
            self.check_finite("gradient norm", norm, self.state.global_step + 1)
        return norm

    def _check_weights(self) -> None:
        if self._whole:
            model, rows = self.accelerator.unwrap_model(self.model), fingerprint.rows_for(self.prepared)
            total = math.fsum(sum(scores) for scores in fingerprint.measure(model, rows)["log_probs"])
            self.check_finite("loss after the update", total, self.state.global_step)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs) -> TrainOutput:
        output, resume = self.args.output_dir, resume_from_checkpoint
        self._resumed = resume = checkpoints.newest(output) if resume is True else resume
        identity = checkpoints.identity(self.cfg, self.args, self.train_dataset)
        self.changed = checkpoints.changes(resume, identity) if resume else {}
        self._record = identity | {"changed": self.changed}
        if self.args.should_save:
            for key, values in self.changed.items():
                say(f"resume_checkpoint: {key} is {values[-1][1]} from step {values[-1][0]} on")
            checkpoints.set_aside(output, resume)
        self.accelerator.wait_for_everyone()
        trained = super().train(resume_from_checkpoint=str(resume) if resume else None, **kwargs)
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint
        self.weights_step = self.state.best_global_step if best else self.state.global_step
        self._check_weights()
        return trained

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Trainer accepts missing keys, and an adapter in bfloat16, as a run in 4 bits has it, becomes float32."""
        if model is not None or not self._whole:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        if isinstance(self.model, PeftModel):
            load_adapter(self.model, resume_from_checkpoint, "resume_checkpoint", self.model.active_adapter, True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint)
        fingerprint.check(resume_from_checkpoint, self.model, "base")
        fingerprint.check(resume_from_checkpoint, self.model, "tuned")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The optimizer's state is the checkpoint's; its settings, rates and all intervals are those of this run."""
        settings = [dict(group, params=None) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        self.state.compute_steps(self.args, self.state.max_steps)
        scheduler = self.lr_scheduler
        if checkpoint and isinstance(scheduler, LambdaLR) and not self.is_deepspeed_enabled:
            scheduler.base_lrs = [group["initial_lr"] for group in settings]
            for group, new, rate in zip(self.optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
                group |= new | {"params": group["params"], "lr": new["initial_lr"] * rate(scheduler.last_epoch)}
            scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what is logged

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # else a run that has ended would train one step more
            self.control.should_training_stop = True
            return
        # accelerate sets the epoch of the sampler through at most two wrappers; several processes have three.
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        if hasattr(sampler.sampler, "set_epoch"):
            sampler.sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    def _get_output_dir(self, trial: object) -> str:
        """Where transformers writes a checkpoint, which `_save_checkpoint` renames once it is whole."""
        return str(Path(self.args.output_dir, checkpoints.STAGING))

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        output, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        staged, target = output / checkpoints.STAGING / name, output / name
        if target.is_dir():
            return
        self._check_weights()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        best = output / f"checkpoint-{self.state.best_global_step}"
        if best == target or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            (staged / checkpoints.STATE).write_text(to_json(dataclasses.asdict(self.state)), encoding="utf-8")
            (staged / checkpoints.RECORD).write_text(to_json(self._record), encoding="utf-8")
            if self._whole:
                write_fingerprint(self, staged)
            sync(staged)
            staged.rename(target)
            staged.parent.rmdir()
            sync(output, deep=False)
            rotate_checkpoints(output, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
