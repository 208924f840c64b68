"""What a text, a row or a batch twice as large costs: about twice the time, where a careless way would take minutes.

Each case is run for a size and for twice that size in alternating pairs. A ratio near 2 is work in proportion to the
size, one near 4 its square. `a trial` and `a second look at the demo model` are single times.
"""

import json
import os
import tempfile
from pathlib import Path

from common import PAIRS, measure_pairs, parser, print_ratio, print_versions, timed

# A token of any service begins like this; the pattern that masks tokens must not look through the rest again and again.
BEGINNINGS = ("sk-proj-", "sk-or-a", "-eyJ", "://a:", "a:@", "xoxb-1", "github_pat_")


def masked_text(count):
    from ragfit.secrets import mask

    for beginning in BEGINNINGS:
        mask(beginning * count)


def row_of_many_keys(folder, count):
    from ragfit.data.rows import open_rows

    path = Path(folder, f"keys-{count}.jsonl")
    if not path.exists():
        path.write_text(json.dumps({f"k{i}": 0 for i in range(count)}) + "\n")
    open_rows(path)[0]


def prepared_row(folder, count, key, policy="drop"):
    """One row whose prompt or answer has `count` words, and a short one."""
    import ragfit

    path = Path(folder, f"{key}-{count}.jsonl")
    if not path.exists():
        short = {"prompt": "Why?", "answers": ["So."]}
        rows = [short | {key: "the quick brown fox jumps. " * (count // 5)}, short]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [f"data_file={path}", "output_key=answers", "dev_split=null", f"++model.over_length={policy}"]
    length = "null" if key == "answers" else "2048"
    ragfit.prepare(ragfit.load_config("demo", [*keys, f"model.max_sequence_len={length}"]))


def padding_of(count):
    from ragfit.training.preflight import padded_share

    padded_share([list(range(i, i + 4)) for i in range(0, count, 4)], [n % 4000 + 1 for n in range(count)])


def main():
    args = parser(__doc__).parse_args()
    args.pairs = max(args.pairs, PAIRS)
    os.environ["RAGFIT_CACHE_GB"] = "0"  # every preparation is one
    print_versions()
    import ragfit
    from ragfit.models.demo import model_folder

    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "masking a text, characters": (masked_text, 20_000),
            "a row of many keys": (lambda count: row_of_many_keys(folder, count), 100_000),
            "a row that is dropped, words": (lambda count: prepared_row(folder, count, "prompt"), 5_000_000),
            "a row that is cut, words": (lambda count: prepared_row(folder, count, "prompt", "cut_end"), 5_000_000),
            "a row with a long answer, words": (lambda count: prepared_row(folder, count, "answers"), 20_000),
            "the preflight's padding, rows": (padding_of, 50_000),
        }
        for name, (run, count) in cases.items():
            pairs = measure_pairs(lambda: run(count), lambda: run(2 * count), args.pairs)  # noqa: B023 (called at once)
            print_ratio(f"{name}, {count:,}", pairs, "one size", "twice that")
        cfg = ragfit.load_config("demo", [f"train.output_dir={folder}/out"])
        trial(cfg, ragfit.prepare(cfg))
    print(f"a second look at the demo model: {timed(model_folder)[0]:.4f} s")


def trial(cfg, prepared):
    from ragfit.training.arguments import training_arguments
    from ragfit.training.trial import try_run

    args = training_arguments(cfg, prepared)
    try_run(cfg, prepared, args)  # brings the imports
    print(f"a trial step before the weights are read: {timed(try_run, cfg, prepared, args)[0]:.3f} s")


if __name__ == "__main__":
    main()
