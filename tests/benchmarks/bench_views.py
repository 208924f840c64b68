"""What a row of 4,000 tokens costs to look at: the views' time and size, and how soon the widgets answer a change.

The row is made of real documents where `--data` has them. A view's time is that of making it and its HTML; a change's
is that of the widget's own callback, as a front end sets it, until the new view is in the widget.
"""

import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from common import PAIRS, parser, print_versions, random_text, timed

PACKAGES = ("ragfit", "datasets", "ipywidgets", "jinja2", "tokenizers", "transformers")
MARKERS = {
    "smollm2-135m-instruct": "<|im_start|>assistant\n",
    "zephyr-7b-beta": "<|assistant|>\n",
    "llama-2-7b-chat": "[/INST]",
}


def words(data, seed):
    """Words of real documents, or of a seed's own drawing."""
    path = data / "asqa-raft-cot-train.jsonl"
    if not path.is_file():
        return random_text(seed).split(" ")
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line)["prompt"] for line in itertools.islice(file, 4 * seed + 4)]
    return "\n\n".join(rows[-4:]).split(" ")


def long_rows(tokenizer, data, tokens, count=3):
    """Rows whose prompts have so many tokens, less what the template adds."""
    for seed in range(count):
        text = " ".join(words(data, seed))
        ends = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        yield {"prompt": text[: ends[min(tokens, len(ends)) - 1][1]], "answers": ["The answer is in [1] and [3]. " * 3]}


def print_times(name, times, limit=None, size=None):
    said = "" if limit is None else f", {'within' if max(times) < limit else 'NOT within'} {limit:g} s"
    kilobytes = "" if size is None else f", {size / 1000:.0f} kB"
    print(
        f"{name}: {statistics.median(times):.4f} s ({min(times):.4f}..{max(times):.4f}, {len(times)} runs){said}{kilobytes}",
        flush=True,
    )


def view(args, name, make, limit=None):
    made = [timed(lambda: make()._repr_html_()) for _ in range(args.pairs + 1)]
    print_times(name, [seconds for seconds, _ in made][1:], limit, len(made[0][1].encode()))


def changes(args, prepared, show):
    """Each widget set to other values in turn; seconds until the new view is there."""
    from ragfit.views import explore

    explorer = explore(prepared, show)
    seconds, panel = timed(lambda: explorer.panel)
    print_times(f"widgets of a {show} view, made", [seconds])
    marker = panel.fields["completion_start"].value
    values = {
        "slider moved": ("slider", [1, 2, 0]),
        "row's number typed": ("number", [2, 0, 1]),
        "marker typed": ("completion_start", [marker[:-2], "", marker, "nowhere", marker]),
        "max_sequence_len changed": ("max_sequence_len", [3000, 5000, 1000, 4500]),
        "over_length changed, row too long": ("over_length", ["cut_start", "cut_end", "drop"]),
        "instruction typed": ("instruction", ["Be brief.", "Be brief. Cite.", ""]),
        "template typed": ("template", ["{query}\n<|im_start|>assistant\n{output}", "{query} {output}", ""]),
        "text searched": ("search", ["the", "and", ""]),
    }
    targets = panel.fields | {"slider": panel.slider, "number": panel.number, "search": panel.search}
    for name, (widget, options) in values.items():
        panel.fields["max_sequence_len"].value = 3000 if "too long" in name else 6000
        times = []
        for turn in range(max(args.pairs, len(options)) + 1):
            target, before = targets[widget], panel.view.value
            value = options[turn % len(options)]
            begin = time.perf_counter()
            target.value = value
            times.append(time.perf_counter() - begin)
            assert panel.view.value != before or widget == "search", (name, value)
        print_times(f"{show} view, {name}", times[1:], 0.3, len(panel.view.value.encode()))


def main():
    made = parser(__doc__)
    made.add_argument("--tokens", type=int, default=4000)
    made.add_argument("--tokenizer", default="smollm2-135m-instruct")
    args = made.parse_args()
    args.pairs = max(args.pairs, PAIRS)
    print_versions(PACKAGES)
    from common import tokenizer_folder

    from ragfit import load_config, prepare, views
    from ragfit.config.overrides import override
    from ragfit.models.tokenizer import load_tokenizer

    folder = tokenizer_folder(args.tokenizer)
    tokenizer = load_tokenizer(folder)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "rows.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in long_rows(tokenizer, args.data, args.tokens)))
        os.chdir(scratch)
        keys = {"data_file": str(path), "output_key": "answers", "model.max_sequence_len": None}
        keys["model.completion_start"] = MARKERS.get(args.tokenizer, "")
        prepared = prepare(load_config("training", [override(key, value) for key, value in keys.items()]), tokenizer)
        length = len(prepared.train[0]["input_ids"])
        print(f"{length:,} tokens, {sum(prepared.train[0]['labels'][i] != -100 for i in range(length))} with loss")
        costs = [None] * (length - 40) + [0.7] * 40
        every = [0.7] * length
        view(args, "token view", lambda: views.TokenView(prepared, 0), 0.1)
        view(args, "token view with losses of the completion", lambda: views.TokenView(prepared, 0, losses=costs), 0.1)
        view(
            args,
            "token view with a loss for every token",
            lambda: views.TokenView(prepared, 0, losses={"a": every, "b": every}),
        )
        view(args, "prompt view", lambda: views.PromptView(prepared, 0), 0.1)
        view(args, "report", lambda: prepared.report)
        view(args, "questions, documents and answers", lambda: views.RagView(prepared))
        for show in ("tokens", "prompt"):
            changes(args, prepared, show)


if __name__ == "__main__":
    main()
