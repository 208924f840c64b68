"""A table of runs: what differs between their configurations, how they ended, and how good they are.

python -m ragfit.runs trained_models
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from ragfit.config.paths import user_path
from ragfit.config.schema import HF_TRAIN, REMOVED, RENAMED
from ragfit.config.yaml_file import load_yaml
from ragfit.draw import html as style
from ragfit.draw.html import Html, View, html_lines, plain
from ragfit.errors import ConfigError
from ragfit.runs import status

LOW, HIGH = ("train_loss", "dev_loss"), ("exact_match", "f1", "recall", "citations")
STATES = {"finished": ("✓", style.GOOD), "running": ("…", style.NOTE)}

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


def _config(folder):
    """The run's configuration by dotted key: the one it began with, or its checkpoint's."""
    for path in (folder / CONFIG, folder / "checkpoint" / CONFIG):
        try:
            flat = dict(_leaves(load_yaml(path)))
        except ConfigError:  # there is none, or it cannot be read
            continue
        # A run that was refused, or one of an earlier version, may have earlier names, and need not name the class.
        flat = {"model._target_": HF_TRAIN} | flat
        kept = (
            (RENAMED.get(key, key), value) for key, value in flat.items() if value is not None and key not in REMOVED
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

    def html(self):
        columns = [column for column in self.frame if column != "problem"]
        rows = []
        for name, row in zip(self.frame.index, self.frame[columns].itertuples(index=False, name=None), strict=True):
            cells = [Html(f"<b>{html_lines(str(name))}</b>")]
            for column, value in zip(columns, row, strict=True):
                text = self._cell(column, value)
                if column == "state":
                    mark, look = STATES.get(value, ("✗", style.BAD))
                    cells.append(style.badge(f"{mark} {text}", look) if text != "–" else text)
                else:
                    cells.append(
                        Html(f"<b>{html_lines(text).replace(' ', '&nbsp;')}</b>")
                        if text.startswith("★")
                        else html_lines(text)
                    )
            rows.append(cells)
        right = [n for n, column in enumerate(columns, 1) if column in (*LOW, *HIGH, "step", "answers", "seconds")]
        # A long name takes two lines; a key stays as it is written.
        parts = [re.split(r"(?<=\.)(?=[^.]+$)", column) if "." in column else column.split("_") for column in columns]
        head = ["run", *(Html("<br>".join(map(html_lines, words))) for words in parts)]
        table = Html(f'<div style="overflow-x:auto">{style.table(head, rows, right=right)}</div>')
        note = style.small_text("★ the best of its column") if self.best else Html()
        return style.card(self.title, table, note, *(style.small_text(line) for line in self._problems()))

    def _problems(self):
        if "problem" in self.frame:
            for name, problem in self.frame["problem"].dropna().items():
                yield f"{name}: {problem}"

    def text(self):
        columns = [column for column in self.frame if column != "problem"]
        table = [["run", *columns]]
        for name, row in zip(self.frame.index, self.frame[columns].itertuples(index=False, name=None), strict=True):
            table.append([str(name), *(self._cell(column, value) for column, value in zip(columns, row, strict=True))])
        table = [[plain(" ".join(cell.split())) for cell in line] for line in table]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        lines += ["  ★ the best of its column"] if self.best else []
        return "\n".join(
            [f"{self.title}:", *lines, *(plain(f"  {' '.join(line.split())}") for line in self._problems())]
        )
