"""The run: from a configuration and prepared rows to a trained adapter.

Notebooks and the command line call the same functions.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from ragfit.config.explain import explained
from ragfit.config.save import keep_config, without_secrets
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
from ragfit.runs.status import RunStatus, read, run_state, to_json
from ragfit.training import checkpoints
from ragfit.training.arguments import early_stopping, training_arguments
from ragfit.training.callback import RunCallback, StopSignals
from ragfit.training.live import loss_curve
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
    args = training_arguments(cfg, prepared)
    is_main = args.process_index == 0
    rows = training_rows(cfg, prepared)
    if resume_from := checkpoints.resume_path(cfg):
        checkpoints.changes(resume_from, checkpoints.identity(without_secrets(cfg), args, rows[0]))
    with RunStatus(args.output_dir, write=is_main).alone():
        pass  # else the model would be loaded before a folder is refused that is another run's or cannot be written
    if is_main:
        say(f"loading {cfg.model.get('model_name_or_path')} and making the trainer")
    set_seed(args.seed)  # the adapter's weights are drawn while the model loads
    loaded = load_model(cfg)
    callbacks = [loss_curve(), *early_stopping(cfg), *callbacks]
    trainer = RagfitTrainer(cfg, prepared, loaded, args, rows, resume_from, callbacks=callbacks)
    # One live display instead of transformers' bar and its printed dictionaries.
    for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


@explained("The run")
def train(trainer: RagfitTrainer) -> Path | None:
    """Train, save and, where `hfhub_tag` is set, push. `output_dir/status.json` says how it goes.

    Ctrl-C, a kernel's interrupt and SIGTERM end the run with a checkpoint that `resume_checkpoint=true` goes on from.

    Returns:
        The folder `checkpoint` with adapter, tokenizer, configuration and instruction; of several processes the first
        one gets it.

    Raises:
        Interrupted: the run was asked to stop, and has.
        RagfitError: the trainer has trained already or was made to evaluate, another run has the folder, or a loss is
            not finite.
    """
    if trainer.state.global_step or TUNED in getattr(trainer.model, "peft_config", {}):
        raise RagfitError(
            "trainer",
            "it has trained already, or holds an adapter to evaluate",
            "Make a new one with ragfit.build_trainer (in the notebook: run from the cell with `trainer = None`); "
            "resume_checkpoint=true in its configuration goes on from the newest checkpoint, and "
            "model.trained_adapter trains a finished adapter further.",
        )
    cfg, resume, output = trainer.cfg, trainer.resume_from, trainer.args.output_dir
    is_main, before = trainer.is_world_process_zero(), read(output)
    ended = f" The run before was {run_state(before)[1]}." if before else ""
    status = RunStatus(output, is_main)
    with status.kept(resumed_from=resume, last_checkpoint=resume), StopSignals() as signals:
        if is_main:
            keep_config(cfg, output)
            if resume:
                print(f"going on from {resume}.{ended}", flush=True)
        watch = RunCallback(status, signals)
        trainer.add_callback(watch)
        try:
            with tracked(trainer):
                trainer.train(resume_from_checkpoint=resume)
        finally:
            trainer.remove_callback(watch)
            status.set(last_checkpoint=trainer.newest_checkpoint and str(trainer.newest_checkpoint))
        if is_main:
            with contextlib.suppress(OSError):  # a full disk: the adapter matters more
                write_whole(Path(output, checkpoints.STATE), to_json(dataclasses.asdict(trainer.state)))
        if watch.stopped:
            on = f"{trainer.newest_checkpoint} holds all of it; go on with resume_checkpoint=true"
            at = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
            raise Interrupted(f"stopped by {signals.why} at {at}. {on}.", signals.asked)
        folder, weights = None, gathered_weights(trainer)
        if is_main:
            unchanged = trainer.state.global_step == checkpoints.step_of(resume)
            folder = save_checkpoint(trainer, keep_same=unchanged, weights=weights)
            step = trainer.state.global_step
            status.set(state="finished", saved=str(folder), step=step, changed=trainer.changed, **trainer.figures())
        if signals.asked:
            saved = f"The run is finished, the adapter is in {folder}."
            raise Interrupted(f"stopped by {signals.why} after the last step. {saved}", signals.asked)
        if cfg.get("hfhub_tag") and folder:
            push(folder, cfg.hfhub_tag, cfg.train.get("hub_token"))
    return folder


@explained("The run")
def run(cfg: DictConfig) -> Path | None:
    """The whole run of the command line: prepare, look, train, save. Returns the checkpoint's folder."""
    prepared = prepare(cfg)
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        print(prepared.report, flush=True)
    trainer = build_trainer(cfg, prepared)
    if is_main:
        print(preflight(trainer), flush=True)
    folder = train(trainer)
    if folder:
        print(f"saved {folder}", flush=True)
    if prepared.dev is not None and trainer.args.eval_strategy == "no":
        loss = dev_loss(trainer)
        if is_main:
            print(f"dev loss {loss:.4f}", flush=True)
            save_loss(trainer, loss)
    return folder
