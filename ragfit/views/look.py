"""A look at the rows in a terminal before anything is trained: `python -m ragfit look data_file=rows.jsonl --row 3`."""

from ragfit.data.cache import report_as_plain
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.views.tokens import TokenView


def audit(prepared: Prepared, index: int = 0, part: str = "train") -> dict:
    """All that preparing found, and one row token by token, as plain values.

    Under `row` are the number in its file, the prompt at inference, the training text, and for each token its id, text,
    label (-100: no loss) and `loss`. A ConfigError says that there is no such row.
    """
    report, view = report_as_plain(prepared.report), TokenView(prepared, index, part)
    for name in ("train", "dev"):
        own = prepared.report.part(name)
        report[name] |= {"tokens": own.tokens, "loss_tokens": own.loss_tokens}
    tokens = [
        {"id": token, "text": text, "label": label, "loss": label != IGNORE_INDEX}
        for token, text, label in zip(view.ids, view.texts, view.labels, strict=True)
    ]
    rendered, number = view.row.rendered, prepared.report.part(part).kept[index]
    row = {"part": part, "index": index, "number": number, "prompt": rendered.prompt, "text": rendered.text}
    return report | {"row": row | {"tokens": tokens}}
