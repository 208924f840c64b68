"""A table of runs: what differs between their configurations, how they ended, and how good they are.

python -m ragfit.runs trained_models
"""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

from ragfit.config.paths import user_path
from ragfit.config.schema import HF_TRAIN, REMOVED, RENAMED
from ragfit.draw.blocks import Badge, Block, Line, Note, Span, Table
from ragfit.draw.view import View
from ragfit.errors import ConfigError, RagfitError, for_terminal
from ragfit.runs import status

LOW, HIGH = ("train_loss", "dev_loss"), ("exact_match", "f1", "recall", "citations")
STATES = {"finished": ("✓", "good"), "running": ("…", "note")}

CONFIG, LOG = "ragfit.yaml", "trainer_state.json"
METRICS = ("exact_match", "f1", "recall", "citations")
# Different for every run by necessity, or no setting at all.
_NOT_COMPARED = ("train.output_dir", "train.run_name", "train.report_to", "resume_checkpoint", "translated")
_OWN = re.compile(r"checkpoint|checkpoint[.-]\d+|checkpoint\.part-.*|earlier\.\d+")
# What is read of a run's files (`ragfit.runs.status.fitting`).
_LOG = {"global_step": int, "log_history": [{"loss": float, "eval_loss": float, "train_runtime": float}]}
_EVALUATION = {"written": datetime, "rows": int, **{key: {"tuned": float} for key in ("dev_loss", *METRICS)}}


def table_of_runs(*roots):
    """Collect runs, from papermill, `--multirun` or anywhere else, into one table.

    Args:
        roots: folders that are the output folder of a run, or hold such folders at any depth.

    Returns:
        `pandas.DataFrame` with a row for each run, its index the run's folder (relative to the only root). The columns
        are first the dotted configuration keys in which the runs differ; then `state` (finished, running, failed, …)
        and `problem`; `step`; `train_loss`, the last that was logged; `dev_loss`; of the tuned model `exact_match`,
        `f1`, `recall` and `citations`, with `answers`, the number of rows they were measured on; and `seconds` of
        training. What a run does not have is empty, and a column that no run has is left out. `dev_loss` and metrics
        are of the last evaluation since the run began.

    Raises:
        ConfigError: a root does not exist, or none holds a run.
    """
    import pandas

    folders = {}
    for root in (user_path(root, "folder") for root in roots):
        if not root.is_dir():
            raise ConfigError(f"There is no folder {root}. Name a run's train.output_dir, or a folder that holds some.")
        for folder in find_runs(root):
            name = os.path.relpath(folder, root) if len(roots) == 1 else str(folder)
            folders.setdefault(folder.resolve(), status.printable(root.name if name == "." else name))
    if not folders:
        raise ConfigError(
            f"There is no run in {', '.join(map(str, roots))}. Name a run's train.output_dir, or a folder that holds some."
        )
    configs = [_config(folder) for folder in folders]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    # A run that left no configuration (an older one, killed) says nothing about a key.
    varied = [key for key in keys if len({repr(config.get(key)) for config in configs if config}) > 1]
    rows = [
        {**{key: config.get(key) for key in varied}, **_outcome(folder)}
        for folder, config in zip(folders, configs, strict=True)
    ]
    frame = pandas.DataFrame(rows, index=pandas.Index(list(folders.values()), name="run"))
    return frame[[key for key in frame if key in varied or frame[key].notna().any()]]


def find_runs(root):
    """Output folders of runs in a folder and below, in natural order (`2` before `10`).

    A run's own `checkpoint`, `checkpoint.N`, `checkpoint-STEP` and `earlier.N`, and models that were merged or copied, are
    no runs of their own.
    """
    found = []
    for path, names, files in os.walk(root):
        model = {"adapter_config.json", "config.json"} & set(
            files
        )  # an adapter or a merged model keeps its run's configuration
        run = (
            status.FILE in files
            or CONFIG in files
            and not model
            or _is_own(path, "checkpoint")
            and os.path.isfile(os.path.join(path, "checkpoint", CONFIG))
        )
        names[:] = sorted((n for n in names if not n.startswith(".") and not (run and _is_own(path, n))), key=_natural)
        if run:
            found.append(Path(path))
    return found


def _is_own(path, name):
    """Whether a folder in a run's is one of its checkpoints, which have no status."""
    return _OWN.fullmatch(name) and not os.path.isfile(os.path.join(path, name, status.FILE))


def _natural(name):
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


