"""A look at the rows in a terminal, before anything is trained.

python -m ragfit look data_file=rows.jsonl output_key=answers --row 3
"""

import argparse
import json
import os
import sys

from ragfit.config.notebook import from_parameters
from ragfit.config.overrides import refuse_secrets
from ragfit.data.cache import report_as_plain
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.prepare import prepare
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError, RagfitError, for_terminal
from ragfit.views.tokens import TokenView


def audit(prepared: Prepared, index: int = 0, part: str = "train") -> dict:
    """All that preparing found, and one row token by token, as plain values.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".

    Returns:
        The report's fields, with `tokens` and `loss_tokens` of each part, and under `row` the number in its file, the
        prompt at inference, the training text, and for each token its id, text, label (-100: no loss) and `loss`.

    Raises:
        ConfigError: there is no such row.
    """
    rows = prepared.part(part)
    if rows is None or not 0 <= index < len(rows):
        there = f"rows 0 to {len(rows) - 1}" if rows is not None else "none, since dev_split is not set"
        raise ConfigError(f"--row {index}", f"{part} has no such prepared row (there are {there})", "Name another one.")
    report = report_as_plain(prepared.report)
    for name in ("train", "dev"):
        own = prepared.report.part(name)
        report[name] |= {"tokens": own.tokens, "loss_tokens": own.loss_tokens}
    view, rendered = TokenView(prepared, index, part), prepared.rendered(index, part)
    tokens = [
        {"id": number, "text": text, "label": label, "loss": label != IGNORE_INDEX}
        for number, text, label in zip(view.ids, view.texts, view.labels, strict=True)
    ]
    row = {"part": part, "index": index, "number": prepared.report.part(part).kept[index]}
    return report | {"row": row | {"prompt": rendered.prompt, "text": rendered.text, "tokens": tokens}}


def main(argv=None):
    """Look from the command line."""
    parser = argparse.ArgumentParser(
        "python -m ragfit look", description="What the model will read, and which tokens it will learn from."
    )
    parser.add_argument(
        "overrides", nargs="*", help="overrides of the configuration, such as data_file=rows.jsonl output_key=answers"
    )
    parser.add_argument(
        "--config", help="a name under configs/ or a YAML file; by default the demo, with a data_file training"
    )
    parser.add_argument("--row", type=int, default=0, help="which of the prepared rows to show; the first by default")
    parser.add_argument("--part", choices=("train", "dev"), default="train")
    parser.add_argument("--json", action="store_true", help="all that was found, and the row token by token, as JSON")
    args = parser.parse_intermixed_args(argv)
    try:
        refuse_secrets(args.overrides, "a command line is kept by shells")
        chosen = from_parameters({"config": args.config, "overrides": args.overrides})
        if not args.json:
            print(f"looking at {chosen.cfg.data_file}, as {chosen.config} says", flush=True)
        prepared = prepare(chosen.cfg)
        found = audit(prepared, args.row, args.part)
        if args.json:
            print(json.dumps(found, ensure_ascii=False, indent=1))
        else:
            colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            print(prepared.report, TokenView(prepared, args.row, args.part).terminal(colour), sep="\n\n")
    except RagfitError as error:
        sys.exit(for_terminal(error))
