"""Checkpoints on disk: the newest one, whether a run may go on from it, and what is changed when it does.

A checkpoint is written under another name and renamed, so `checkpoint-N` is whole or not there. Beside transformers'
own files it holds a record: the configuration, a digest of the rows, and how many rows a step takes. That the base
model is the same is seen by what it computes (`ragfit.models.fingerprint`).
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import get_last_checkpoint

from ragfit.config.paths import find_path
from ragfit.config.save import leaves
from ragfit.draw.progress import say
from ragfit.errors import ConfigError
from ragfit.files import move_aside, sync
from ragfit.runs.status import read, to_json

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

RECORD, STATE = "ragfit_checkpoint.json", "trainer_state.json"
STAGING = ".saving"  # a folder of checkpoints that are being written
# The keys whose change is told: what is learned and how. Rows and base model are compared by themselves, and the other
# keys say where a run goes and what is seen of it.
TOLD = ("train.", "model.lora", "model.dtype", "model.torch_dtype", "model.load_in_", "model.attn_implementation")
UNTOLD = (
    "train.output_dir", "train.report_to", "train.run_name", "train.project", "train.logging_", "train.save_",
    "train.hub_", "train.disable_tqdm", "train.stop_on_nan",
)  # fmt: skip
# Of the optimizer's state and the adapter; and the order of the rows, some of which would be read twice.
SHAPE = ("train.optim", "model.lora", "train.seed", "train.data_seed")
RATES = ("train.learning_rate", "train.lr_scheduler", "train.warmup", "train.num_train_epochs", "train.max_steps")
WITH_MEMORY = {"reduce_lr_on_plateau", "greedy"}  # schedulers whose rate follows from all losses so far


def step_of(folder: str | Path | None) -> int:
    """The N of a folder named `checkpoint-N`; 0 where there is none."""
    number = Path(folder or "").name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else 0


def newest(output_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    found = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    return Path(found) if found else None


def resume_path(cfg: "DictConfig") -> str | None:
    """The checkpoint to go on from: a folder, or None to start anew.

    With `resume_checkpoint=true` it is the newest one. Where a run has begun but was ended before its first checkpoint,
    nothing is lost, and it starts anew.

    Raises:
        ConfigError: there is no such checkpoint, or it has no optimizer's state.
    """
    wanted, output = cfg.get("resume_checkpoint"), cfg.train.output_dir
    if wanted in (None, False, ""):
        return None
    folder = newest(output) if str(wanted).lower() == "true" else find_path(wanted, "resume_checkpoint")
    if folder is None:
        if (read(output) or {"state": "finished"})["state"] != "finished":
            say(f"resume_checkpoint: the run in {output} ended before its first checkpoint, so it starts anew.")
            return None
        fix = "Set train.save_steps so that one is written, or leave resume_checkpoint empty to start anew."
        raise ConfigError("resume_checkpoint", f"{output} holds no checkpoint", fix)
    sharded = any(path.is_dir() for path in folder.iterdir())  # what DeepSpeed and FSDP write, in folders of their own
    if not sharded and not all((folder / name).is_file() for name in (STATE, "optimizer.pt", "scheduler.pt")):
        problem = f"{folder} lacks {STATE}, optimizer.pt or scheduler.pt, without which training cannot go on"
        fix = "Name another checkpoint, and set train.save_only_model=false in runs to go on from."
        raise ConfigError("resume_checkpoint", problem, fix)
    return str(folder)


def rows_digest(dataset: "Dataset") -> str:
    """A digest of the token ids and labels of a `datasets.Dataset`, in order."""
    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        for name in ("input_ids", "labels"):
            column = table[name].combine_chunks()
            for part in (column.value_lengths(), column.flatten()):
                digest.update(part.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def identity(config: dict[str, Any], args: "TrainingArguments", rows: "Dataset") -> dict[str, Any]:
    """What a run is compared by: its configuration without secrets, its rows, and how many a step takes."""
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {"config": config, "rows": rows_digest(rows), "rows_per_step": per_step}


Changes = dict[str, list[tuple[int, Any]]]  # for each key that was changed on the way: (from that step on, its value)


def changes(folder: str | Path, now: dict[str, Any]) -> Changes:
    """Compare a run with the one that wrote a checkpoint.

    Args:
        now: of `identity`.

    Returns:
        The keys that have other values from this checkpoint on, with those that changed in earlier runs.

    Raises:
        ConfigError: the run cannot go on: its rows, optimizer or adapter's shape differ.
    """
    path = Path(folder, RECORD)
    if not path.is_file():
        logger.warning("resume_checkpoint: this kit did not write %s; rows and settings may be others.", folder)
        return {}
    then = json.loads(path.read_text(encoding="utf-8"))
    before, after = dict(leaves(then["config"])), dict(leaves(now["config"]))
    keys = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    keys = [key for key in keys if key.startswith(TOLD) and not key.startswith(UNTOLD)]
    unfit = [key for key in keys if key.startswith(SHAPE) and key != "model.lora.lora_dropout"]
    if {tree.get("train.lr_scheduler_type") for tree in (before, after)} & WITH_MEMORY:
        unfit += [key for key in keys if key.startswith(RATES)]
    unfit += [what for what in ("rows", "rows_per_step") if then[what] != now[what]]
    if unfit:
        raise ConfigError(
            "resume_checkpoint",
            f"{', '.join(unfit)} differs from the run that wrote {folder}, so this run cannot go on from there",
            f"Set it as it was (see {path}; rows are also their order, template and tokenizer), or "
            "start a new run from this adapter with model.trained_adapter.",
        )
    step, found = step_of(folder), {key: [tuple(pair) for pair in pairs] for key, pairs in then["changed"].items()}
    for key in keys:
        found[key] = [*found.get(key, [(0, before.get(key))]), (step, after.get(key))]
    return found


def publish(staged: Path, target: Path, facts: dict[str, Any]) -> None:
    """Record `facts` in a staged checkpoint and give it its name: whole, and on the disk, or not at all."""
    state = staged / STATE
    state.write_text(to_json(json.loads(state.read_text(encoding="utf-8"))), encoding="utf-8")
    (staged / RECORD).write_text(to_json(facts), encoding="utf-8")
    sync(staged)
    staged.rename(target)
    sync(target.parent, deep=False)


def set_aside(output_dir: str | Path, resumed: str | Path | None = None) -> None:
    """Move what an earlier run left into `output_dir/earlier.N`, so that neither rotation nor a later resume takes it.

    What the run goes on from stays: the resumed checkpoint and older ones beside it. Half-written checkpoints of a
    killed run are removed.
    """
    output = Path(output_dir)
    shutil.rmtree(output / STAGING, ignore_errors=True)
    beside = resumed is not None and Path(resumed).resolve().parent == output.resolve()
    stays = step_of(resumed) if beside else 0
    old = [path for path in output.glob("checkpoint-*") if path.is_dir() and step_of(path) > stays]
    old += output.glob("checkpoint.part-*")  # an adapter that a kill kept from its name
    if old:
        move_aside(old, output)
