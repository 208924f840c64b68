"""The run: from a configuration to a trained adapter, in a notebook or from the command line.

    python -m ragfit.training -cp configs/paper -cn training-asqa data_file=rows.jsonl output_key=answers

The command line takes every Hydra override, `--multirun` and `--help`; the notebook calls the same functions.
"""

import contextlib
import importlib
import logging
import os
import sys
import tempfile
from pathlib import Path

import ragfit.allocator  # noqa: F401  (before torch)
import ragfit.quiet  # noqa: F401  (before the libraries it quiets)
from ragfit.config import (
    CONFIGS,
    OUTPUT_DIR,
    find_path,
    finish,
    normalize_overrides,
    read_config,
    save_config,
    user_path,
    without_secrets,
)
from ragfit.errors import ConfigError, Interrupted, RagfitError, explained, first_line, for_terminal
from ragfit.overrides import refuse_plain, refuse_secrets
from ragfit.preparation import prepare
from ragfit.progress import say
from ragfit.saving import gathered_weights, save_checkpoint
from ragfit.secrets import plain_secrets
from ragfit.status import SAVING, RunStatus, verdict

logger = logging.getLogger(__name__)


@explained("Making the trainer")
def build_trainer(cfg, prepared, callbacks=()):
    """Load the model and make the trainer.

    Args:
        cfg: the resolved configuration.
        prepared: what `ragfit.prepare` made of it.
        callbacks: more `transformers.TrainerCallback`s.

    Returns:
        RagfitTrainer, a `trl.SFTTrainer`: `.train()` and all else of it work.

    Raises:
        ConfigError: before the weights are read, where that can be known.
    """
    from transformers import PrinterCallback, ProgressCallback, set_seed

    from ragfit.checkpoints import check_same_run, rows_digest
    from ragfit.hub import check_tag
    from ragfit.resumable import rows_per_step
    from ragfit.trainer import RagfitTrainer, training_arguments
    from ragfit.trial import check_vocabulary, try_run
    from ragfit.views.curve import loss_curve

    resume_from = resume_path(cfg)
    if cfg.get("hfhub_tag"):
        check_tag(cfg.hfhub_tag)
    args = training_arguments(cfg, prepared)
    check_writable(args.output_dir)
    if resume_from:
        check_same_run(resume_from, without_secrets(cfg), rows_digest(prepared.train), rows_per_step(args))
    status = RunStatus(args.output_dir, [cfg.train.get("hub_token")], resume_from, write=args.process_index == 0)
    with status.loading(), _kept_if_it_fails(cfg, args), explained("Loading the model"):
        try_run(cfg, prepared, args)
        set_seed(args.seed)  # the adapter's weights are drawn while the model loads
        loaded = load_model(cfg)
        check_vocabulary(loaded.model, prepared)
        trainer = RagfitTrainer(cfg, prepared, loaded, args, callbacks=[loss_curve(), *callbacks])
    trainer.status, trainer.resume_from = status, resume_from
    # One live display instead of transformers' bar and its printed dictionaries.
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    try:
        from transformers.utils.notebook import NotebookProgressCallback

        trainer.remove_callback(NotebookProgressCallback)
    except ImportError:
        pass
    return trainer


@contextlib.contextmanager
def _kept_if_it_fails(cfg, args):
    """Keep the configuration of a run that does not come to train, for the table of runs."""
    try:
        yield
    except BaseException:
        if args.process_index == 0:
            _keep_config(cfg, args.output_dir)
        raise


def _keep_config(cfg, folder):
    with contextlib.suppress(OSError):
        save_config(cfg, Path(folder, "ragfit.yaml"))


def load_model(cfg):
    """Make the object that `model._target_` names from the other keys of `model`.

    Returns:
        an object with the attributes `model` and `tokenizer`, such as `ragfit.models.hf.HFTrain`.
    """
    from omegaconf import OmegaConf

    # The keys go in as plain values, and no object is made of any of them.
    keys = OmegaConf.to_container(cfg.model, resolve=True)
    target = keys.pop("_target_")
    make = _class(target)
    try:
        loaded = make(**keys)
    except RagfitError:
        raise
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model._target_: {target} could not be made from the keys of model: {first_line(error)}. "
            "Check the class's name and the keys it takes."
        ) from error
    for attribute in ("model", "tokenizer"):
        if not hasattr(loaded, attribute):
            raise ConfigError(
                f"model._target_: {cfg.model._target_} has no attribute {attribute!r}. A model class needs model and tokenizer."
            )
    return loaded


