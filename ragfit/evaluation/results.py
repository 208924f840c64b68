"""The numbers of an evaluation, summed up and saved."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfit.files import write_whole
from ragfit.runs.records import EVALUATION, METRICS, now

if TYPE_CHECKING:
    from trl import SFTTrainer

MODELS, CLOSED_BOOK = ("base", "tuned"), "closed_book"  # the last: tuned, without documents


def summarize(table: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean of each metric over the rows that have it, and on how many of them tuned is better or worse than base.

    Returns:
        `{metric: {"rows": …, "base": …, "tuned": …, "better": …, "worse": …}}`, without metrics that no row has.
    """
    summary = {}
    for metric in METRICS:
        values = {
            name: [row[key] for row in table if row.get(key := f"{name}_{metric}") is not None]
            for name in (*MODELS, CLOSED_BOOK)
        }
        if not values["tuned"]:
            continue
        means = {name: sum(found) / len(found) for name, found in values.items() if found}
        summary[metric] = {"rows": len(values["tuned"]), **means}
        if values["base"]:
            pairs = list(zip(values["base"], values["tuned"], strict=True))
            summary[metric] |= {"better": sum(t > b for b, t in pairs), "worse": sum(t < b for b, t in pairs)}
    return summary


def save_loss(trainer: "SFTTrainer", loss: float) -> None:
    """Save the dev loss alone, where a run answers no rows."""
    part = {"part": "dev", "data": str(trainer.cfg.dev_split), "rows": 0, "written": now()}
    losses = {"rows": len(trainer.prepared.dev), "base": None, "tuned": loss}
    with contextlib.suppress(OSError):
        save_evaluation(Path(trainer.args.output_dir), part | {"dev_loss": losses})


def save_evaluation(folder: Path, summary: dict[str, Any], table: list[dict[str, Any]] | None = None) -> Path:
    """Write the summary, and the rows where there are any, each file whole or not at all.

    Returns:
        The path of the rows, or of the summary where there are none.

    Raises:
        OSError: a file cannot be written.
    """
    return save_results(folder, Path(EVALUATION).stem, summary, table)


def save_results(folder: Path, name: str, summary: dict[str, Any], table: list[dict[str, Any]] | None) -> Path:
    """Write `NAME.jsonl`, where there are rows, and then `NAME.json`, as `save_evaluation` says."""
    rows, sums = folder / f"{name}.jsonl", folder / f"{name}.json"
    if table:
        write_whole(rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
    else:
        rows.unlink(missing_ok=True)  # of another evaluation, which the new summary does not sum up
    write_whole(sums, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    return rows if table else sums
