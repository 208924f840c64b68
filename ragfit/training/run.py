"""The run: from a configuration and prepared rows to a trained adapter, in notebooks and on the command line."""

import dataclasses
import functools
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from transformers import PrinterCallback, TrainerCallback, set_seed

from ragfit.config.explain import explained
from ragfit.config.save import keep_config
from ragfit.data.prepare import prepare
from ragfit.data.report import Prepared
from ragfit.draw.progress import say
from ragfit.errors import Interrupted, RagfitError
from ragfit.evaluation.losses import dev_loss
from ragfit.evaluation.results import save_loss
from ragfit.files import write_whole
from ragfit.models.load import load_model
from ragfit.runs.hub import check_tag, push
from ragfit.runs.save import gathered_weights, save_checkpoint
from ragfit.runs.status import RunStatus, to_json
from ragfit.training import checkpoints
from ragfit.training.arguments import early_stopping, training_arguments
from ragfit.training.callback import RunCallback, StopSignals
from ragfit.training.live import LossCurve
from ragfit.training.packing import training_rows
from ragfit.training.preflight import preflight
from ragfit.training.reload import TUNED
from ragfit.training.tracking import tracked
from ragfit.training.trainer import RagfitTrainer


@explained("Making the trainer")
def build_trainer(cfg: DictConfig, prepared: Prepared, callbacks: Sequence[TrainerCallback] = ()) -> RagfitTrainer:
    """Load the model and make the trainer.

    Args:
        cfg: the configuration.
        prepared: what `ragfit.prepare` made of it.
        callbacks: more `transformers.TrainerCallback`s.

    Returns:
        A `trl.SFTTrainer`: `.train()` and all else of it work.

    Raises:
        ConfigError: before the weights are read, where that can be known.
    """
    if cfg.get("hfhub_tag"):
        check_tag(cfg.hfhub_tag)
    args, rows = training_arguments(cfg, prepared), training_rows(cfg, prepared)
    if resume := checkpoints.resume_path(cfg):
        checkpoints.changes(resume, checkpoints.identity(cfg, args, rows[0]))
    if args.process_index == 0:
        say(f"loading {cfg.model.get('model_name_or_path')} and making the trainer")
    set_seed(args.seed)  # the adapter's weights are drawn while the model loads
    callbacks = [LossCurve(), *early_stopping(cfg), *callbacks]
    trainer = RagfitTrainer(cfg, prepared, load_model(cfg), args, rows, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)  # there is a live display in its place
    return trainer


@explained("The run")
def train(trainer: RagfitTrainer) -> Path | None:
    """Train, save and, where `hfhub_tag` is set, push. `output_dir/status.json` says how it goes.

    Ctrl-C, a kernel's interrupt and SIGTERM end the run with a checkpoint that `resume_checkpoint=true` goes on from.

    Returns:
        The folder `checkpoint` with adapter, tokenizer, configuration and instruction; None in all but one process.

    Raises:
        Interrupted: the run was asked to stop, and has.
        RagfitError: the trainer has trained already, another run has the folder, or a loss is not finite.
    """
    if trainer.state.global_step or TUNED in getattr(trainer.model, "peft_config", {}):
        raise RagfitError("trainer", "it has trained already, or holds an adapter to evaluate", "Make a new one.")
    cfg, output, is_main = trainer.cfg, trainer.args.output_dir, trainer.is_world_process_zero()
    resume, status, folder = checkpoints.resume_path(cfg), RunStatus(output, is_main), None
    with status.kept(resumed_from=resume, last_checkpoint=resume), StopSignals() as signals:
        if is_main:
            keep_config(cfg, output)
        trainer.add_callback(watch := RunCallback(status, signals))
        with tracked(trainer):
            trainer.train(resume_from_checkpoint=resume)
        trainer.remove_callback(watch)
        state, saved, weights = trainer.state, trainer.weights_step, gathered_weights(trainer)
        if watch.stopped:
            why = f"stopped by {signal.Signals(signals.asked).name} at step {state.global_step} of {state.max_steps}"
            raise Interrupted(f"{why}; go on with resume_checkpoint=true.", signals.asked)
        if is_main:
            folder = save_checkpoint(trainer, state.global_step == checkpoints.step_of(resume), weights)
            logged = {k: v for entry in state.log_history if entry["step"] == saved for k, v in entry.items()}
            figures = {"saved_step": saved, "loss": logged.get("loss"), "dev_loss": logged.get("eval_loss")}
            status.set(state="finished", saved=str(folder), changed=trainer.changed, **figures)
            write_whole(Path(output, checkpoints.STATE), to_json(dataclasses.asdict(state)))
        if cfg.get("hfhub_tag") and folder:
            push(folder, cfg.hfhub_tag, cfg.train.get("hub_token"))
    return folder


@explained("The run")
def run(cfg: DictConfig) -> Path | None:
    """The whole run of the command line: prepare, look, train, save. Returns the checkpoint's folder."""
    show = functools.partial(print, flush=True) if os.environ.get("RANK", "0") == "0" else lambda text: None
    prepared = prepare(cfg)
    show(prepared.report)
    trainer = build_trainer(cfg, prepared)
    show(preflight(trainer))
    folder = train(trainer)
    show(f"saved {folder}")
    if prepared.dev is not None and trainer.args.eval_strategy == "no":
        loss = dev_loss(trainer)
        show(f"dev loss {loss:.4f}")
        if folder:
            save_loss(trainer, loss)
    return folder
