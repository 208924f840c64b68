"""The figures of an evaluation: summed up over its rows, and saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from ragfit.config.paths import PathText, find_existing, user_path
from ragfit.draw.progress import say
from ragfit.files import write_whole
from ragfit.runs.records import METRICS, now

if TYPE_CHECKING:
    from trl import SFTTrainer

MODELS = ("base", "tuned")
Save = PathText | Literal[False] | None  # a folder; None: the run's, where the trainer has trained; False: nowhere
ROWS = ("data_file", "input_key", "output_key", "limit", "shuffle", "dev_split")  # the keys that choose the rows


def summarize(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Each metric's mean over the rows that have it, and on how many of them tuned is better or worse than base."""
    summary = {}
    for metric in METRICS:
        rows = [row for row in table if row.get(f"tuned_{metric}") is not None]
        found = {name: [row[f"{name}_{metric}"] for row in rows] for name in MODELS if rows and name in rows[0]}
        if found:
            summary[metric] = {"rows": len(rows)} | {name: sum(values) / len(rows) for name, values in found.items()}
        if len(found) == 2:
            gains = [tuned - base for base, tuned in zip(*found.values(), strict=True)]
            summary[metric] |= {"better": sum(gain > 0 for gain in gains), "worse": sum(gain < 0 for gain in gains)}
    return summary


def measured_rows(trainer: "SFTTrainer") -> dict[str, str]:
    """What is measured, and when: the `part` "dev", or "train" where there is no dev set, and its file, the `data`."""
    dev, split = trainer.prepared.dev is not None, trainer.cfg.dev_split
    data = split if dev and isinstance(split, str) else trainer.cfg.data_file
    return {"part": "dev" if dev else "train", "data": str(data), "written": now()}


def other_keys(trainer: "SFTTrainer", config: Path, keys: Sequence[str] = ROWS) -> list[str]:
    """The keys whose value in a run's configuration is another than a trainer's."""

    def value(cfg: DictConfig, key: str) -> Path:
        text = str(OmegaConf.select(cfg, key))
        return (find_existing(text) or Path(text)).resolve()

    recorded = OmegaConf.load(config)
    return [key for key in keys if value(recorded, key) != value(trainer.cfg, key)]


def save_results(trainer: "SFTTrainer", save: Save, name: str, summary: Mapping, table: Sequence = ()) -> Path | None:
    """Write the summary, `NAME.json`, and the rows, `NAME.jsonl`, whose path is returned; None where none is.

    In the folder of a run that had other rows it is into `evaluation-DATA` there, so that the run's own figures stay.
    """
    folder = trainer.args.output_dir if save is None and trainer.state.global_step else save
    if not folder or not trainer.is_world_process_zero():
        return None
    folder, own = user_path(folder), user_path(folder) / "checkpoint" / "ragfit.yaml"
    if own.is_file() and other_keys(trainer, own):
        folder /= f"evaluation-{Path(measured_rows(trainer)['data']).name.partition('.')[0]}"
    # JSON has no NaN and no infinity: they become null.
    summary, table = json.loads(json.dumps([summary, table]), parse_constant=lambda name: None)
    try:
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
        write_whole(folder / f"{name}.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:  # which costs the files and not the figures
        return say(f"The figures could not be saved in {folder}: {error.strerror}.")
    return folder / f"{name}.jsonl"


def save_loss(trainer: "SFTTrainer", loss: float) -> None:
    """Save the dev loss alone, where a run answers no rows."""
    summary = measured_rows(trainer) | {"rows": 0, "dev_loss": {"base": None, "tuned": loss}}
    save_results(trainer, trainer.args.output_dir, "evaluation", summary)
