"""Checkpoints on disk: which are whole, which is the newest, and whether a run may go on from one.

A checkpoint is written under another name, recorded, and renamed: `checkpoint-N` is whole or not there. The record
holds what transformers' own files do not: the sizes of the files, the configuration and a digest of the rows.
Checkpoints that plain transformers wrote have none; they are read from end to end instead.
"""

import hashlib
import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfit.config.paths import find_path
from ragfit.config.save import leaves
from ragfit.draw.progress import say
from ragfit.errors import ConfigError, first_line
from ragfit.files import move_aside, sync
from ragfit.runs.status import read

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig

logger = logging.getLogger(__name__)

RECORD = "ragfit_checkpoint.json"
STAGING = ".saving"  # a folder of checkpoints that are being written
STATE = "trainer_state.json"
# Keys that say where a run goes and what is seen of it, not what is learned. What chooses and renders the rows is
# compared by the rows themselves.
KEYS_THAT_MAY_CHANGE = (
    "resume_checkpoint", "hfhub_tag", "use_wandb", "experiment", "wandb_entity", "translated", "data_file",
    "input_key", "output_key", "instruction", "template", "limit", "shuffle", "dev_split", "model.generation",
    "model.completion_start", "model.instruction_in_prompt", "model.max_sequence_len", "model.over_length",
    "train.output_dir", "train.report_to", "train.run_name", "train.project", "train.logging_", "train.save_",
    "train.hub_", "train.disable_tqdm",
)  # fmt: skip


