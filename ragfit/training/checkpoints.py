"""Checkpoints on disk: the newest one, whether a run may go on from it, and what is changed when it does.

Beside transformers' own files a checkpoint holds a record: the configuration, a digest of the rows, and how many rows a
step takes. That the base model is the same is seen by what it computes (`ragfit.models.fingerprint`).
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from omegaconf import DictConfig
from transformers import TrainingArguments

from ragfit.config.paths import find_path
from ragfit.config.save import leaves, without_secrets
from ragfit.draw.progress import say
from ragfit.errors import ConfigError
from ragfit.files import move_aside

RECORD, STATE = "ragfit_checkpoint.json", "trainer_state.json"
STAGING = ".saving"  # a folder of checkpoints that are being written
# Keys that say where a run goes and what is seen of it; a change of any other one of `train` or `model` is told.
UNTOLD = re.compile(r"train\.(output_dir|report_to|run_name|project|disable_tqdm|logging_|save_|hub_)")
# What a checkpoint holds is of these; and of the seeds is the order of the rows, some of which would be read twice.
SHAPE = ("train.optim", "model.lora", "train.seed", "train.data_seed", "train.early_stopping")
WITH_MEMORY = {"reduce_lr_on_plateau", "greedy"}  # schedulers whose rate follows from all losses so far


def step_of(folder: str | Path | None) -> int:
    """The N of a folder named `checkpoint-N`; 0 where there is none."""
    number = Path(folder or "").name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else 0


def newest(output_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return max(Path(output_dir).glob("checkpoint-[0-9]*"), key=step_of, default=None)


def resume_path(cfg: DictConfig) -> str | None:
    """The checkpoint that `resume_checkpoint` names, with `true` the newest one; None to start anew."""
    if not (wanted := cfg.get("resume_checkpoint")):
        return None
    folder = newest(cfg.train.output_dir) if str(wanted).lower() == "true" else find_path(wanted, "resume_checkpoint")
    if folder is None:
        say(f"resume_checkpoint: {cfg.train.output_dir} holds no checkpoint, so the run starts anew.")
        return None
    # transformers would start the optimizer anew. DeepSpeed has its state in global_step…, the others in optimizer….
    if not (folder / RECORD).is_file() or not [*folder.glob("optimizer*"), *folder.glob("global_step*")]:
        problem = f"{folder} lacks {RECORD} or the optimizer's state, without which no run can go on"
        fix = "Name another checkpoint, and set train.save_only_model=false in runs to go on from."
        raise ConfigError("resume_checkpoint", problem, fix)
    return str(folder)


def identity(cfg: DictConfig, args: TrainingArguments, rows: Dataset) -> dict[str, Any]:
    """What a run is compared by: its configuration, a digest of its rows in order, and how many a step takes."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=1000):
        for column in (table["input_ids"].combine_chunks(), table["labels"].combine_chunks()):
            for part in (column.value_lengths(), column.flatten()):
                digest.update(part.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {"config": without_secrets(cfg), "rows": digest.hexdigest(), "rows_per_step": per_step}


def changes(folder: str | Path, now: dict[str, Any]) -> dict[str, list]:
    """What a run of identity `now` has other than the one that wrote a checkpoint, after what that had changed before.

    Of each key: (from that step on, its value). Rows, optimizer and the adapter's shape must be the same.
    """
    then = json.loads(Path(folder, RECORD).read_text(encoding="utf-8"))
    before, after = dict(leaves(then["config"])), dict(leaves(now["config"]))
    keys = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    keys = [key for key in keys if key.startswith(("train.", "model.")) and not UNTOLD.match(key)]
    schedulers = {config.get("train.lr_scheduler_type") for config in (before, after)}
    unfit = [key for key in keys if key.startswith(("train.", *SHAPE) if schedulers & WITH_MEMORY else SHAPE)]
    unfit += [what for what in ("rows", "rows_per_step") if then[what] != now[what]]
    if unfit:
        problem = f"{', '.join(unfit)} differs from the run that wrote {folder}, so this run cannot go on from there"
        fix = f"Set it as it was (see {RECORD} there; rows are also their order, template and tokenizer), or start a "
        raise ConfigError("resume_checkpoint", problem, f"{fix}new run from this adapter with model.trained_adapter.")
    step, earlier = step_of(folder), then["changed"]
    return earlier | {key: [*earlier.get(key, [(0, before.get(key))]), (step, after.get(key))] for key in keys}


def set_aside(output_dir: str | Path, resumed: str | Path | None = None) -> None:
    """Move an earlier run's checkpoints into `earlier.N`, so that neither rotation nor a later resume takes them.

    The resumed checkpoint and older ones beside it stay; half-written ones of a killed run are removed.
    """
    output = Path(output_dir)
    shutil.rmtree(output / STAGING, ignore_errors=True)
    stays = step_of(resumed) if resumed and Path(resumed).resolve().parent == output.resolve() else 0
    if old := [path for path in output.glob("checkpoint-*") if path.is_dir() and step_of(path) > stays]:
        move_aside(old, output)
