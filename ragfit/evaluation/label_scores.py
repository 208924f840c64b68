"""Rows whose expected answers are few labels, such as yes, no and maybe: accuracy, macro F1 and a confusion table.

They are the figures of PubMedQA (Jin et al. 2019, https://arxiv.org/abs/1909.06146), computed by scikit-learn.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ragfit.evaluation.metrics import after_marker, normalize, without_citations

MOST_LABELS, FEWEST_ROWS_EACH = 10, 3  # more labels, or fewer rows for each, are answers rather than labels
OTHER = "(other)"


def label_scores(table: Sequence[Mapping[str, Any]], marker: str | None = None) -> dict[str, Any]:
    """What came of rows whose expected answers are labels; {} where they are not.

    An answer counts as a label where it is one or begins with one ("Yes, because …"), as `ragfit.evaluation.metrics`
    normalizes it; every other answer is "(other)".

    Args:
        table: rows with `expected`, and the answers under `base` and `tuned`.
        marker: only what follows it in an answer counts.

    Returns:
        `accuracy` and `macro_f1` as `ragfit.evaluation.results.summarize` gives metrics, and `confusion`: `labels`, and
        for each model a list for each expected label of how often each label was answered.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    texts = [without_citations(row["expected"][0]) for row in table]
    expected = [normalize(text) for text in texts]
    labels = sorted(set(expected))
    if len({text.casefold().strip(" .!") for text in texts}) > len(labels):
        return {}  # normalizing makes one of two of them, such as -1 and 1
    if any(len(row["expected"]) > 1 for row in table) or not 1 < len(labels) <= MOST_LABELS:
        return {}
    if len(table) < FEWEST_ROWS_EACH * len(labels) or any(not 0 < len(label.split()) <= 2 for label in labels):
        return {}
    found = {"accuracy": {"rows": len(table)}, "macro_f1": {"rows": len(table)}}
    found["confusion"], right = {"labels": [*labels, OTHER]}, {}
    for name in ("base", "tuned"):
        if name not in table[0]:
            continue
        said = [_label(after_marker(row[name], marker), labels) for row in table]
        found["accuracy"][name] = float(accuracy_score(expected, said))
        found["macro_f1"][name] = float(f1_score(expected, said, labels=labels, average="macro", zero_division=0.0))
        found["confusion"][name] = confusion_matrix(expected, said, labels=[*labels, OTHER])[:-1].tolist()
        right[name] = [one == other for one, other in zip(expected, said, strict=True)]
    if "base" in right:
        pairs = list(zip(right["base"], right["tuned"], strict=True))
        found["accuracy"] |= {"better": sum(t > b for b, t in pairs), "worse": sum(t < b for b, t in pairs)}
    return found


def _label(answer: str, labels: Sequence[str]) -> str:
    answer = without_citations(answer)
    said = normalize(answer)
    if re.match(r"\W*a\W*[).:]", answer, re.IGNORECASE):
        said = f"a {said}"  # "A) Paris" is a choice; normalizing took it for an article
    # The longest first: "not sure" is not "not".
    return next((one for one in sorted(labels, key=len, reverse=True) if f"{said} ".startswith(f"{one} ")), OTHER)
