"""The run: from a configuration and prepared rows to a trained adapter.

Notebooks and the command line call the same functions.
"""

import contextlib
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
from ragfit.errors import Interrupted, RagfitError
from ragfit.evaluation.generate import dev_loss
from ragfit.evaluation.results import save_loss
from ragfit.models.load import load_model
from ragfit.runs.hub import check_tag, push
from ragfit.runs.save import gathered_weights, save_checkpoint
from ragfit.runs.status import SAVING, RunStatus, run_state
from ragfit.training.arguments import check_batches, check_writable, training_arguments
from ragfit.training.checkpoints import check_same_run, resume_path, rows_digest
from ragfit.training.live import loss_curve
from ragfit.training.packing import training_rows
from ragfit.training.preflight import preflight
from ragfit.training.resume import rows_per_step
from ragfit.training.stop import StopSignals
from ragfit.training.tracking import tracked
from ragfit.training.trainer import RagfitTrainer
from ragfit.training.trial import try_run


@explained("Making the trainer")
def build_trainer(cfg: DictConfig, prepared: Prepared, callbacks: Sequence[TrainerCallback] = ()) -> RagfitTrainer:
    """Load the model and make the trainer.

    Args:
        cfg: the resolved configuration.
        prepared: what `ragfit.prepare` made of it.
        callbacks: more `transformers.TrainerCallback`s.

    Returns:
        A `trl.SFTTrainer`: `.train()` and all else of it work.

    Raises:
        ConfigError: before the weights are read, where that can be known.
    """
    resume_from = resume_path(cfg)
    if cfg.get("hfhub_tag"):
        check_tag(cfg.hfhub_tag)
    args = training_arguments(cfg, prepared)
    check_writable(args.output_dir)
    rows = training_rows(cfg, prepared)
    check_batches(args, *rows)
    if resume_from:
        check_same_run(resume_from, without_secrets(cfg), rows_digest(rows[0]), rows_per_step(args))
    status = RunStatus(args.output_dir, [cfg.train.get("hub_token")], resume_from, write=args.process_index == 0)
    with status.loading(), explained("Loading the model"):
        try:
            try_run(cfg, prepared, args, rows)
            set_seed(args.seed)  # the adapter's weights are drawn while the model loads
            loaded = load_model(cfg)
            trainer = RagfitTrainer(cfg, prepared, loaded, args, rows, callbacks=[loss_curve(), *callbacks])
        except BaseException:
            if args.process_index == 0:
                keep_config(cfg, args.output_dir)  # for the table of runs
            raise
    trainer.status, trainer.resume_from = status, resume_from
    # One live display instead of transformers' bar and its printed dictionaries.
    for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def train(trainer: RagfitTrainer) -> Path | None:
    """Train, save and, where `hfhub_tag` is set, push. `output_dir/status.json` says how it goes.

    Ctrl-C, a kernel's interrupt and SIGTERM end the run with a checkpoint that `resume_checkpoint=true` goes on from.

    Returns:
        The folder `checkpoint` with adapter, tokenizer, resolved configuration and instruction; of several processes
        the first one gets it.

    Raises:
        Interrupted: the run was asked to stop, and has.
        RagfitError: the trainer has trained already or was made to evaluate, another run has the folder, or a
            checkpoint could not be saved.
    """
    cfg, status = trainer.cfg, trainer.status
    if status is None or trainer.state.global_step:
        raise RagfitError(
            "trainer",
            "it has trained already, or was made by ragfit.load_checkpoint to evaluate",
            "Make a new one with ragfit.build_trainer (in the notebook: run from the cell with `trainer = None`); "
            "resume_checkpoint=true in its configuration goes on from the newest checkpoint, and "
            "model.trained_adapter trains a finished adapter further.",
        )
    with status.alone(), status.outcome(), explained("The run"):
        before = status.begin()
        if trainer.is_world_process_zero():
            keep_config(cfg, trainer.args.output_dir)
            if trainer.resume_from:
                told = f" The run before was {run_state(before)[1]}." if before else ""
                print(f"going on from {trainer.resume_from}.{told}", flush=True)
        with tracked(trainer), StopSignals() as trainer.stop:
            folder = _train_and_save(trainer)
        trainer.stop = None
        if cfg.get("hfhub_tag") and folder:
            push(folder, cfg.hfhub_tag, cfg.train.get("hub_token"))
    return folder


def _train_and_save(trainer: RagfitTrainer) -> Path | None:
    status, stop = trainer.status, trainer.stop
    trainer.train(resume_from_checkpoint=trainer.resume_from)
    with contextlib.suppress(OSError):  # a full disk: the adapter matters more
        trainer.save_state()
    if trainer.stopped:
        newest, step = trainer.newest_checkpoint, trainer.state.global_step
        on = f"{newest} holds all of it; go on with resume_checkpoint=true"
        status.set(state="interrupted", reason=f"stopped by {stop.why}. {on}", step=step, last_checkpoint=newest)
        raise Interrupted(f"Stopped by {stop.why} at step {step} of {trainer.state.max_steps}. {on}.", stop.asked())
    folder, weights = None, gathered_weights(trainer)
    if trainer.is_world_process_zero():
        status.set(doing=SAVING)
        unchanged = trainer.state.global_step == trainer.first_step
        folder = save_checkpoint(trainer, keep_same=unchanged, weights=weights)
        status.set(state="finished", doing=None, saved=str(folder))
    if stop.asked():
        message = f"Stopped by {stop.why} after the last step. The run is finished, the adapter is in {folder}."
        raise Interrupted(message, stop.asked())
    return folder


@explained("The run")
def run(cfg: DictConfig) -> Path | None:
    """The whole run of the command line: prepare, look, train, save. Returns the checkpoint's folder."""
    prepared = prepare(cfg)
    if os.environ.get("RANK", "0") == "0":
        print(prepared.report, flush=True)
    trainer = build_trainer(cfg, prepared)
    if trainer.is_world_process_zero():
        print(preflight(trainer), flush=True)
    folder = train(trainer)
    if folder:
        print(f"saved {folder}", flush=True)
    if prepared.dev is not None and trainer.args.eval_strategy == "no":
        loss = dev_loss(trainer)
        if trainer.is_world_process_zero():
            print(f"dev loss {loss:.4f}", flush=True)
            save_loss(trainer, loss)
    return folder
