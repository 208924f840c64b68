"""The figures of an evaluation: summed up over its rows, and saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from ragfit.config.paths import PathText, find_existing, user_path
from ragfit.data.words import CITATION, words
from ragfit.draw.progress import say
from ragfit.evaluation.metrics import after_marker
from ragfit.files import write_whole
from ragfit.runs.records import METRICS, now

if TYPE_CHECKING:
    from trl import SFTTrainer

MODELS, CLOSED_BOOK = ("base", "tuned"), "closed_book"  # the last: tuned, without documents
MOST_LABELS, FEWEST_ROWS_EACH = 10, 3  # more labels, or fewer rows for each, are answers rather than labels
OTHER = "(other)"


def summarize(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean of each metric over the rows that have it, and on how many of them tuned is better or worse than base.

    Base and tuned answer the same rows. `closed_book` is over those of them whose documents were found.

    Returns:
        `{metric: {"rows": …, "base": …, "tuned": …, "better": …, "worse": …}}`, without metrics that no row has.
    """
    summary = {}
    for metric in METRICS:
        keys = {name: f"{name}_{metric}" for name in (*MODELS, CLOSED_BOOK)}
        values = {name: [row[key] for row in table if row.get(key) is not None] for name, key in keys.items()}
        if values["tuned"]:
            means = {name: sum(found) / len(found) for name, found in values.items() if found}
            better = _better(values["base"], values["tuned"]) if values["base"] else {}
            summary[metric] = {"rows": len(values["tuned"]), **means, **better}
    return summary


def _better(base: Sequence[float], tuned: Sequence[float]) -> dict[str, int]:
    pairs = list(zip(base, tuned, strict=True))
    return {"better": sum(t > b for b, t in pairs), "worse": sum(t < b for b, t in pairs)}


def label_scores(table: Sequence[Mapping[str, Any]], marker: str | None = None) -> dict[str, Any]:
    """What came of rows whose expected answers are few labels, such as yes, no and maybe; {} where they are not.

    An answer counts as a label where it is one or begins with one ("Yes, because …"), case, punctuation and citations
    apart; every other answer is "(other)". They are the figures of PubMedQA (Jin et al. 2019,
    https://arxiv.org/abs/1909.06146), computed by scikit-learn.

    Args:
        table: rows with `expected`, and the answers under `base` and `tuned`.
        marker: only what follows it in an answer counts.

    Returns:
        `accuracy` and `macro_f1` as `summarize` gives metrics, and `confusion`: `labels`, and for each model a list for
        each expected label of how often each label was answered.
    """
    from sklearn.metrics import confusion_matrix, f1_score

    texts = [row["expected"][0] for row in table]
    expected = [_plain(text) for text in texts]
    labels = sorted(set(expected))
    # Where there are more of these than labels, words alone do not tell them apart: C and C++ would be one label.
    spelt = {CITATION.sub("", text).casefold().strip(" .!") for text in texts}
    few = 1 < len(labels) <= MOST_LABELS and len(table) >= FEWEST_ROWS_EACH * len(labels) and len(spelt) == len(labels)
    if (
        not few
        or any(len(row["expected"]) > 1 for row in table)
        or any(len(one.split()) not in (1, 2) for one in labels)
    ):
        return {}
    accuracy, macro_f1, right = {"rows": len(table)}, {"rows": len(table)}, {}
    confusion: dict[str, list] = {"labels": [*labels, OTHER]}
    for name in (name for name in MODELS if name in table[0]):
        said = [_label(after_marker(row[name], marker), labels) for row in table]
        right[name] = [one == other for one, other in zip(expected, said, strict=True)]
        accuracy[name] = sum(right[name]) / len(table)
        macro_f1[name] = float(f1_score(expected, said, labels=labels, average="macro", zero_division=0.0))
        confusion[name] = confusion_matrix(expected, said, labels=[*labels, OTHER])[:-1].tolist()
    if "base" in right:
        accuracy |= _better(right["base"], right["tuned"])
    return {"accuracy": accuracy, "macro_f1": macro_f1, "confusion": confusion}


def _plain(answer: str) -> str:
    return " ".join(words(answer, joined=True))


def _label(answer: str, labels: Sequence[str]) -> str:
    said = _plain(answer)
    # The longest first: "not sure" is not "not".
    return next((one for one in sorted(labels, key=len, reverse=True) if f"{said} ".startswith(f"{one} ")), OTHER)


ROWS = ("data_file", "input_key", "output_key", "limit", "shuffle", "dev_split")  # the keys that choose the rows


def part_of(trainer: "SFTTrainer") -> str:
    """Which rows are measured: those of the dev set, or of the training set where there is none."""
    return "dev" if trainer.prepared.dev is not None else "train"


def data_of(trainer: "SFTTrainer") -> str:
    """The file of the rows that are measured: the dev set's, where it has one of its own."""
    cfg = trainer.cfg
    return str(cfg.dev_split if isinstance(cfg.dev_split, str) and trainer.prepared.dev is not None else cfg.data_file)


def other_keys(trainer: "SFTTrainer", config: Path, keys: Sequence[str] = ROWS) -> list[str]:
    """The keys whose value in a run's configuration is another than a trainer's."""

    def named(cfg: DictConfig, key: str) -> str:
        value = OmegaConf.select(cfg, key)
        return str((value and find_existing(str(value)) or Path(str(value))).resolve())

    recorded = OmegaConf.load(config)
    return [key for key in keys if named(recorded, key) != named(trainer.cfg, key)]


def results_folder(trainer: "SFTTrainer", save: PathText | Literal[False] | None) -> Path | None:
    """Where figures are saved: by default the output folder of a trainer that has trained. It is made at once.

    In the output folder of a run that had other rows it is `evaluation-NAME`, so that the run's own figures stay.
    """
    folder = trainer.args.output_dir if save is None and trainer.state.global_step else save
    if not folder or not trainer.is_world_process_zero():
        return None
    folder = user_path(folder)
    own = folder / "checkpoint" / "ragfit.yaml"
    if own.is_file() and other_keys(trainer, own):
        folder /= f"evaluation-{Path(data_of(trainer)).name.partition('.')[0]}"
    folder.mkdir(parents=True, exist_ok=True)  # what is in its way is said before the answers are generated, not after
    return folder


def save_results(folder: Path, name: str, summary: Mapping, table: Sequence[Mapping] = ()) -> Path | None:
    """Write the rows, `NAME.jsonl`, where there are any, and the summary, `NAME.json`, each whole or not at all.

    A figure that is no number is null. A full disk costs the files and not the figures, which are still shown.

    Returns:
        The path of the rows, or of the summary where there are none; None where they could not be written.
    """
    rows, sums = folder / f"{name}.jsonl", folder / f"{name}.json"

    def text(value: Mapping, **how: Any) -> str:
        finite = json.loads(json.dumps(value), parse_constant=lambda name: None)  # JSON has no NaN and no infinity
        return json.dumps(finite, ensure_ascii=False, allow_nan=False, **how) + "\n"

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
    dev, folder = trainer.prepared.report.dev, Path(trainer.args.output_dir)
    losses = {"rows": len(dev.kept), "tokens": dev.loss_tokens, "base": None, "tuned": loss}
    summary = {"part": "dev", "data": str(trainer.cfg.dev_split), "rows": 0, "written": now(), "dev_loss": losses}
    save_results(folder, "evaluation", summary)
