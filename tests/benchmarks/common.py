"""What the benchmarks share: the machine and packages on paper, and ratios with their spread.

A benchmark runs both sides in one command, in alternating pairs, because a busy machine slows both of a pair.
None is collected by pytest, and none decides a test.
"""

import argparse
import gc
import os
import platform
import random
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
PACKAGES = ("ragfit", "datasets", "jinja2", "peft", "pyarrow", "tokenizers", "torch", "transformers", "trl")
PAIRS = 5


def random_text(seed, words=6000):
    """A text of a seed's own drawing, for where `--data` has none."""
    draw = random.Random(seed)
    return " ".join(f"{draw.choice('abcdefgh')}{draw.randrange(10**5)}" for _ in range(words))


def print_versions(packages=PACKAGES):
    """Print the machine, the environment's settings of threads, and the packages' versions."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"cpu: {cpu}, {cores} cores; {platform.system()}, Python {platform.python_version()}")
    names = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print("threads: " + ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in names))
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} none")
    print("packages: " + ", ".join(found), flush=True)


def timed(function, *args, **kwargs):
    """(seconds, result) of one call, with garbage collected before it."""
    gc.collect()
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - begin, result


def measure_pairs(ours, theirs, pairs=PAIRS):
    """Time two functions in alternating pairs, the order turned round each time, after one pair to warm up.

    Args:
        ours, theirs: functions without arguments. One that returns a float has measured itself, in seconds.

    Returns:
        [(seconds of ours, seconds of theirs)]
    """

    def once(function):
        seconds, result = timed(function)
        return result if isinstance(result, float) else seconds

    once(ours), once(theirs)
    figures = []
    for number in range(pairs):
        if number % 2:
            second, first = once(theirs), once(ours)
        else:
            first, second = once(ours), once(theirs)
        figures.append((first, second))
    return figures


def print_ratio(name, figures, ours="ours", theirs="theirs", unit="s", inverse=False):
    """Print both sides' medians and the pairs' ratio theirs / ours: median and min..max.

    Args:
        name: what was measured.
        figures: [(ours, theirs)], at least five pairs.
        inverse: print ours / theirs instead.

    Returns:
        The median ratio.

    Raises:
        ValueError: fewer than five pairs.
    """
    if len(figures) < PAIRS:
        raise ValueError(f"{name}: {len(figures)} pairs are too few for a ratio. Measure at least {PAIRS}.")
    ratios = [a / b if inverse else b / a for a, b in figures]
    median = statistics.median(ratios)
    left, right = (ours, theirs) if inverse else (theirs, ours)
    sides = [
        f"{side} {statistics.median(values):.3f} {unit} ({min(values):.3f}..{max(values):.3f})"
        for side, values in zip((ours, theirs), zip(*figures, strict=True), strict=True)
    ]
    print(f"{name}: " + ", ".join(sides))
    print(
        f"{name}: {left} / {right} = {median:.2f} (spread {min(ratios):.2f}..{max(ratios):.2f}, {len(figures)} pairs)",
        flush=True,
    )
    return median


def parser(description):
    """An argument parser with what every benchmark takes: `--data`, `--pairs`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=DATA, help="the folder of JSONL files to build rows from")
    made.add_argument("--pairs", type=int, default=PAIRS, help="alternating pairs to measure")
    return made


def tokenizer_folder(name="smollm2-135m-instruct"):
    """A real tokenizer's folder under `RAGFIT_TOKENIZERS`; the demo model's where that is not set."""
    folder = os.environ.get("RAGFIT_TOKENIZERS")
    if folder and Path(folder, name).is_dir():
        return str(Path(folder, name))
    if name != "smollm2-135m-instruct":
        sys.exit(f"There is no {name} in RAGFIT_TOKENIZERS. Set it to a folder that has one.")
    from ragfit.models.demo import model_folder as demo

    return str(demo())
