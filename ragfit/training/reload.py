"""The model of a finished run, loaded again to look at it or to evaluate it."""

import dataclasses
from pathlib import Path

from ragfit.config.explain import explained
from ragfit.config.overrides import override
from ragfit.config.paths import find_existing, find_path
from ragfit.config.trust import load_believed
from ragfit.errors import ConfigError

TUNED = "tuned"  # the name under which a trained adapter is loaded


@explained("Loading the checkpoint")
def load_checkpoint(checkpoint, data_file=None, overrides=()):
    """A trainer with the model of a finished run, to evaluate it.

    Args:
        checkpoint: the folder `checkpoint` of a run.
        data_file: rows to evaluate on instead of the run's own dev set.
        overrides: Hydra overrides of the run's configuration, such as `["model.load_in_8bit=false"]`. What would run code
            (`model.trust_remote_code`, a `model._target_` of one's own) counts only here, not in the checkpoint's file.

    Raises:
        ConfigError: the folder holds no configuration, or whatever loading raises.
    """
    from ragfit.data.prepare import prepare
    from ragfit.models.load import load_model
    from ragfit.training.arguments import training_arguments
    from ragfit.training.reload import load_tuned
    from ragfit.training.trainer import RagfitTrainer
    from ragfit.training.trial import check_vocabulary

    folder = find_path(checkpoint, "checkpoint")
    if not (folder / "ragfit.yaml").is_file():
        raise ConfigError(f"{folder} holds no ragfit.yaml. Name the folder checkpoint of a run's train.output_dir.")
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():  # a run's output folder has a ragfit.yaml too
        raise ConfigError(
            f"{folder} holds no adapter and no model. Name the folder checkpoint of a run's train.output_dir."
        )
    keys = {"train.output_dir": str(folder.parent), "train.disable_tqdm": True}
    if not adapter:  # an earlier adapter is part of these weights
        keys |= {"model.model_name_or_path": str(folder), "model.trained_adapter": None}
    if data_file:
        keys |= {"data_file": str(find_path(data_file, "--data")), "dev_split": None, "limit": None, "shuffle": None}
    cfg = load_believed(folder, [*(override(key, value) for key, value in keys.items()), *overrides])
    prepared = prepare(cfg)
    if data_file:
        prepared.report.dev = prepared.report.train
        prepared = dataclasses.replace(
            prepared, dev=prepared.train, sources={**prepared.sources, "dev": prepared.sources["train"]}
        )
    loaded = load_model(cfg)
    check_vocabulary(loaded.model, prepared)
    trainer = RagfitTrainer(cfg, prepared, loaded, training_arguments(cfg, prepared))
    if adapter:
        load_tuned(trainer, folder)
    return trainer


def load_tuned(trainer, checkpoint=None):
    """Give a trainer's model the adapter of a finished run, to compare it with the base model.

    Args:
        trainer: of `ragfit.build_trainer`.
        checkpoint: the adapter's folder; by default `checkpoint` in `train.output_dir`, if there is one.

    Returns:
        A sentence that says what was done.

    Raises:
        ConfigError: there is no adapter in the folder, or the model takes none.
    """
    from ragfit.models.hf import load_adapter

    folder = find_path(checkpoint, "checkpoint") if checkpoint else _last_run(trainer.cfg)
    if folder is None:
        return "There is no trained adapter yet: these are the losses of the base model. Run train.ipynb, or set checkpoint."
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"checkpoint: {folder} holds no adapter. Name the folder checkpoint of a run's train.output_dir."
        )
    model = trainer.model
    if not hasattr(model, "load_adapter") or not hasattr(model, "disable_adapter"):
        raise ConfigError(
            f"checkpoint: {folder} is an adapter, but model.lora is empty. Set model.lora, or leave checkpoint empty."
        )
    if TUNED in model.peft_config:
        model.set_adapter(next(name for name in model.peft_config if name != TUNED))
        model.delete_adapter(TUNED)
    load_adapter(model, folder, lambda reason: ConfigError(
        "checkpoint",
        f"the adapter in {folder} does not fit {trainer.cfg.model.model_name_or_path}: {reason}",
        "Name an adapter of this model.",
    ), TUNED)  # fmt: skip
    model.set_adapter(TUNED)
    return f"The tuned model is the base model with the adapter in {folder}."


def _last_run(cfg):
    folder = find_existing(Path(cfg.train.output_dir, "checkpoint"))
    return folder if folder and (folder / "adapter_config.json").is_file() else None