def step_of(folder: str | Path) -> int | None:
    """The N of a folder named `checkpoint-N`, or None."""
    prefix, _, number = Path(folder).name.partition("-")
    return int(number) if prefix == "checkpoint" and number.isdecimal() else None


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N` of a run, the newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=step_of, reverse=True)


def newest(output_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that a run can go on from, and a sentence for each newer one that was skipped, and why."""
    skipped = []
    for folder in checkpoints(output_dir):
        reason = why_not_resumable(folder)
        if reason is None:
            return folder, skipped
        skipped.append(f"{folder} is skipped: {reason}")
    return None, skipped


def why_not_resumable(folder: str | Path) -> str | None:
    """Why a run cannot go on from a checkpoint, in half a sentence, or None where it can.

    Files with tensors are read the way Trainer reads them: safely, so that a pickle that runs code is an error here.
    """
    import torch
    from safetensors import safe_open
    from transformers import TrainerState
    from transformers.trainer_pt_utils import safe_globals

    folder = Path(folder)
    try:
        TrainerState.load_from_json(str(folder / STATE))
        recorded = record(folder).get("files", {})
    except FileNotFoundError:
        return f"it has no {STATE}"
    except (ValueError, KeyError, TypeError):
        return f"{STATE} or {RECORD} is cut short"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    for name, size in recorded.items():
        has = (folder / name).stat().st_size if (folder / name).is_file() else None
        if has != size:
            return f"{name} is missing" if has is None else f"{name} has {has:,} of {size:,} bytes"
    names = {path.name for path in folder.iterdir()}
    shards = any(path.is_dir() for path in folder.iterdir())  # what DeepSpeed and FSDP write, in folders of their own
    if not any(name.endswith((".safetensors", "_model.bin")) for name in names) and not shards:
        return "it has no weights"
    if not {"optimizer.pt", "scheduler.pt"} <= names and not shards:
        return "it has no optimizer.pt and scheduler.pt, without which training cannot go on (train.save_only_model)"
    for name in sorted(names - {"training_args.bin"}):  # that one is a pickle, and nobody reads it
        path = folder / name
        try:
            if name.endswith(".safetensors"):
                with safe_open(path, "pt"):
                    pass
            elif name.endswith((".pt", ".pth", ".bin")):
                with safe_globals():  # torch maps only the format that it writes today, which is a zip
                    torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # what is met in a damaged or poisoned file has no common class
            return f"{name} cannot be read as tensors alone, and was not loaded ({first_line(error)})"
    return None


# The record.


def record(folder: str | Path) -> dict[str, Any]:
    """What this kit wrote beside transformers' files, as a dict; empty where it did not write the checkpoint."""
    path = Path(folder) / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def rows_digest(dataset: "Dataset") -> str:
    """A digest of the token ids and labels of a `datasets.Dataset`, in order."""
    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        for name in ("input_ids", "labels"):
            column = table[name].combine_chunks()
            for part in (column.value_lengths(), column.flatten()):
                digest.update(part.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def publish(staged: Path, target: Path, facts: dict[str, Any]) -> None:
    """Record `facts` of a staged checkpoint and give it its name: whole, and on the disk, or not at all.

    What has the name already is set aside.
    """
    files = {str(path.relative_to(staged)): path.stat().st_size for path in sorted(staged.rglob("*")) if path.is_file()}
    (staged / RECORD).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n", encoding="utf-8")
    sync(staged)
    if target.exists():
        move_aside([target], target.parent)
    staged.rename(target)
    sync(target.parent, deep=False)
    shutil.rmtree(staged.parent, ignore_errors=True)


# Going on, and starting anew.


def check_same_run(folder: str | Path, cfg: dict, rows: str, rows_per_step: int) -> None:
    """Compare a run with the one that wrote a checkpoint.

    Args:
        cfg: the configuration as plain values, without secrets.
        rows: `rows_digest` of the training rows.
        rows_per_step: rows of one optimizer step, over all processes.

    Raises:
        ConfigError: the rows differ (the place in them is a number of batches), or the base model, the optimizer, or
            the adapter's shape and scale do. Other differences are warned of.
    """
    facts = record(folder)
    if not facts:
        logger.warning(
            "resume_checkpoint: this kit did not write %s, so whether its rows and settings are the same is not known.",
            folder,
        )
        return
    as_it_was = (
        f"as it was (see {Path(folder, RECORD)}). To train this adapter further on something else, start a new run "
        f"with model.trained_adapter={folder}."
    )
    if facts["rows"] != rows:
        raise ConfigError(
            "resume_checkpoint",
            f"{folder} was made from other rows (their order, text, packing, template or tokenizer differs), so the "
            "place to go on from is not known",
            f"Set what chooses and renders the rows {as_it_was}",
        )
    before, now = dict(leaves(facts["config"])), dict(leaves(cfg))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    changed = [key for key in changed if not key.startswith(KEYS_THAT_MAY_CHANGE)]
    if unfit := [key for key in changed if _must_fit(key, before.get(key), now.get(key))]:
        raise ConfigError(
            "resume_checkpoint",
            f"{', '.join(unfit)} differs from the run that wrote {folder}, whose adapter and optimizer's state would "
            "not fit this run",
            f"Set it {as_it_was}",
        )
    if changed:
        logger.warning(
            "resume_checkpoint: %s differs from the run that wrote %s; the run goes on with the new value, and is not "
            "what an uninterrupted run would have been.", ", ".join(changed), folder,
        )  # fmt: skip
    if facts["rows_per_step"] != rows_per_step:
        logger.warning(
            "resume_checkpoint: a step takes %s rows, in the run that wrote %s it took %s, so some rows are seen twice "
            "or not at all. Set train.per_device_train_batch_size, train.gradient_accumulation_steps and the number of "
            "processes as they were.",
            rows_per_step, folder, facts["rows_per_step"],
        )  # fmt: skip


def _must_fit(key: str, before: Any, now: Any) -> bool:
    """Whether the adapter or the optimizer's state would not fit, or mean something else, with a new value."""
    if key in ("model.model_name_or_path", "model.trained_adapter"):
        return Path(str(before)).name != Path(str(now)).name  # a folder that has only moved keeps its name
    return key == "train.optim" or key.startswith("model.lora") and key != "model.lora.lora_dropout"


def set_aside(output_dir: str | Path, resumed: str | Path | None = None) -> None:
    """Move what an earlier run left into `output_dir/earlier.N`, so that neither rotation nor a later resume takes it.

    What the run goes on from stays: the resumed checkpoint and older ones beside it. Half-written checkpoints of a
    killed run are removed.
    """
    output = Path(output_dir)
    for path in (output / STAGING).glob("*"):
        say(f"{path.name} was half-written when an earlier run ended; it is removed.")
    shutil.rmtree(output / STAGING, ignore_errors=True)
    resumed = Path(resumed).resolve() if resumed else None
    stays = step_of(resumed) if resumed is not None and resumed.parent == output.resolve() else None
    old = [path for path in checkpoints(output) if stays is None or step_of(path) > stays]
    old += output.glob("checkpoint.part-*")  # an adapter that a kill kept from its name
    if old:
        move_aside(old, output)


def resume_path(cfg: "DictConfig") -> str | None:
    """The checkpoint to go on from: a folder, or None to start anew.

    With `resume_checkpoint=true` it is the newest whole one, and those that were skipped are named. Where a run has
    begun but was ended before its first checkpoint, nothing is lost, and it starts anew.

    Raises:
        ConfigError: `resume_checkpoint` names no whole checkpoint, or is true and there is none.
    """
    wanted = cfg.get("resume_checkpoint")
    if wanted in (None, False, ""):
        return None
    if str(wanted).lower() != "true":
        folder = find_path(wanted, "resume_checkpoint")
        if reason := why_not_resumable(folder):
            raise ConfigError(
                "resume_checkpoint",
                f"a run cannot go on from {folder}: {reason}",
                "Name another folder, such as trained_models/checkpoint-100, or true for the newest that is whole.",
            )
        return str(folder)
    output = cfg.train.output_dir
    found, skipped = newest(output)
    for sentence in skipped:
        logger.warning("resume_checkpoint: %s", sentence)
    if found:
        return str(found)
    facts = read(output) or {}
    ended = facts.get("state") in ("running", "interrupted", "failed") and not facts.get("last_checkpoint")
    if ended and not skipped:
        say(f"resume_checkpoint: the run in {output} ended before its first checkpoint, so it starts anew.")
        return None
    raise ConfigError(
        "resume_checkpoint",
        f"{output} holds no checkpoint" + (f" that is whole ({'; '.join(skipped)})" if skipped else ""),
        "Set train.save_steps so that one is written, or leave resume_checkpoint empty to start anew.",
    )
