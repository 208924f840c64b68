"""A table of runs: what differs between their configurations, how they ended, and how good what they saved is."""

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
from ragfit.runs.status import TONES, measured, read, read_json, run_state

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FIGURES = {"train_loss": ".4f", "dev_loss": ".4f", **dict.fromkeys((*METRICS, *OF_LABELS, "grounded"), ".1%")}
FORMATS = FIGURES | dict.fromkeys(("step", "answers", "seconds"), ",.0f")  # of all columns of numbers
NO_SETTINGS = ("train.output_dir", "train.run_name", "train.report_to", "resume_checkpoint")


def table_of_runs(*roots: str | Path) -> "DataFrame":
    """Collect runs, from papermill, `--multirun` or anywhere else, into one table.

    Args:
        roots: folders that are the output folder of a run, or hold such folders at any depth.

    Returns:
        `pandas.DataFrame`, a row for each run, named by its folder. Its columns are the dotted configuration keys in
        which the runs differ; then `state` and `problem`; and of the weights that are saved: `step`; `train_loss`, the
        last that was logged up to it; `dev_loss`; each of `METRICS` and `OF_LABELS`, measured on so many `answers`;
        `grounded`, the share of rows whose answer depends most on a supporting document; `seconds` of training. What
        a run lacks is empty. ConfigError where there is no run.
    """
    import pandas

    folders = sorted({path.parent for root in roots for path in user_path(root).rglob(STATUS) if read(path.parent)})
    if not folders:
        raise ConfigError("folder", f"there is no run in {', '.join(map(str, roots))}", "Name a train.output_dir.")
    configs, outcome = (pandas.DataFrame(map(of, folders), map(str, folders)) for of in (_config, _outcome))
    told = configs.dropna(how="all").astype(str)  # a run that left no configuration says nothing about a key
    return configs[[key for key in told if told[key].nunique() > 1]].join(outcome.dropna(axis=1, how="all"))


def _config(folder: Path) -> dict[str, Any]:
    """The configuration that a run began with, by dotted key."""
    tree = OmegaConf.to_container(OmegaConf.load(folder / CONFIG)) if (folder / CONFIG).is_file() else {}
    return {key: value for key, value in leaves(tree) if value is not None and not key.startswith(NO_SETTINGS)}


def _outcome(folder: Path) -> dict[str, Any]:
    """What became of a run, and the figures of the weights that it saved."""
    facts = read(folder)
    state, saved, evaluation = run_state(facts)[0], facts.get("saved_step"), measured(facts, EVALUATION)
    history = [] if saved is None else read_json(folder / LOG).get("log_history", [])
    logged = [entry["loss"] for entry in history if "loss" in entry and entry["step"] <= saved]
    return {
        "state": state,
        "problem": facts.get("reason"),
        "step": facts.get("step") if saved is None else saved,
        "train_loss": logged[-1] if logged else None,
        "dev_loss": None if saved is None else facts.get("dev_loss"),
        **{key: (evaluation.get(key) or {}).get("tuned") for key in (*METRICS, *OF_LABELS)},
        "answers": evaluation.get("rows") or None,
        "grounded": measured(facts, GROUNDING).get("top_is_supporting", {}).get("tuned", {}).get("mean"),
        "seconds": sum(entry.get("train_runtime", 0) for entry in history) or None,
    }


class RunsView(View):
    """The `pandas.DataFrame` of `ragfit.table_of_runs`, drawn."""

    def __init__(self, frame: "DataFrame"):
        self.frame, self.title = frame, counted(len(frame), "run")

    def blocks(self) -> list[Block]:
        shown = self.frame.drop(columns="problem", errors="ignore")
        rows = [[Span(str(name)), *map(_cell, shown, row)] for name, *row in shown.itertuples(name=None)]
        right = [number for number, column in enumerate(shown, 1) if column in FORMATS]
        notes = [Note(f"{name}: {why}") for name, why in self.frame.get("problem", {}).items() if isinstance(why, str)]
        return [Table(["run", *shown], rows, right=right, wide=True), *self._over_seeds(), *notes]

    def _over_seeds(self) -> list[Block]:
        """The mean and the standard deviation of each figure over the runs that differ in their seed alone."""
        runs = self.frame.drop(columns=[*FORMATS, "state", "problem", "train.seed", "train.data_seed"], errors="ignore")
        names = [", ".join(f"{key}={value}" for key, value in run.items()) for run in runs.to_dict("records")]
        groups = self.frame.filter(FIGURES).astype(float).groupby(names)
        rows = [list(row) for row in groups.agg(_spread)[groups.count().max(axis=1) > 1].itertuples(name=None)]
        head = ["mean ± standard deviation over seeds", *self.frame.filter(FIGURES)]
        return [Table(head, rows, right=range(1, len(head)), wide=True)] if rows else []


def _spread(values: "Series") -> str:
    form = FIGURES[values.name]
    return f"{values.mean():{form}} ± {values.std():{form}} ({values.count()})" if values.count() > 1 else "–"


def _cell(column: str, value: Any) -> Line:
    if column == "state":
        return Badge(value, TONES.get(value, "bad"))
    unknown = value is None or value != value  # as NaN is
    return "–" if unknown else format(value, FORMATS.get(column, "g" if isinstance(value, float) else ""))
