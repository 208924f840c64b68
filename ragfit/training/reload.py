"""The model of a finished run, loaded again to look at it or to evaluate it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from peft import PeftModel

from ragfit.config.explain import explained
from ragfit.config.overrides import override
from ragfit.config.paths import PathText, find_path
from ragfit.config.trust import load_believed
from ragfit.data.prepare import prepare
from ragfit.errors import ConfigError
from ragfit.evaluation.results import ROWS, other_keys
from ragfit.models.adapter import load_adapter
from ragfit.models.fingerprint import check
from ragfit.models.load import load_model
from ragfit.training.arguments import training_arguments
from ragfit.training.trainer import RagfitTrainer

TUNED = "tuned"  # the name under which a trained adapter is loaded


@explained("Loading the checkpoint")
def load_checkpoint(checkpoint: PathText, data_file: PathText = "", overrides: Sequence[str] = ()) -> RagfitTrainer:
    """A trainer with the model of a finished run, to evaluate it.

    Args:
        checkpoint: the folder `checkpoint` of a run.
        data_file: rows to evaluate on instead of the run's own dev set.
        overrides: Hydra overrides of the run's configuration, such as `["model.load_in_8bit=false"]`. What would run
            code (`model.trust_remote_code`, a `model._target_` of one's own) counts only here, not in the checkpoint.

    Raises:
        ConfigError: the folder holds no run, or its base or adapter computes something else than at the run's end.
    """
    folder = find_path(checkpoint, "checkpoint")
    if not any(folder.glob("*.safetensors")):  # a run's output folder, whose configuration would be taken
        raise ConfigError("checkpoint", f"{folder} holds no adapter and no model", "Name a run's folder checkpoint.")
    adapter = (folder / "adapter_config.json").is_file()
    # Figures of a run go beside its checkpoint, of any other adapter into it. Nothing is trained, so nothing is packed.
    keys = {"train.output_dir": str(folder.parent if folder.name == "checkpoint" else folder), "train.packing": None}
    if not adapter:  # an earlier adapter is part of these weights
        keys |= {"model.model_name_or_path": str(folder), "model.trained_adapter": None}
    if data_file:
        keys |= {"data_file": str(find_path(data_file, "--data")), "dev_split": None, "limit": None, "shuffle": None}
    cfg = load_believed(folder, [*(override(key, value) for key, value in keys.items()), *overrides])
    prepared = prepare(cfg)
    if data_file:
        prepared.report.dev, sources = prepared.report.train, prepared.sources | {"dev": prepared.sources["train"]}
        prepared = dataclasses.replace(prepared, dev=prepared.train, sources=sources)
    trainer = RagfitTrainer(cfg, prepared, load_model(cfg), training_arguments(cfg, prepared))
    load_tuned(trainer, folder) if adapter else check(folder, trainer.model, "tuned")
    return trainer


def load_tuned(trainer: RagfitTrainer, checkpoint: str | Path | None = None) -> str:
    """Give a trainer's model the adapter of a finished run, to compare it with the base model; a sentence says so.

    By default it is `checkpoint` in `train.output_dir`, where its run had the rows and the base of this trainer. A
    ConfigError where base or adapter computes something else than at the end of the run.
    """
    folder = find_path(checkpoint, "checkpoint") if checkpoint else Path(trainer.args.output_dir, "checkpoint")
    if not checkpoint and not (folder / "adapter_config.json").is_file():
        return "There is no trained adapter yet: these are the base model's losses."
    if not checkpoint and (other := other_keys(trainer, folder / "ragfit.yaml", (*ROWS, "model.model_name_or_path"))):
        return f"The adapter in {folder} is of a run with other {', '.join(other)}: these are the base model's losses."
    if not isinstance(trainer.model, PeftModel):
        raise ConfigError("checkpoint", f"{folder} is an adapter, but model.lora is empty", "Set model.lora.")
    load_adapter(trainer.model, folder, "checkpoint", TUNED)
    trainer.model.set_adapter(TUNED)
    check(folder, trainer.model, "base")
    check(folder, trainer.model, "tuned")
    return f"The tuned model is the base model with the adapter in {folder}."


def figures_folder(trainer: RagfitTrainer) -> str | Literal[False]:
    """Where the figures of a loaded run go: its own folder; False, so nowhere, where a new adapter was made instead."""
    whole = trainer.cfg.model.model_name_or_path == str(Path(trainer.args.output_dir, "checkpoint"))
    return trainer.args.output_dir if whole or TUNED in getattr(trainer.model, "peft_config", ()) else False
