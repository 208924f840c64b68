"""A table of runs: what differs between their configurations, how they ended, and how good they are.

python -m ragfit.runs trained_models
"""

import os
import re
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfit.config.paths import user_path
from ragfit.config.save import leaves
from ragfit.config.schema import HF_TRAIN, REMOVED, get, renamed
from ragfit.config.yaml_file import load_yaml
from ragfit.draw.blocks import Badge, Block, Line, Note, Span, Table
from ragfit.draw.text import counted
from ragfit.draw.view import View
from ragfit.errors import ConfigError, MissingPath
from ragfit.runs import status
from ragfit.runs.records import CONFIG, EVALUATION, GROUNDING, LOG, METRICS, OF_LABELS, STATUS, printable, read_json
from ragfit.runs.seeds import MATCH, spread_of_rows

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LOW, HIGH = ("train_loss", "dev_loss"), (*METRICS, *OF_LABELS, "grounded")
WHOLE = ("step", "answers", "seconds")
FORMATS = dict.fromkeys(LOW, ".4f") | dict.fromkeys(HIGH, ".1%") | dict.fromkeys(WHOLE, ",.0f")  # a setting has none
SEEDS = {"train.seed", "train.data_seed"}
PACKING = {"train.packing", "train.padding_free"}  # shown wherever they are on: losses of packs are of more rows a step
STATES = {"finished": ("✓", "good"), "running": ("…", "note")}
NAME_ONE = "Name a run's train.output_dir, or a folder that holds some."
# Different for every run by necessity, or no setting at all.
_NOT_COMPARED = ("train.output_dir", "train.run_name", "train.report_to", "resume_checkpoint", "translated")
_OWN = re.compile(r"checkpoint|checkpoint[.-]\d+|checkpoint\.part-.*|earlier\.\d+")
# What is read of a run's files (`ragfit.runs.records.fitting`).
_LOG = {"global_step": int, "log_history": [{"loss": float, "eval_loss": float, "train_runtime": float}]}
_MEASURED = ("dev_loss", *METRICS, *OF_LABELS)
_EVALUATION = {"written": datetime, "rows": int, **{key: {"tuned": float} for key in _MEASURED}}
_GROUNDING = {"written": datetime, "top_is_supporting": {"tuned": {"mean": float}}}


def table_of_runs(*roots: str | PathLike) -> "DataFrame":
    """Collect runs, from papermill, `--multirun` or anywhere else, into one table.

    Args:
        roots: folders that are the output folder of a run, or hold such folders at any depth.

    Returns:
        `pandas.DataFrame` with a row for each run, its index the run's folder (relative to the only root). The columns
        are first the dotted configuration keys in which the runs differ, and `train.packing` and `train.padding_free`
        where a run has them; then `state` (finished, running, failed, …) and `problem`; `step`; `train_loss`, the last
        that was logged; `dev_loss`; of the tuned model `exact_match`, `f1`, `recall` and `citations` (and `accuracy`
        and `macro_f1` where the expected answers are labels), with `answers`, the number of rows they were measured
        on; `grounded`, the share of rows whose answer depends most on a supporting document (`ragfit.grounding`); and
        `seconds` of training. What a run does not have is empty, and a column that no run has is left out. `dev_loss`,
        metrics and `grounded` are of the last evaluation since the run began.

    Raises:
        ConfigError: a root does not exist, or none holds a run.
    """
    import pandas

    folders = {}
    for root in (user_path(root, "folder") for root in roots):
        if not root.is_dir():
            raise MissingPath("folder", f"there is no folder {root}", NAME_ONE)
        for folder in find_runs(root):
            name = os.path.relpath(folder, root) if len(roots) == 1 else str(folder)
            folders.setdefault(folder.resolve(), printable(root.name if name == "." else name))
    if not folders:
        raise ConfigError("folder", f"there is no run in {', '.join(map(str, roots))}", NAME_ONE)
    index = pandas.Index(list(folders.values()), name="run")
    outcome = pandas.DataFrame([_outcome(folder) for folder in folders], index)
    configs = pandas.DataFrame([_config(folder) for folder in folders], index)
    # A run that left no configuration (an older one, killed) says nothing about a key.
    told = configs[configs.notna().any(axis=1)].astype(str)
    packed = {key for key in PACKING & {*configs} if (told[key] == "True").any()}
    varied = [key for key in configs if key not in outcome and (told[key].nunique() > 1 or key in packed)]
    table = configs[varied].join(outcome.dropna(axis=1, how="all"))
    table.attrs["folders"] = {name: str(folder) for folder, name in folders.items()}
    return table


