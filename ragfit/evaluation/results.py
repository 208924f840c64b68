"""The figures of an evaluation: summed up over its rows, and saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import OmegaConf

from ragfit.config.paths import PathText, find_existing, user_path
from ragfit.data.words import CITATION, words
from ragfit.draw.progress import say
from ragfit.evaluation.metrics import after_marker
from ragfit.files import write_whole
from ragfit.runs.records import METRICS, now

if TYPE_CHECKING:
    from trl import SFTTrainer

MODELS = ("base", "tuned")
MOST_LABELS, FEWEST_ROWS_EACH = 10, 3  # more labels, or fewer rows for each, are answers rather than labels
ROWS = ("data_file", "input_key", "output_key", "limit", "shuffle", "dev_split")  # the keys that choose the rows


def summarize(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """`{metric: {"rows": …, "base": …, "tuned": …, "better": …, "worse": …}}`, the means over the rows that have it."""
    columns = {metric: {name: [row.get(f"{name}_{metric}") for row in table] for name in MODELS} for metric in METRICS}
    return {metric: found for metric, of in columns.items() if (found := _compared(of))}


def _compared(values: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean of each model's values, and on how many rows tuned is better or worse; base and tuned have the same."""
    known = {name: [one for one in column if one is not None] for name, column in values.items()}
    if not known["tuned"]:
        return {}
    found = {"rows": len(known["tuned"])} | {name: sum(some) / len(some) for name, some in known.items() if some}
    pairs = list(zip(known["base"], known["tuned"], strict=False))
    counts = {"better": sum(tuned > base for base, tuned in pairs), "worse": sum(tuned < base for base, tuned in pairs)}
    return found | (counts if pairs else {})


def label_scores(table: Sequence[Mapping[str, Any]], marker: str | None = None) -> dict[str, Any]:
    """`accuracy` and `macro_f1`, as `summarize` gives metrics, where the expected answers are few labels; else {}.

    An answer counts as a label, such as yes, no or maybe, where it is one or begins with one ("Yes, because …"). They
    are the figures of PubMedQA (Jin et al. 2019, https://arxiv.org/abs/1909.06146), computed by scikit-learn.
    """
    from sklearn.metrics import f1_score

    texts = [row["expected"][0] for row in table]
    expected = [_plain(text) for text in texts]
    labels = sorted(set(expected), key=len, reverse=True)  # the longest first: "not sure" is not "not"
    # Where there are more of these than labels, words alone do not tell them apart: C and C++ would be one label.
    spelt = {CITATION.sub("", text).casefold().strip(" .!") for text in texts}
    few = 1 < len(labels) <= MOST_LABELS and len(table) >= FEWEST_ROWS_EACH * len(labels) and len(spelt) == len(labels)
    short = all(1 <= len(one.split()) <= 2 for one in labels)
    if not few or not short or any(len(row["expected"]) > 1 for row in table):
        return {}

    def said(name: str) -> list[str]:
        answers = (f"{_plain(after_marker(row[name], marker))} " for row in table)
        return [next((one for one in labels if answer.startswith(f"{one} ")), "") for answer in answers]

    answered = {name: said(name) for name in MODELS if name in table[0]}
    right = {
        name: [float(one == label) for one, label in zip(expected, of, strict=True)] for name, of in answered.items()
    }
    f1 = {
        name: f1_score(expected, of, labels=labels, average="macro", zero_division=0.0) for name, of in answered.items()
    }
    macro = {"rows": len(table)} | {name: float(value) for name, value in f1.items()}
    return {"accuracy": _compared({"base": [], **right}), "macro_f1": macro}


def _plain(answer: str) -> str:
    return " ".join(words(answer, joined=True))


def part_of(trainer: "SFTTrainer") -> str:
    """Which rows are measured: those of the dev set, or of the training set where there is none."""
    return "dev" if trainer.prepared.dev is not None else "train"


def data_of(trainer: "SFTTrainer") -> str:
    """The file of the rows that are measured: the dev set's, where it has one of its own."""
    cfg = trainer.cfg
    return str(cfg.dev_split if isinstance(cfg.dev_split, str) and trainer.prepared.dev is not None else cfg.data_file)


def other_keys(trainer: "SFTTrainer", config: Path, keys: Sequence[str] = ROWS) -> list[str]:
    """The keys whose value in a run's configuration is another than a trainer's; a path is what it leads to."""

    def values(cfg: Mapping) -> list[str]:
        texts = [str(OmegaConf.select(cfg, key)) for key in keys]
        return [str((find_existing(text) or Path(text)).resolve()) for text in texts]

    both = zip(keys, values(OmegaConf.load(config)), values(trainer.cfg), strict=True)
    return [key for key, recorded, ours in both if recorded != ours]


def results_folder(trainer: "SFTTrainer", save: PathText | Literal[False] | None) -> Path | None:
    """Where figures are saved: by default the output folder of a trainer that has trained. It is made at once.

    In the output folder of a run that had other rows it is `evaluation-NAME`, so that the run's own figures stay.
    """
    folder = trainer.args.output_dir if save is None and trainer.state.global_step else save
    if not folder or not trainer.is_world_process_zero():
        return None
    own = (folder := user_path(folder)) / "checkpoint" / "ragfit.yaml"
    if own.is_file() and other_keys(trainer, own):
        folder /= f"evaluation-{Path(data_of(trainer)).name.partition('.')[0]}"
    folder.mkdir(parents=True, exist_ok=True)  # what is in its way is said before the answers are generated, not after
    return folder


def save_results(folder: Path, name: str, summary: Mapping, table: Sequence[Mapping] = ()) -> Path | None:
    """Write the rows, `NAME.jsonl`, where there are any, and the summary, `NAME.json`; the path of the first of them.

    A figure that is no number is null. A full disk costs the files (None) and not the figures, which are still shown.
    """
    rows, sums = folder / f"{name}.jsonl", folder / f"{name}.json"

    def text(value: Mapping, indent: int | None = None) -> str:
        finite = json.loads(json.dumps(value), parse_constant=lambda name: None)  # JSON has no NaN and no infinity
        return json.dumps(finite, ensure_ascii=False, indent=indent) + "\n"

    try:
        rows.unlink(missing_ok=True)  # of another evaluation, which the new summary does not sum up
        if table:
            write_whole(rows, "".join(map(text, table)))
        write_whole(sums, text(summary, indent=1))
    except OSError as error:
        say(f"The figures could not be saved in {folder}: {error.strerror}.")
        return None
    return rows if table else sums


def save_loss(trainer: "SFTTrainer", loss: float) -> None:
    """Save the dev loss alone, where a run answers no rows."""
    dev, about = trainer.prepared.report.dev, {"part": "dev", "data": data_of(trainer), "rows": 0, "written": now()}
    losses = {"rows": len(dev.kept), "tokens": dev.loss_tokens, "base": None, "tuned": loss}
    save_results(Path(trainer.args.output_dir), "evaluation", about | {"dev_loss": losses})