class _Loader(yaml.SafeLoader):
    """Without aliases: no run writes one, and with them a few lines can be endless."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _config(folder):
    """The run's configuration by dotted key: the one it began with, or its checkpoint's."""
    for path in (folder / CONFIG, folder / "checkpoint" / CONFIG):
        try:
            tree = yaml.load(path.read_bytes(), _Loader) if path.is_file() and path.stat().st_size < 2**20 else None
            flat = dict(_leaves(tree)) if isinstance(tree, dict) else None
        # The file's errors, and PyYAML's, which are of any kind where a value is not of its tag (`!!bool 3`).
        except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
            continue
        if flat is not None:
            # A run that was refused, or one of an earlier version, may have earlier names, and need not name the class.
            flat = {"model._target_": HF_TRAIN} | flat
            kept = (
                (RENAMED.get(key, key), value)
                for key, value in flat.items()
                if value is not None and key not in REMOVED
            )
            return {key: value for key, value in kept if not key.startswith(_NOT_COMPARED)}
    return {}


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield (
                status.printable(f"{prefix}{key}"),
                value if isinstance(value, int | float | None) else status.printable(text),
            )


def _outcome(folder):
    """What became of a run. Files of an earlier run in the same folder do not count."""
    facts = status.read(folder) or {}
    began = facts.get("started") or ""
    state, problem = (status.run_state(facts)[0], facts.get("reason")) if facts else (None, None)
    if not facts and os.path.isdir(folder / "checkpoint"):
        state = "finished"
    log = (status.read_json(folder / LOG, _LOG) or {}) if not _older(folder / LOG, began) else {}
    history = log.get("log_history") or []
    evaluation = status.read_json(folder / "evaluation.json", _EVALUATION) or {}
    if (evaluation.get("written") or "") < began:
        evaluation = {}
    dev = (evaluation.get("dev_loss") or {}).get("tuned")
    scores = {metric: (evaluation.get(metric) or {}).get("tuned") for metric in METRICS}
    return {
        "state": state,
        "problem": problem if state not in ("finished", "running") else None,
        "step": facts.get("step") or log.get("global_step"),
        "train_loss": _last(history, "loss"),
        "dev_loss": _last(history, "eval_loss") if dev is None else dev,
        **scores,
        "answers": evaluation.get("rows") if any(value is not None for value in scores.values()) else None,
        "seconds": _last(history, "train_runtime"),
    }


def _last(history, key):
    return next((entry[key] for entry in reversed(history) if key in entry), None)


def _older(path, began):
    """Whether a file was written before a time, to the second."""
    try:
        return bool(began) and datetime.fromtimestamp(int(path.stat().st_mtime), UTC) < datetime.fromisoformat(began)
    except (OSError, ValueError, OverflowError):
        return False


def main(argv=None):
    """Print the table of runs."""
    from ragfit.views import RunsView

    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        sys.exit("usage: python -m ragfit.runs FOLDER…")
    try:
        print(RunsView(table_of_runs(*argv)))
    except RagfitError as error:
        sys.exit(for_terminal(error))


class RunsView(View):
    """The table of `ragfit.table_of_runs`, drawn.

    Args:
        frame: the `pandas.DataFrame`.
    """

    def __init__(self, frame):
        self.frame = frame
        self.title = f"{len(frame)} run{'s' * (len(frame) != 1)}"
        self.best = {}
        for column in (*LOW, *HIGH):
            values = frame[column].dropna() if column in frame else ()
            if len(values) > 1:
                self.best[column] = values.min() if column in LOW else values.max()

    def _cell(self, column, value):
        """A value as text, with a star where it is the best of its column."""
        import pandas

        if not isinstance(value, str) and pandas.isna(value):
            return "–"
        if column in LOW:
            text = f"{value:.4f}"
        elif column in HIGH:
            text = f"{value:.1%}"
        elif column in ("step", "answers", "seconds"):
            text = f"{value:,.0f}"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        return f"★ {text}" if value == self.best.get(column) and column in self.best else text

    def blocks(self) -> list[Block]:
        columns = [column for column in self.frame if column != "problem"]
        rows = [
            [Span(str(name)), *(self._drawn(column, value) for column, value in zip(columns, row, strict=True))]
            for name, row in zip(self.frame.index, self.frame[columns].itertuples(index=False, name=None), strict=True)
        ]
        right = [n for n, column in enumerate(columns, 1) if column in (*LOW, *HIGH, "step", "answers", "seconds")]
        problems = self.frame["problem"].dropna().items() if "problem" in self.frame else ()
        return [
            Table(["run", *columns], rows, right=right, wide=True),
            *([Note("★ the best of its column")] if self.best else []),
            *(Note(f"{name}: {problem}") for name, problem in problems),
        ]

    def _drawn(self, column: str, value: object) -> Line:
        text = self._cell(column, value)
        if column == "state" and text != "–":
            mark, tone = STATES.get(value, ("✗", "bad"))
            return Badge(f"{mark} {text}", tone)
        return Span(text) if text.startswith("★") else text
