"""How single rows fare over the seeds of one configuration: behind a steady mean, answers may come and go."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.runs.records import EVALUATION, METRICS, read_rows

if TYPE_CHECKING:
    from pandas import DataFrame

MATCH = ("right in all runs", "in some", "in none")
_SHAPE = {"source": str} | {f"tuned_{metric}": float for metric in METRICS}


def spread_of_rows(folders: Sequence[Path]) -> dict[str, int | float]:
    """How the tuned models of several runs answered the same rows, of each run's `evaluation.jsonl`.

    Args:
        folders: output folders of the runs.

    Returns:
        `rows`, the number of rows that all runs answered; of those, how many were matched exactly in all, some or none
        of the runs (`MATCH`); and for each metric the standard deviation of a row's value over the runs, the mean over
        the rows. {} where the runs have no row in common.
    """
    import pandas

    answered = [pandas.DataFrame(read_rows((folder / EVALUATION).with_suffix(".jsonl"), _SHAPE)) for folder in folders]
    if not all("source" in rows for rows in answered):
        return {}
    runs = pandas.concat(
        [rows.drop_duplicates("source").set_index("source") for rows in answered], keys=range(len(folders))
    )
    common: DataFrame = runs.groupby("source").filter(lambda rows: len(rows) == len(folders))
    if common.empty:
        return {}
    over = common.groupby("source")
    found: dict[str, int | float] = {"rows": len(over)}
    if "tuned_exact_match" in common:
        right = over["tuned_exact_match"].mean()
        counts = (right == 1).sum(), ((right > 0) & (right < 1)).sum(), (right == 0).sum()
        found |= dict(zip(MATCH, map(int, counts), strict=True))
    deviations = over.std().mean().dropna()
    return found | {metric: float(deviations[key]) for metric in METRICS if (key := f"tuned_{metric}") in deviations}