def find_runs(root: Path) -> list[Path]:
    """Output folders of runs in a folder and below, in natural order (`2` before `10`).

    A run's own `checkpoint`, `checkpoint.N`, `checkpoint-STEP` and `earlier.N`, and models that were merged or copied,
    are not runs of their own.
    """
    found = []
    for path, names, files in os.walk(root):
        folder = Path(path)
        own = [name for name in names if _OWN.fullmatch(name) and not (folder / name / STATUS).is_file()]
        model = {"adapter_config.json", "config.json"} & set(files)  # which keeps its run's configuration
        saved = "checkpoint" in own and (folder / "checkpoint" / CONFIG).is_file()
        run = STATUS in files or CONFIG in files and not model or saved
        names[:] = sorted({name for name in names if name[0] != "."}.difference(own if run else ()), key=_natural)
        if run:
            found.append(folder)
    return found


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]  # a text and a number in turn


def _read_yaml(path: Path) -> dict[str, Any]:
    """What a run's YAML file says; {} where there is none that can be read."""
    try:
        return load_yaml(path)
    except ConfigError:
        return {}


def _config(folder: Path) -> dict[str, Any]:
    """The run's configuration by dotted key: the one it began with, or its checkpoint's."""
    tree = _read_yaml(folder / CONFIG) or _read_yaml(folder / "checkpoint" / CONFIG)
    if not tree:
        return {}
    # A run that was refused, or one of an earlier version, may have earlier names, and need not name the class.
    config, names = {"model._target_": HF_TRAIN}, renamed(get(tree, "train.packing"))
    for key, value in leaves(tree):
        key = names.get(key, printable(key))
        if value is not None and key not in REMOVED and not key.startswith(_NOT_COMPARED):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            config[key] = value if isinstance(value, int | float) else printable(text)
    return config


def _outcome(folder: Path) -> dict[str, Any]:
    """What became of a run. Files of an earlier run in the same folder do not count."""
    facts = status.read(folder)
    state = status.run_state(facts)[0] if facts else "finished" if (folder / "checkpoint").is_dir() else None
    facts = facts or {}
    began = facts.get("started") or ""
    log = read_json(folder / LOG, _LOG)
    if began and log and int((folder / LOG).stat().st_mtime) < datetime.fromisoformat(began).timestamp():
        log = {}
    found = (read_json(folder / name, shape) for name, shape in ((EVALUATION, _EVALUATION), (GROUNDING, _GROUNDING)))
    evaluation, grounding = (measured if measured.get("written", "") >= began else {} for measured in found)
    last = {key: value for entry in log.get("log_history", ()) for key, value in entry.items()}
    tuned = {key: evaluation[key]["tuned"] for key in _MEASURED if key in evaluation}
    return {
        "state": state,
        "problem": facts.get("reason") if state not in ("finished", "running") else None,
        "step": facts.get("step") or log.get("global_step"),
        "train_loss": last.get("loss"),
        "dev_loss": tuned.get("dev_loss", last.get("eval_loss")),
        **{metric: tuned.get(metric) for metric in (*METRICS, *OF_LABELS)},
        "answers": evaluation.get("rows") if tuned.keys() & METRICS else None,
        "grounded": grounding.get("top_is_supporting", {}).get("tuned", {}).get("mean"),
        "seconds": last.get("train_runtime"),
    }