def _class(target):
    """The class of a dotted name. (Hydra's `get_class` logs its own error, in several lines.)"""
    module, _, name = str(target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module raises while it is imported
        raise ConfigError(
            f"model._target_: {target} cannot be imported: {first_line(error)}. Name a class as package.module.Class; "
            "its package must be installed, or lie where Python looks (PYTHONPATH)."
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"model._target_: {target} is no class. Name a class with the attributes model and tokenizer.")
    return found


def check_writable(output_dir):
    """Raise before training where the adapter could not be saved after it."""
    try:
        user_path(output_dir, "train.output_dir").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(
            f"train.output_dir: {output_dir} cannot be written: {error.strerror}. Set train.output_dir to a folder of yours."
        ) from error


def resume_path(cfg):
    """The checkpoint to go on from: a folder, or None to start anew.

    With `resume_checkpoint=true` it is the newest whole one, and those that were skipped are named. Where a run has
    begun but was ended before its first checkpoint, nothing is lost, and it starts anew.

    Raises:
        ConfigError: `resume_checkpoint` names no whole checkpoint, or is true and there is none.
    """
    from ragfit.checkpoints import newest, problem
    from ragfit.status import read

    wanted = cfg.get("resume_checkpoint")
    if wanted in (None, False, ""):
        return None
    if wanted is True or str(wanted).lower() == "true":
        folder = cfg.train.output_dir
        found, skipped = newest(folder)
        for sentence in skipped:
            logger.warning("resume_checkpoint: %s", sentence)
        if found:
            return str(found)
        facts = read(folder) or {}
        if not skipped and facts.get("state") in ("running", "interrupted", "failed") and not facts.get("last_checkpoint"):
            say(f"resume_checkpoint: the run in {folder} ended before its first checkpoint, so it starts anew.")
            return None
        whole = f"no checkpoint that is whole ({'; '.join(skipped)})" if skipped else "no checkpoint"
        raise ConfigError(
            f"resume_checkpoint is true, but {folder} holds {whole}. "
            "Set train.save_steps so that one is written, or leave resume_checkpoint empty to start anew."
        )
    folder = find_path(wanted, "resume_checkpoint")
    reason = problem(folder)
    if reason:
        raise ConfigError(
            f"resume_checkpoint: a run cannot go on from {folder}: {reason}. "
            "Name another folder, such as trained_models/checkpoint-100, or true for the newest that is whole."
        )
    return str(folder)


def train(trainer):
    """Train, save and, where `hfhub_tag` is set, push. `output_dir/status.json` says how it goes.

    Ctrl-C, a kernel's interrupt and SIGTERM end the run with a checkpoint that `resume_checkpoint=true` goes on from.

    Args:
        trainer: of `build_trainer`.

    Returns:
        Path of the folder `checkpoint` with adapter, tokenizer, resolved configuration and instruction.

    Raises:
        Interrupted: the run was asked to stop, and has.
        RagfitError: the trainer has trained already or was made to evaluate, another run has the folder, or a
            checkpoint could not be saved.
    """
    from ragfit.stopping import StopSignals
    from ragfit.tracking import tracked

    cfg, status = trainer.cfg, trainer.status
    if status is None:
        raise RagfitError(
            "This trainer was made by ragfit.load_checkpoint, to evaluate a finished run. Make one with ragfit.build_trainer: "
            f"model.trained_adapter={Path(trainer.args.output_dir, 'checkpoint')} in its configuration trains on from that "
            "run's adapter, and resume_checkpoint=true goes on with a run that was stopped."
        )
    if trainer.state.global_step:
        raise RagfitError(
            f"This trainer has trained already, to step {trainer.state.global_step}. Make a new one with ragfit.build_trainer "
            "(in the notebook: run from the cell with `trainer = None`); resume_checkpoint=true goes on from the newest checkpoint."
        )
    with status.alone(), status.outcome(), explained("The run"), contextlib.ExitStack() as stack:
        before = status.begin()
        if trainer.is_world_process_zero():
            _keep_config(cfg, trainer.args.output_dir)
        if trainer.resume_from and trainer.is_world_process_zero():
            told = f" The run before was {verdict(before)[1]}." if before else ""
            print(f"going on from {trainer.resume_from}.{told}", flush=True)
        tracking = stack.enter_context(tracked(cfg, trainer))
        with StopSignals() as stop:
            trainer.stop = stop
            trainer.train(resume_from_checkpoint=trainer.resume_from)
            with contextlib.suppress(OSError):  # a full disk: the adapter matters more
                trainer.save_state()
            if trainer.stopped:
                _stopped(trainer)
            folder, weights = None, gathered_weights(trainer)
            if trainer.is_world_process_zero():
                status.set(doing=SAVING)
                trained = trainer.state.global_step - trainer._initial_global_step
                folder = save_checkpoint(trainer, keep_same=not trained, weights=weights)
                status.set(state="finished", doing=None, saved=str(folder))
                tracking.saved(folder)
            if stop.asked():
                message = f"Stopped by {stop.why} after the last step. The run is finished, the adapter is in {folder}."
                raise Interrupted(message, stop.asked())
        trainer.stop = None
        if cfg.get("hfhub_tag") and folder:
            from ragfit.hub import push

            tracking.saved(folder, push(folder, cfg.hfhub_tag, cfg.train.get("hub_token")))
    return folder


def _stopped(trainer):
    """Say where a stopped run can go on, and end it."""
    stop, state, newest = trainer.stop, trainer.state, trainer.newest_checkpoint
    on = f"{newest} holds all of it; go on with resume_checkpoint=true" if newest else "Nothing was learned yet; start it again"
    trainer.status.set(state="interrupted", reason=f"stopped by {stop.why}. {on}", step=state.global_step, last_checkpoint=newest)
    raise Interrupted(f"Stopped by {stop.why} at step {state.global_step} of {state.max_steps}. {on}.", stop.asked())


@explained("The run")
def run(cfg):
    """The whole run of the command line: prepare, look, train, save. Returns the checkpoint's folder."""
    from ragfit.answers import dev_loss
    from ragfit.evaluation import save_loss
    from ragfit.resources import preflight

    prepared = prepare(cfg)
    if os.environ.get("RANK", "0") == "0":
        print(prepared.report, flush=True)
    trainer = build_trainer(cfg, prepared)
    if trainer.is_world_process_zero():
        print(preflight(trainer), flush=True)
    folder = train(trainer)
    if prepared.dev is not None and trainer.args.eval_strategy == "no":
        loss = dev_loss(trainer)
        if trainer.is_world_process_zero():
            print(f"dev loss {loss:.4f}", flush=True)
            save_loss(trainer, loss)
    if folder:
        print(f"saved {folder}", flush=True)
    return folder


# The command line.


def main(argv=None):
    """`python -m ragfit.training`: Hydra's command line over `run`."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from omegaconf import OmegaConf

    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        refuse_secrets(argv, "a command line is kept by shells and in Hydra's files")
        args = get_args_parser().parse_intermixed_args(argv)  # overrides may stand on both sides of an option
        source, options = _config_file(args), _options(args)
        cfg = read_config(source)
        if options or any(word.lstrip("+~").startswith("hydra") for word in args.overrides):
            keys = plain_secrets(OmegaConf.to_container(cfg, resolve=False))
            refuse_plain(keys, f"Hydra writes or shows all of {source} with these options")
        overrides = _hydra_defaults(args.overrides, cfg) + normalize_overrides(args.overrides, cfg)
    except RagfitError as error:
        sys.exit(for_terminal(error))
    sys.argv = [sys.argv[0], *overrides, *options]

    def task(cfg):
        _task(cfg, source)

    if args.multirun:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what a run raised, and prints no traceback of its own
    try:
        hydra.main(version_base="1.3", config_path=str(source.parent), config_name=source.stem)(task)()
    except RagfitError:
        sys.exit(1)  # it has been said


def _task(composed, source):
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_cfg, cfg, main = HydraConfig.get(), None, os.environ.get("RANK", "0") == "0"
    sweep, folder = hydra_cfg.mode == RunMode.MULTIRUN, hydra_cfg.runtime.output_dir
    try:
        cfg = finish(composed, source)
        if sweep:
            cfg.train.output_dir = folder = str(Path(cfg.train.output_dir, str(hydra_cfg.job.num)))
        run(cfg)
    except Interrupted as error:
        if main:
            print(f"stopped: {error}", file=sys.stderr, flush=True)
        sys.exit(128 + error.signal)
    except RagfitError as error:
        if not sweep:
            sys.exit(for_terminal(error))
        print(for_terminal(error, f"run {hydra_cfg.job.num}: "), file=sys.stderr, flush=True)
        if main and RunStatus(folder).refused(error):  # what the table of runs says of it
            _keep_config(composed if cfg is None else cfg, folder)
        raise  # Hydra goes on with the other runs, and fails at the end


def _config_file(args):
    """Hydra takes -cp as relative to this file; a user means the working directory or the project.

    A name such as paper/training-asqa is a file there, not a config group's option, whose keys would go under `paper`.
    """
    name = f"{(args.config_name or 'training').removesuffix('.yaml')}.yaml"
    if args.config_path:
        return find_path(args.config_path, "--config-path").resolve() / name
    if args.config_dir:
        return find_path(args.config_dir, "--config-dir").resolve() / name
    folders = (Path("configs").resolve(), CONFIGS)
    return next((folder / name for folder in folders if user_path(folder / name, "--config-name").is_file()), folders[1] / name)


def _options(args):
    """The options of a command line as Hydra takes them, without what `_config_file` has read."""
    both = args.config_path and args.config_dir and find_path(args.config_dir, "--config-dir").resolve()
    left = vars(args) | {"overrides": None, "config_name": None, "config_path": None, "config_dir": both}
    return [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in left.items() if value]


def _hydra_defaults(overrides, cfg):
    """Keep Hydra from filling the working directory, unless the user set its folders.

    Hydra sees what is set under `train`; `cfg`, the file alone, has what it says with dots (`train.output_dir: x`) too.
    """
    from omegaconf import OmegaConf

    if any(word.lstrip("+~").startswith(("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")) for word in overrides):
        return []

    def output(folder):
        return os.path.expanduser(folder or OmegaConf.select(cfg, "train.output_dir") or OUTPUT_DIR)

    OmegaConf.register_new_resolver("ragfit_output", output, replace=True)
    sweep = "hydra.sweep.dir='${ragfit_output:${oc.select:train.output_dir,null}}'"  # multirun.yaml beside the runs
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout", sweep]


if __name__ == "__main__":
    main()
