"""A table of runs: what differs between their configurations, how they ended, and how good what they saved is."""

import os
import re
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ragfit.config.paths import user_path
from ragfit.config.save import leaves
from ragfit.draw.blocks import Badge, Block, Line, Note, Span, Table
from ragfit.draw.text import counted
from ragfit.draw.view import View
from ragfit.errors import ConfigError
from ragfit.runs.records import CONFIG, EVALUATION, GROUNDING, LOG, METRICS, OF_LABELS, STATUS
from ragfit.runs.status import measured, read, read_json, run_state

if TYPE_CHECKING:
    from pandas import DataFrame

LOW, HIGH = ("train_loss", "dev_loss"), (*METRICS, *OF_LABELS, "grounded")
WHOLE = ("step", "answers", "seconds")
FORMATS = dict.fromkeys(LOW, ".4f") | dict.fromkeys(HIGH, ".1%") | dict.fromkeys(WHOLE, ",.0f")  # a setting has none
SEEDS = {"train.seed", "train.data_seed"}
DATA = {"data_file", "dev_split", "limit", "shuffle", "input_key", "output_key", "answers"}  # other rows, other figures
STATES = {"finished": ("✓", "good"), "running": ("…", "note")}
# Different for every run by necessity, or no setting at all.
_NOT_COMPARED = ("train.output_dir", "train.run_name", "train.report_to", "resume_checkpoint")


def table_of_runs(*roots: str | PathLike) -> "DataFrame":
    """Collect runs, from papermill, `--multirun` or anywhere else, into one table.

    Args:
        roots: folders that are the output folder of a run, or hold such folders at any depth.

    Returns:
        `pandas.DataFrame` with a row for each run, its index the run's folder (relative to the only root). The columns
        are first the dotted configuration keys in which the runs differ; then `state` (finished, running, failed, …)
        and `problem`; `step`, that of the weights that are saved; `train_loss`, the last that was logged up to it;
        `dev_loss`; of the tuned model each of `METRICS` and `OF_LABELS`, with `answers`, the number of rows that they
        were measured on; `grounded`, the share of rows whose answer depends most on a supporting document; and
        `seconds` of training. All figures are of the saved weights; what a run does not have is empty, and a column
        that no run has is left out.

    Raises:
        ConfigError: no root holds a run.
    """
    import pandas

    folders = {}
    for root in (user_path(root) for root in roots):
        for folder in sorted((path.parent for path in root.rglob(STATUS) if read(path.parent)), key=_natural):
            name = os.path.relpath(folder, root) if len(roots) == 1 else str(folder)
            folders.setdefault(folder.resolve(), root.resolve().name if name == "." else name)
    if not folders:
        fix = "Name a run's train.output_dir, or a folder that holds some."
        raise ConfigError("folder", f"there is no run in {', '.join(map(str, roots))}", fix)
    index = pandas.Index(list(folders.values()), name="run")
    configs = pandas.DataFrame([_config(folder) for folder in folders], index)
    outcome = pandas.DataFrame([_outcome(folder) for folder in folders], index)
    told = configs.dropna(how="all").astype(str)  # a run that left no configuration says nothing about a key
    varied = [key for key in told if told[key].nunique() > 1]
    return configs[varied].join(outcome.dropna(axis=1, how="all"))


def _natural(path: Path) -> list[str | int]:
    """`run-2` comes before `run-10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _config(folder: Path) -> dict[str, Any]:
    """The configuration that a run began with, by dotted key."""
    if not (folder / CONFIG).is_file():
        return {}
    tree = OmegaConf.to_container(OmegaConf.load(folder / CONFIG), resolve=False)
    found = {key: value for key, value in leaves(tree) if value is not None and not key.startswith(_NOT_COMPARED)}
    return {key: ", ".join(map(str, one)) if isinstance(one, list) else one for key, one in found.items()}


def _outcome(folder: Path) -> dict[str, Any]:
    """What became of a run, and the figures of the weights that it saved."""
    facts = read(folder)
    evaluation, grounding = measured(facts, EVALUATION), measured(facts, GROUNDING)
    state, saved = run_state(facts)[0], facts.get("saved_step")
    history = [] if saved is None else read_json(folder / LOG).get("log_history", [])
    tuned = {key: (evaluation.get(key) or {}).get("tuned") for key in ("dev_loss", *METRICS, *OF_LABELS)}
    if tuned["dev_loss"] is None and saved is not None:
        tuned["dev_loss"] = facts.get("dev_loss")
    return {
        "state": state,
        "problem": facts.get("reason") if state not in ("finished", "running") else None,
        "step": facts.get("step") if saved is None else saved,
        "train_loss": _last("loss", [entry for entry in history if entry["step"] <= saved]),
        **tuned,
        "answers": evaluation.get("rows") or None,
        "grounded": grounding.get("top_is_supporting", {}).get("tuned", {}).get("mean"),
        "seconds": _last("train_runtime", history),
    }


def _last(key: str, entries: list[dict[str, Any]]) -> float | None:
    return next((entry[key] for entry in reversed(entries) if key in entry), None)


class RunsView(View):
    """The table of `ragfit.table_of_runs`, drawn.

    Args:
        frame: the `pandas.DataFrame`.
    """

    def __init__(self, frame: "DataFrame"):
        self.frame, self.title = frame, counted(len(frame), "run")
        self.settings = list(frame)[: list(frame).index("state")]
        self.figures = [column for column in (*LOW, *HIGH) if column in frame]
        # Figures of other rows are not compared (how many `grounded` stands on is not known here).
        alike = not DATA & set(self.settings) and ("answers" not in frame or frame["answers"].nunique() == 1)
        compared = [one for one in self.figures if alike and frame[one].nunique() > 1 and one != "grounded"]
        self.best = {column: frame[column].min() if column in LOW else frame[column].max() for column in compared}

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
        """The mean and the standard deviation of each figure over the finished runs that differ in their seed alone."""
        if not SEEDS & set(self.settings):
            return []
        keys = [key for key in self.settings if key not in SEEDS]
        finished = self.frame[self.frame["state"] == "finished"]
        names = finished.apply(lambda run: ", ".join(f"{key}={run[key]}" for key in keys) or "all of them", axis=1)
        groups = finished[self.figures].astype(float).groupby(names)
        counts, means, deviations = groups.size(), groups.mean(), groups.std()
        rows = [
            [name, f"{count:,}", *(_spread(key, means.at[name, key], deviations.at[name, key]) for key in self.figures)]
            for name, count in counts.items()
            if count > 1
        ]
        head = ["mean ± standard deviation over seeds", "runs", *self.figures]
        return [Table(head, rows, right=range(1, len(head)), wide=True)] if rows else []


def _spread(column: str, mean: float, deviation: float) -> str:
    if deviation != deviation:  # fewer than two of the runs have the figure
        return "–"
    return f"{mean:.4f} ± {deviation:.4f}" if column in LOW else f"{mean:.1%} ± {100 * deviation:.1f}"