class RunsView(View):
    """The table of `ragfit.table_of_runs`, drawn.

    Args:
        frame: the `pandas.DataFrame`.
    """

    def __init__(self, frame: "DataFrame"):
        self.frame = frame
        self.title = counted(len(frame), "run")
        found = {column: frame[column].dropna() for column in (*LOW, *HIGH) if column in frame}
        several = {column: values for column, values in found.items() if len(values) > 1}
        self.best = {column: values.min() if column in LOW else values.max() for column, values in several.items()}

    def blocks(self) -> list[Block]:
        columns = [column for column in self.frame if column != "problem"]
        rows = [
            [Span(str(name)), *(self._cell(column, value) for column, value in zip(columns, row, strict=True))]
            for name, *row in self.frame[columns].itertuples(name=None)
        ]
        right = [n for n, column in enumerate(columns, 1) if column in FORMATS]
        problems = self.frame["problem"].dropna().items() if "problem" in self.frame else ()
        return [
            Table(["run", *columns], rows, right=right, wide=True),
            *([Note("★ the best of its column")] if self.best else []),
            *self._over_seeds(),
            *(Note(f"{name}: {problem}") for name, problem in problems),
        ]

    def _cell(self, column: str, value: object) -> Line:
        """A value, with a star where it is the best of its column."""
        import pandas

        if not isinstance(value, str) and pandas.isna(value):
            return "–"
        if column == "state":
            mark, tone = STATES.get(value, ("✗", "bad"))
            return Badge(f"{mark} {value}", tone)
        text = format(value, FORMATS.get(column, "g" if isinstance(value, float) else ""))
        return Span(f"★ {text}") if value == self.best.get(column) else text

    def _over_seeds(self) -> list[Block]:
        """The mean and the standard deviation of each figure over the seeds of one configuration."""
        settings = list(self.frame)[: list(self.frame).index("state")] if "state" in self.frame else []
        figures = [column for column in (*LOW, *HIGH) if column in self.frame]
        if not set(settings) & SEEDS or not figures:
            return []
        keys = [column for column in settings if column not in SEEDS]
        finished = self.frame[self.frame["state"] == "finished"]
        groups = {
            ", ".join(f"{key}={group[key].iloc[0]}" for key in keys) or "all of them": group
            for _, group in finished.groupby([finished[key].astype(str) for key in keys] or [0] * len(finished))
            if len(group) > 1
        }
        rows = [
            [name, f"{len(group):,}", *(self._spread(column, group[column].dropna()) for column in figures)]
            for name, group in groups.items()
        ]
        head = ["mean ± standard deviation over seeds", "runs", *figures]
        tables = [Table(head, rows, right=range(1, len(head)), wide=True)] if rows else []
        return [*tables, *self._single_rows(groups)]

    def _single_rows(self, groups: "dict[str, DataFrame]") -> list[Block]:
        """How the same row was answered under each seed."""
        folders = self.frame.attrs.get("folders", {})
        spreads = {}
        for name, group in groups.items():
            answered = group.index[group["answers"].notna()] if "answers" in group else ()
            runs = [Path(folders[run]) for run in answered if run in folders]
            if len(runs) > 1 and (spread := spread_of_rows(runs)):
                spreads[name] = spread
        if not spreads:
            return []
        known = [key for key in ("rows", *MATCH, *METRICS) if any(key in spread for spread in spreads.values())]
        cells = [
            [name, *(_of_row(key, spread[key]) if key in spread else "–" for key in known)]
            for name, spread in spreads.items()
        ]
        head = ["single rows over seeds", *known]
        note = Note("Of a metric: the standard deviation of one row's value over the seeds, the mean over the rows.")
        return [Table(head, cells, right=range(1, len(head)), wide=True), note]

    def _spread(self, column: str, values: "Series") -> str:
        if len(values) < 2:
            return "–"
        mean, deviation = values.mean(), values.std()
        return f"{mean:.4f} ± {deviation:.4f}" if column in LOW else f"{mean:.1%} ± {100 * deviation:.1f}"


def _of_row(key: str, value: float) -> str:
    return f"± {100 * value:.1f}" if key in METRICS else f"{value:,}"
