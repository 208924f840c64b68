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
from ragfit.config import PROJECT_ROOT, find_path, finish, normalize_overrides, read_config, save_config, without_secrets
from ragfit.errors import ConfigError, Interrupted, RagfitError, explained, first_line, for_terminal
from ragfit.preparation import prepare
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
    from omegaconf import OmegaConf
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
        config = OmegaConf.to_container(without_secrets(cfg), resolve=True)
        check_same_run(resume_from, config, rows_digest(prepared.train), rows_per_step(args))
    status = RunStatus(args.output_dir, [cfg.train.get("hub_token")], resume_from, write=args.process_index == 0)
    status.refuse_if_taken()
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
        _keep_config(cfg, args)
        raise


def _keep_config(cfg, args):
    if args.process_index == 0:
        with contextlib.suppress(OSError):
            save_config(without_secrets(cfg), Path(args.output_dir, "ragfit.yaml"))


def load_model(cfg):
    """Make the object that `model._target_` names from the other keys of `model`.

    Returns:
        an object with the attributes `model` and `tokenizer`, such as `ragfit.models.hf.HFTrain`.
    """
    import hydra
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    # The keys go in as plain values: `instantiate` would resolve text with ${…} in it a second time.
    keys = OmegaConf.to_container(cfg.model, resolve=True)
    target = keys.pop("_target_")
    make = _class(target)
    try:
        made = {k: instantiate(v) if isinstance(v, dict) and "_target_" in v else v for k, v in keys.items()}
        loaded = make(**made)
    except RagfitError:
        raise
    except (ImportError, TypeError, ValueError, hydra.errors.HydraException) as error:
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
        Path(output_dir).mkdir(parents=True, exist_ok=True)
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
        from ragfit.trainer import OUTPUT_DIR

        folder = cfg.train.get("output_dir") or OUTPUT_DIR
        found, skipped = newest(folder)
        for sentence in skipped:
            logger.warning("resume_checkpoint: %s", sentence)
        if found:
            return str(found)
        facts = read(folder) or {}
        if not skipped and facts.get("state") in ("running", "interrupted", "failed") and not facts.get("last_checkpoint"):
            logger.warning("resume_checkpoint: the run in %s ended before its first checkpoint, so it starts anew.", folder)
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
        RagfitError: the trainer has trained already, or a checkpoint could not be saved.
    """
    from ragfit.stopping import StopSignals
    from ragfit.tracking import tracked

    cfg, status = trainer.cfg, trainer.status
    if trainer.state.global_step:
        raise RagfitError(
            f"This trainer has trained already, to step {trainer.state.global_step}. Make a new one with ragfit.build_trainer "
            "(in the notebook: run from the cell with `trainer = None`); resume_checkpoint=true goes on from the newest checkpoint."
        )
    status.refuse_if_taken()
    with status.outcome(), explained("The run"), contextlib.ExitStack() as stack:
        before = status.begin()
        _keep_config(cfg, trainer.args)
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

    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = get_args_parser().parse_intermixed_args(argv)  # overrides may stand on both sides of an option
        source = _config_file(args)
        rest = _without_overrides(argv, args.overrides)
        if args.multirun:
            _no_secrets(args.overrides)
        overrides = _hydra_defaults(args.overrides) + normalize_overrides(args.overrides, read_config(source))
    except RagfitError as error:
        sys.exit(for_terminal(error))
    sys.argv = [sys.argv[0], *overrides, *rest]

    def task(cfg):
        _task(cfg, source)

    if args.multirun:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what a run raised, and prints no traceback of its own
    try:
        hydra.main(version_base="1.3", config_path=str(source.parent), config_name=source.stem)(task)()
    except RagfitError:
        sys.exit(1)  # it has been said


def _task(cfg, source):
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_cfg = HydraConfig.get()
    try:
        cfg = finish(cfg, source)
        if hydra_cfg.mode == RunMode.MULTIRUN:
            from ragfit.trainer import OUTPUT_DIR

            cfg.train.output_dir = str(Path(cfg.train.get("output_dir") or OUTPUT_DIR, str(hydra_cfg.job.num)))
        run(cfg)
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped: {error}", file=sys.stderr, flush=True)
        sys.exit(128 + error.signal)
    except RagfitError as error:
        if hydra_cfg.mode == RunMode.MULTIRUN:
            print(for_terminal(error, f"run {hydra_cfg.job.num}: "), file=sys.stderr, flush=True)
            raise  # Hydra goes on with the other runs, and fails at the end
        sys.exit(for_terminal(error))


def _config_file(args):
    """Hydra takes -cp as relative to this file; a user means the working directory or the project.

    A name such as paper/training-asqa is a file there, not a config group's option, whose keys would go under `paper`.
    """
    name = f"{(args.config_name or 'training').removesuffix('.yaml')}.yaml"
    if args.config_path:
        return find_path(args.config_path, "--config-path").resolve() / name
    if args.config_dir:
        return find_path(args.config_dir, "--config-dir").resolve() / name
    folders = (Path("configs").resolve(), PROJECT_ROOT / "configs")
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[1] / name)


def _without_overrides(argv, overrides):
    """The options of a command line, less the overrides and the config path, which were read already."""
    rest, skip = [], False
    left = list(overrides)
    for word in argv:
        if skip:
            skip = False
        elif word in ("-cp", "--config-path", "-cn", "--config-name"):
            skip = True
        elif word.startswith(("--config-path=", "--config-name=")):
            pass
        elif word in left:
            left.remove(word)
        else:
            rest.append(word)
    return rest


def _no_secrets(overrides):
    """A sweep's overrides are written into multirun.yaml, which nobody thinks of when the folder is shared."""
    for key in plain_secrets(overrides):
        raise ConfigError(f"{key}: --multirun writes its overrides to multirun.yaml. Give a token through hf auth login, or as {key}='${{oc.env:NAME}}'.")


def _hydra_defaults(overrides):
    """Keep Hydra from filling the working directory, unless the user set its folders."""
    from omegaconf import OmegaConf

    if any(word.lstrip("+~").startswith(("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")) for word in overrides):
        return []
    OmegaConf.register_new_resolver("ragfit_output", lambda folder: folder or "./trained_models", replace=True)
    sweep = "hydra.sweep.dir='${ragfit_output:${oc.select:train.output_dir,null}}'"  # multirun.yaml beside the runs
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout", sweep]


if __name__ == "__main__":
    main()
