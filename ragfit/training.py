"""The run: from a configuration to a trained adapter, in a notebook or from the command line.

    python -m ragfit.training -cp configs/paper -cn training-asqa data_file=rows.jsonl output_key=answers

The command line takes every Hydra override, `--multirun` and `--help`; the notebook calls the same functions.
"""

import copy
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import ragfit.quiet  # noqa: F401  (before the libraries it quiets)
from ragfit.config import PROJECT_ROOT, find_path, finish, normalize_overrides, read_config, save_config
from ragfit.errors import ConfigError, RagfitError
from ragfit.preparation import prepare

logger = logging.getLogger(__name__)


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

    from ragfit.hub import check_tag
    from ragfit.trainer import RagfitTrainer, training_arguments
    from ragfit.views.curve import loss_curve

    resume_path(cfg)
    if cfg.get("hfhub_tag"):
        check_tag(cfg.hfhub_tag)
    args = training_arguments(cfg, prepared)
    check_writable(args.output_dir)
    set_seed(args.seed)  # the adapter's weights are drawn while the model loads
    loaded = load_model(cfg)
    check_vocabulary(loaded.model, prepared)
    try:
        trainer = RagfitTrainer(cfg, prepared, loaded, args, callbacks=[loss_curve(), *callbacks])
    except (ValueError, ImportError) as error:
        raise ConfigError(f"train: TRL refuses this run: {error}. Change the key it names.") from error
    # One live display instead of transformers' bar and its printed dictionaries.
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    try:
        from transformers.utils.notebook import NotebookProgressCallback

        trainer.remove_callback(NotebookProgressCallback)
    except ImportError:
        pass
    return trainer


def load_model(cfg):
    """Make the object that `model._target_` names from the other keys of `model`.

    Returns:
        an object with the attributes `model` and `tokenizer`, such as `ragfit.models.hf.HFTrain`.
    """
    import hydra
    from hydra.utils import get_class, instantiate
    from omegaconf import OmegaConf

    # The keys go in as plain values: `instantiate` would resolve text with ${…} in it a second time.
    keys = OmegaConf.to_container(cfg.model, resolve=True)
    target = keys.pop("_target_")
    try:
        made = {k: instantiate(v) if isinstance(v, dict) and "_target_" in v else v for k, v in keys.items()}
        loaded = get_class(target)(**made)
    except RagfitError:
        raise
    except (ImportError, TypeError, ValueError, hydra.errors.HydraException) as error:
        raise ConfigError(
            f"model._target_: {target} could not be made from the keys of model: {error}. "
            "Check the class's name and the keys it takes."
        ) from error
    for attribute in ("model", "tokenizer"):
        if not hasattr(loaded, attribute):
            raise ConfigError(
                f"model._target_: {cfg.model._target_} has no attribute {attribute!r}. A model class needs model and tokenizer."
            )
    return loaded


