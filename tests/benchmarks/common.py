"""What the benchmarks share: the machine and packages on paper, both sides in alternating pairs, ratios with their spread.

A busy machine slows both of a pair. None is collected by pytest, and none decides a test.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
PACKAGES = ("ragfit", "datasets", "jinja2", "peft", "pyarrow", "tokenizers", "torch", "transformers", "trl")
THREADS = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")
PAIRS = 5


def parser(description):
    """An argument parser with what every benchmark takes: `--data`, `--pairs`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=DATA, help="the folder of JSONL files to build rows from")
    made.add_argument("--pairs", type=int, default=PAIRS, help="alternating pairs to measure")
    made.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return made


def random_text(seed, words=6000):
    """A text of a seed's own drawing, for where `--data` has none."""
    draw = random.Random(seed)
    return " ".join(f"{draw.choice('abcdefgh')}{draw.randrange(10**5)}" for _ in range(words))


def tokenizer_folder():
    """SmolLM2's tokenizer under `RAGFIT_TOKENIZERS`, or the demo model's, which is the same."""
    from ragfit.models.demo import model_folder

    real = Path(os.environ.get("RAGFIT_TOKENIZERS", ""), "smollm2-135m-instruct")
    return str(real if real.is_dir() else model_folder())


def print_versions(packages=PACKAGES):
    """Print the machine, the environment's settings of threads, and the packages' versions."""
    cpu, cores = platform.processor() or platform.machine(), os.cpu_count()
    if sys.platform == "linux":
        lines, cores = Path("/proc/cpuinfo").read_text().splitlines(), len(os.sched_getaffinity(0))
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    print(f"cpu: {cpu}, {cores} cores; {platform.system()}, Python {platform.python_version()}")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print("threads: " + ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in THREADS))
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} none")
    print("packages: " + ", ".join(found), flush=True)


def timed(function, *args):
    """(seconds, result) of one call, with garbage collected before it."""
    gc.collect()
    begin = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - begin, result


def in_pairs(sides, pairs):
    """Call two functions in alternating pairs, the order turned round each time, after one pair to warm up.

    Args:
        sides: {name: function without arguments}.

    Returns:
        ({name: result} of the first pair, and a list of them for the others)
    """
    first = {name: function() for name, function in sides.items()}
    turned = dict(reversed(sides.items()))
    return first, [{name: call() for name, call in (turned if n % 2 else sides).items()} for n in range(pairs)]


def measure_pairs(ours, theirs, pairs=PAIRS):
    """[(seconds of ours, seconds of theirs)] of two functions, called `in_pairs`."""
    _, found = in_pairs({"ours": lambda: timed(ours)[0], "theirs": lambda: timed(theirs)[0]}, pairs)
    return [(pair["ours"], pair["theirs"]) for pair in found]


def print_ratio(name, figures, ours, theirs, unit="s", inverse=False):
    """Print both sides' medians and the pairs' ratio theirs / ours, median and min..max; return the median ratio.

    Args:
        name: what was measured.
        figures: [(ours, theirs)], at least five pairs.
        inverse: print ours / theirs instead.
    """
    if len(figures) < PAIRS:
        raise ValueError(f"{name}: {len(figures)} pairs are too few for a ratio. Measure at least {PAIRS}.")
    ratios = [a / b if inverse else b / a for a, b in figures]
    median = statistics.median(ratios)
    for side, values in zip((ours, theirs), zip(*figures, strict=True), strict=True):
        print(f"{name}: {side} {statistics.median(values):.3f} {unit} ({min(values):.3f}..{max(values):.3f})")
    left, right = (ours, theirs) if inverse else (theirs, ours)
    spread = f"spread {min(ratios):.2f}..{max(ratios):.2f}, {len(figures)} pairs"
    print(f"{name}: {left} / {right} = {median:.2f} ({spread})", flush=True)
    return median


def steps_in_turn(script, case, pairs):
    """What both sides need for the same optimizer steps. Each is a run in a process of its own; the other waits.

    Args:
        script: the benchmark, which calls `work` where it is given `--worker`.
        case: what `work` is told, in a form that JSON has, with a `folder` for logs.

    Returns:
        As `in_pairs`, of the sides "ragfit" and "trl", with the figures that `work` answers.
    """
    workers = {}

    def heard(side):
        if line := workers[side].stdout.readline():
            return json.loads(line)
        sys.exit(f"The {side} side stopped.\n{Path(case['folder'], f'{side}.log').read_text()[-3000:]}")

    def ask(side):
        workers[side].stdin.write("steps\n")
        workers[side].stdin.flush()
        return heard(side)

    for side in ("ragfit", "trl"):  # ragfit's is there first, and may leave its rows for the other
        with Path(case["folder"], f"{side}.log").open("w") as log:
            workers[side] = subprocess.Popen(
                [sys.executable, script, "--worker", json.dumps(case | {"side": side})], text=True, stderr=log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        heard(side)
    found = in_pairs({side: lambda side=side: ask(side) for side in workers}, max(pairs, PAIRS))
    for worker in workers.values():
        worker.communicate()
    return found


def work(case, sides):
    """Take `case["steps"]` optimizer steps for each line that comes in, and answer with their figures as JSON.

    These are seconds, peak (GiB), loss and tokens. Peak memory is torch's own on a GPU, and on a CPU the process's,
    weights and libraries included. Tokens are those that TRL counts, without padding.

    Args:
        sides: {side: a function that takes the case and makes its trainer}.
    """
    answer, sys.stdout = sys.stdout, sys.stderr  # the libraries' own lines would come between the answers
    trainer = sides[case["side"]](case)

    import torch
    from transformers import TrainerCallback

    cuda = trainer.args.device.type == "cuda"

    def peak():
        if cuda:
            return torch.cuda.max_memory_allocated() / 2**30
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20

    class Steps(TrainerCallback):
        tokens = 0

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % case["steps"]:
                return
            if not sys.stdin.readline():
                os._exit(0)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.begin = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            control.should_log = not state.global_step % case["steps"]
            if control.should_log:
                if cuda:
                    torch.cuda.synchronize()
                self.figures = {"seconds": time.perf_counter() - self.begin, "peak": peak()}

        def on_log(self, args, state, control, logs=None, **kwargs):
            found = self.figures | {"loss": logs["loss"], "tokens": logs["num_tokens"] - self.tokens}
            self.tokens = logs["num_tokens"]
            print(json.dumps(found), file=answer, flush=True)

    trainer.add_callback(Steps())
    print("{}", file=answer, flush=True)
    trainer.train()
