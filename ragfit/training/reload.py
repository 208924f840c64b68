"""The model of a finished run, loaded again to look at it or to evaluate it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragfit.config.explain import explained
from ragfit.config.overrides import override
from ragfit.config.paths import find_existing, find_path
from ragfit.config.trust import load_believed
from ragfit.errors import ConfigError
from ragfit.evaluation.results import ROWS, other_keys

if TYPE_CHECKING:
    from ragfit.training.trainer import RagfitTrainer

TUNED = "tuned"  # the name under which a trained adapter is loaded
NAME_IT = "Name the folder checkpoint of a run's train.output_dir."


@explained("Loading the checkpoint")
def load_checkpoint(
    checkpoint: str | Path, data_file: str | Path | None = None, overrides: Sequence[str] = ()
) -> "RagfitTrainer":
    """A trainer with the model of a finished run, to evaluate it.

    Args:
        checkpoint: the folder `checkpoint` of a run.
        data_file: rows to evaluate on instead of the run's own dev set.
        overrides: Hydra overrides of the run's configuration, such as `["model.load_in_8bit=false"]`. What would run
            code (`model.trust_remote_code`, a `model._target_` of one's own) counts only here, not in the checkpoint.

    Raises:
        ConfigError: the folder holds no run, or its base or adapter computes something else than at the run's end.
    """
    from ragfit.data.prepare import prepare
    from ragfit.models.fingerprint import check
    from ragfit.models.load import load_model
    from ragfit.training.arguments import training_arguments
    from ragfit.training.trainer import RagfitTrainer

    folder = find_path(checkpoint, "checkpoint")
    adapter = (folder / "adapter_config.json").is_file()
    # A run's output folder has a ragfit.yaml too, but neither an adapter nor a model.
    if not (folder / "ragfit.yaml").is_file() or not adapter and not (folder / "config.json").is_file():
        raise ConfigError("checkpoint", f"{folder} holds no adapter or model with a ragfit.yaml", NAME_IT)
    keys = {"train.output_dir": str(folder.parent)}
    if not adapter:  # an earlier adapter is part of these weights
        keys |= {"model.model_name_or_path": str(folder), "model.trained_adapter": None}
    if data_file:
        keys |= {"data_file": str(find_path(data_file, "--data")), "dev_split": None, "limit": None, "shuffle": None}
    cfg = load_believed(folder, [*(override(key, value) for key, value in keys.items()), *overrides])
    cfg.train.packing = None  # nothing is trained, so nothing is packed
    prepared = prepare(cfg)
    if data_file:
        prepared.report.dev = prepared.report.train
        sources = {**prepared.sources, "dev": prepared.sources["train"]}
        prepared = dataclasses.replace(prepared, dev=prepared.train, sources=sources)
    trainer = RagfitTrainer(cfg, prepared, load_model(cfg), training_arguments(cfg, prepared))
    if adapter:
        load_tuned(trainer, folder)
    else:
        check(folder, trainer.model, "tuned")
    return trainer


def load_tuned(trainer: "RagfitTrainer", checkpoint: str | Path | None = None) -> str:
    """Give a trainer's model the adapter of a finished run, to compare it with the base model.

    Args:
        checkpoint: the adapter's folder; by default `checkpoint` in `train.output_dir`, where its run had the rows and
            the base of this trainer.

    Returns:
        A sentence that says what was done.

    Raises:
        ConfigError: there is no adapter in the folder, the model takes none, or base or adapter computes something else
            than at the end of the run.
    """
    from peft import PeftModel

    from ragfit.models.adapter import load_adapter
    from ragfit.models.fingerprint import check

    own, model = Path(trainer.cfg.train.output_dir, "checkpoint"), trainer.model
    if checkpoint:
        folder = find_path(checkpoint, "checkpoint")
        if not (folder / "adapter_config.json").is_file():
            raise ConfigError("checkpoint", f"{folder} holds no adapter", NAME_IT)
    else:
        folder, only = find_existing(own), "these are the losses of the base model."
        if folder is None or not all((folder / name).is_file() for name in ("adapter_config.json", "ragfit.yaml")):
            return f"There is no trained adapter yet: {only} Run train.ipynb, or set checkpoint."
        if other := other_keys(trainer, folder / "ragfit.yaml", (*ROWS, "model.model_name_or_path")):
            return f"The adapter in {folder} is of a run with other {', '.join(other)}, so it is not taken: {only}"
    if not isinstance(model, PeftModel):
        fix = "Set model.lora, or leave checkpoint empty."
        raise ConfigError("checkpoint", f"{folder} is an adapter, but model.lora is empty", fix)
    if TUNED in model.peft_config:
        model.set_adapter(next(name for name in model.peft_config if name != TUNED))
        model.delete_adapter(TUNED)
    load_adapter(model, folder, "checkpoint", TUNED)
    model.set_adapter(TUNED)
    check(folder, model, "base")
    check(folder, model, "tuned")
    return f"The tuned model is the base model with the adapter in {folder}."


def figures_folder(trainer: "RagfitTrainer") -> str | Literal[False]:
    """Where the figures of a loaded run go: its own folder; False, so nowhere, where a new adapter was made instead."""
    folder = trainer.args.output_dir
    whole = trainer.cfg.model.model_name_or_path == str(Path(folder, "checkpoint"))  # all weights were trained
    return folder if whole or TUNED in getattr(trainer.model, "peft_config", ()) else False