def check_vocabulary(model, prepared):
    """Ids beyond the embedding would crash in the middle of a run (on CUDA without a readable message)."""
    size = model.get_input_embeddings().num_embeddings
    if len(prepared.tokenizer) > size:
        parts = [part for part in (prepared.train, prepared.dev) if part is not None]
        highest = max(max(ids) for part in parts for ids in part["input_ids"])
        if highest >= size:
            raise ConfigError(
                f"The rows hold the token id {highest}, but the model's embedding has {size} rows. "
                "Set model.model_name_or_path so that tokenizer and model belong together."
            )


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

    Raises:
        ConfigError: `resume_checkpoint` names no checkpoint, or is true and there is none yet.
    """
    wanted = cfg.get("resume_checkpoint")
    if wanted in (None, False, ""):
        return None
    if wanted is True or str(wanted).lower() == "true":
        from ragfit.trainer import OUTPUT_DIR

        folder = cfg.train.get("output_dir") or OUTPUT_DIR
        # The state is written last: without it, the run was killed while it saved that checkpoint.
        states = Path(folder).glob("checkpoint-*/trainer_state.json")
        whole = {int(number): state.parent for state in states if (number := state.parent.name.partition("-")[2]).isdigit()}
        if not whole:
            raise ConfigError(
                f"resume_checkpoint is true, but {folder} holds no checkpoint. "
                "Set train.save_steps so that one is written, or leave resume_checkpoint empty to start anew."
            )
        return str(whole[max(whole)])
    folder = find_path(wanted, "resume_checkpoint")
    if not (folder / "trainer_state.json").is_file():
        raise ConfigError(
            f"resume_checkpoint: {folder} is no checkpoint of a run (it has no trainer_state.json). "
            "Name a folder such as trained_models/checkpoint-100, or true for the newest."
        )
    return str(folder)


def train(trainer):
    """Train, save and, where `hfhub_tag` is set, push.

    Args:
        trainer: of `build_trainer`.

    Returns:
        Path of the folder `checkpoint` with adapter, tokenizer, resolved configuration and instruction.
    """
    from ragfit.tracking import tracked

    cfg = trainer.cfg
    with tracked(cfg, trainer):
        trainer.train(resume_from_checkpoint=resume_path(cfg))
        folder = None
        if trainer.is_world_process_zero():
            folder = save_checkpoint(trainer)
        if cfg.get("hfhub_tag") and folder:
            from ragfit.hub import push

            push(folder, cfg.hfhub_tag, cfg.train.get("hub_token"))
    return folder


def save_checkpoint(trainer):
    """Write `output_dir/checkpoint`, whole or not at all; an earlier one is kept as `checkpoint.1`, `checkpoint.2`, …"""
    cfg, prepared = trainer.cfg, trainer.prepared
    output = Path(trainer.args.output_dir)
    target = output / "checkpoint"
    part = Path(tempfile.mkdtemp(prefix="checkpoint.part-", dir=output))
    try:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(part)
        prepared.tokenizer.save_pretrained(part)
        save_config(_without_secrets(cfg), part / "ragfit.yaml")
        (part / "instruction.txt").write_text(prepared.instruction, encoding="utf-8")
        if prepared.renderer.template is not None:
            (part / "template.txt").write_text(prepared.renderer.template, encoding="utf-8")
        if target.exists():
            number = 1
            while (output / f"checkpoint.{number}").exists():
                number += 1
            target.rename(output / f"checkpoint.{number}")
            logger.info("Kept the earlier %s as checkpoint.%d", target, number)
        part.chmod(0o755)  # mkdtemp's folders are the owner's alone; a shared cluster needs this one readable
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return target


def _without_secrets(cfg):
    """The configuration as it may be pushed to a hub."""
    shown = copy.deepcopy(cfg)
    shown.train.pop("hub_token", None)
    return shown


def run(cfg):
    """The whole run of the command line: prepare, look, train, save. Returns the checkpoint's folder."""
    from ragfit.answers import dev_loss
    from ragfit.resources import preflight

    prepared = prepare(cfg)
    print(prepared.report, flush=True)
    trainer = build_trainer(cfg, prepared)
    if trainer.is_world_process_zero():
        print(preflight(trainer), flush=True)
    folder = train(trainer)
    if prepared.dev is not None and trainer.args.eval_strategy == "no":
        loss = dev_loss(trainer)
        if trainer.is_world_process_zero():
            print(f"dev loss {loss:.4f}", flush=True)
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
        overrides = _hydra_defaults(args.overrides) + normalize_overrides(args.overrides, read_config(source))
    except RagfitError as error:
        sys.exit(f"error: {error}")
    sys.argv = [sys.argv[0], *overrides, *rest]

    def task(cfg):
        _task(cfg, source)

    hydra.main(version_base="1.3", config_path=str(source.parent), config_name=source.stem)(task)()


def _task(cfg, source):
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    try:
        cfg = finish(cfg, source)
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.mode == RunMode.MULTIRUN:
            from ragfit.trainer import OUTPUT_DIR

            cfg.train.output_dir = str(Path(cfg.train.get("output_dir") or OUTPUT_DIR, str(hydra_cfg.job.num)))
        run(cfg)
    except RagfitError as error:
        sys.exit(f"error: {error}")


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


def _hydra_defaults(overrides):
    """Keep Hydra from filling the working directory, unless the user set its folders."""
    if any(word.lstrip("+~").startswith("hydra.") for word in overrides):
        return []
    sweep = "hydra.sweep.dir='${oc.select:train.output_dir,./trained_models}'"  # multirun.yaml beside the runs
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout", sweep]


if __name__ == "__main__":
    main()
