"""The numbers of an evaluation, summed up and saved."""

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from ragfit.config.paths import user_path
from ragfit.files import write_whole

ROWS, SUMMARY = "evaluation.jsonl", "evaluation.json"
METRICS = ("exact_match", "f1", "recall", "citations")
MODELS = ("base", "tuned")


def summarize(table):
    """The mean of each metric over the rows that have it, and on how many of them tuned is better or worse than base.

    Returns:
        `{metric: {"rows": …, "base": …, "tuned": …, "better": …, "worse": …}}`, without metrics that no row has.
    """
    summary = {}
    for metric in METRICS:
        values = {
            name: [row[key] for row in table if row.get(key := f"{name}_{metric}") is not None] for name in MODELS
        }
        values = {name: found for name, found in values.items() if found}
        if not values:
            continue
        summary[metric] = {
            "rows": len(values["tuned"]),
            **{name: sum(found) / len(found) for name, found in values.items()},
        }
        if "base" in values:
            pairs = list(zip(values["base"], values["tuned"], strict=True))
            summary[metric] |= {"better": sum(t > b for b, t in pairs), "worse": sum(t < b for b, t in pairs)}
    return summary


def save_loss(trainer, loss):
    """Save the dev loss alone, where a run answers no rows."""
    part = {"part": "dev", "data": str(trainer.cfg.dev_split), "rows": 0, "written": now()}
    with contextlib.suppress(OSError):
        save_evaluation(
            trainer.args.output_dir,
            part | {"dev_loss": {"rows": len(trainer.prepared.dev), "base": None, "tuned": loss}},
        )


def now():
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_evaluation(folder, summary, table=None):
    """Write the summary, and the rows where there are any, each file whole or not at all.

    Returns:
        The path of the rows, or of the summary where there are none.
    """
    folder = Path(folder).expanduser()
    texts = {SUMMARY: json.dumps(summary, ensure_ascii=False, indent=1) + "\n"}
    if table:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        texts = {ROWS: lines, **texts}
    else:
        (folder / ROWS).unlink(missing_ok=True)  # of another evaluation, which the new summary does not sum up
    for name, text in texts.items():
        write_whole(folder / name, text)
    return folder / next(iter(texts))


def save_results(folder, name: str, summary: dict, table: list[dict]) -> Path:
    """Write `NAME.jsonl` and then `NAME.json`, each file whole or not at all; the path of the first."""
    folder = user_path(folder, "save")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
    write_whole(folder / f"{name}.jsonl", lines)
    write_whole(folder / f"{name}.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    return folder / f"{name}.jsonl"
