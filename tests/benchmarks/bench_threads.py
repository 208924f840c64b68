"""How torch's threads wait: soon asleep, as the kit sets it, asleep at once, or spinning, as libgomp does by itself.

    python tests/benchmarks/bench_threads.py             # on a machine that does nothing else
    python tests/benchmarks/bench_threads.py --busy 2    # beside two processes that compute

Each side trains the demo for a few steps in a process of its own; the seconds are the training's, without imports and
loading.
"""

import os
import subprocess
import sys
import tempfile

from common import measure_pairs, parser, print_ratio, print_versions

OTHERS = {"asleep": "0", "spinning": "300000"}  # looks of libgomp: as of OMP_WAIT_POLICY=passive, and by default
TRAIN = """
import sys, time, ragfit
cfg = ragfit.load_config("demo", [f"train.output_dir={sys.argv[1]}", f"train.max_steps={sys.argv[2]}", "dev_split=null"])
trainer = ragfit.build_trainer(cfg, ragfit.prepare(cfg))
begin = time.perf_counter()
trainer.train()
print("seconds", time.perf_counter() - begin)
"""


def main():
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=6, help="optimizer steps of the demo")
    options.add_argument("--busy", type=int, default=0, help="processes that compute meanwhile")
    args = options.parse_args()
    print_versions()
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        for name, looks in OTHERS.items():
            pairs = measure_pairs(lambda: train(args.steps), lambda looks=looks: train(args.steps, looks), args.pairs)
            print_ratio(f"{args.steps} steps of the demo beside {args.busy} busy processes", pairs, "the kit's", name)
    finally:
        for other in others:
            other.kill()


def train(steps, looks=None):
    """Seconds of a training in a process of its own."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {"GOMP_SPINCOUNT": looks} if looks else {}
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", TRAIN, folder, str(steps)],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
    if result.returncode:
        sys.exit(result.stderr)
    return float(result.stdout.rpartition("seconds ")[2])


if __name__ == "__main__":
    main()
