"""Kill a run at random moments, resume it each time until it is through, and compare it with one that nobody killed.

    python tests/benchmarks/kill_runs.py                                  # a model of a few thousand weights
    python tests/benchmarks/kill_runs.py --demo --data asqa-prefix-train.jsonl    # the demo model on rows cut to 256 tokens

Prints a line for each kill (SIGKILL) and the comparison: the losses at each logged step, the adapter's weights, and
whether any whole checkpoint or finished adapter was lost on the way. The exit code is 1 where anything differs.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import parser, print_versions
from killed_runs import adapter, logged, process, run

from ragfit.config.overrides import override
from ragfit.runs.status import read, run_state
from ragfit.training.checkpoints import STAGING, newest, step_of


def settings(args, folder):
    """Overrides of `configs/training.yaml`, less `train.output_dir`."""
    if args.demo:
        keys = {"model.model_name_or_path": "demo:smollm2-135m-instruct", "data_file": str(args.data)}
        keys |= {"model.max_sequence_len": 256, "model.over_length": "cut_end", "train.learning_rate": 1e-3}
    else:
        from tiny_runs import question_rows, save_tiny

        save_tiny("llama", folder / "model")
        rows = "".join(json.dumps(row) + "\n" for row in question_rows(200))
        (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
        keys = {"model.model_name_or_path": str(folder / "model"), "data_file": str(folder / "rows.jsonl")}
        keys |= {"train.learning_rate": 0.01}
    keys |= {
        "model.completion_start": "<|im_start|>assistant\n", "model.lora.target_modules": ["q_proj", "v_proj"],
        "model.load_in_8bit": False, "output_key": "answers", "limit": args.rows, "shuffle": 7,
        "train.optim": "adamw_torch", "train.max_steps": args.steps, "train.save_steps": args.save_steps,
        "train.logging_steps": 3,
    }  # fmt: skip
    return [override(key, value) for key, value in keys.items()]


def start(overrides, out, log):
    more = ["resume_checkpoint=true"] if read(out) else []
    return process(run, [*overrides, override("train.output_dir", str(out)), *more], (), None, str(log))


def main():
    made = parser(__doc__)
    made.add_argument("--demo", action="store_true", help="the demo model on --data, instead of a tiny one")
    made.add_argument("--kills", type=int, default=20)
    made.add_argument("--steps", type=int, default=240)
    made.add_argument("--save-steps", type=int, default=3)
    made.add_argument("--rows", type=int, default=50)
    made.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = made.parse_args()
    print_versions()
    print(f"seed {args.seed}: {args.steps} steps, a checkpoint every {args.save_steps}, one kept, a log every 3")
    chance, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="kill-runs-"))
    overrides, log, through = settings(args, folder), folder / "log", folder / "through"
    window = measured_window(overrides, through, log, args.steps)

    kills, runs, lost, in_saves, half_written = 0, 0, 0, 0, {}
    while kills < args.kills:
        out, finished = folder / f"killed-{runs}", False
        while not finished:
            at, started = chance.uniform(0, window), start(overrides, out, log)
            started.join(at if kills < args.kills else None)
            if started.is_alive():
                held, before = step_of(newest(out)), half_written
                started.kill()
                started.join()
                kills += 1
                facts, left = read(out) or {}, newest(out)
                half_written = {path: path.stat().st_ino for path in (out / STAGING).glob("*")}
                lost += step_of(left) < held
                in_saves += bool(half_written) and half_written != before
                print(
                    f"kill {kills:2}: {at:5.2f} s after its start, step {facts.get('step') or 0:3} "
                    f"{run_state(facts)[0] if facts else 'no status yet':<13} left: {left.name if left else 'none':<14} "
                    f"half-written: {', '.join(path.name for path in half_written) or 'none'}",
                    flush=True,
                )
            elif started.exitcode:
                sys.exit(f"A resumed run failed:\n{log.read_text()[-3000:]}")
            else:
                finished = True
        runs += 1
        lost += differs(out, through)
    print(f"{kills} kills, {in_saves} of them in the middle of a save; {runs} runs brought to their end; "
          f"{lost} with anything lost or different")  # fmt: skip
    sys.exit(1 if lost else 0)


def measured_window(overrides, through, log, steps):
    """Run through without a kill; the seconds from a start in which kills are to fall: to a quarter of the steps."""
    start(overrides, through.with_name("warm"), log).join()  # the server imports everything for the first
    began, started = time.monotonic(), start(overrides, through, log)
    while started.is_alive() and "total_steps" not in (read(through) or {}):
        time.sleep(0.01)
    ready = time.monotonic() - began
    started.join()
    if started.exitcode:
        sys.exit(f"The run to compare with failed:\n{log.read_text()[-3000:]}")
    step = (time.monotonic() - began - ready) / steps
    window = ready + step * steps / 4
    print(f"ran through: {ready:.1f} s to the first step, {step:.3f} s a step; "
          f"kills fall in the first {window:.1f} s of each start")  # fmt: skip
    return window


def differs(out, through):
    """Print how a run that was killed compares with the other; whether anything differs."""
    ours, theirs, weights = logged(out), logged(through), adapter(through)
    losses = [(a["loss"], b["loss"]) for a, b in zip(ours, theirs, strict=True) if "loss" in a]
    off = max(abs(a - b) for a, b in losses)
    apart = max((tensor - weights[name]).abs().max().item() for name, tensor in adapter(out).items())
    equal = "equal" if ours == theirs else "DIFFER"
    print(f"  {out.name} is through: {len(losses)} logged losses, largest difference {off:g}; other logged values {equal}; "
          f"adapter's largest difference {apart:g}; {run_state(read(out))[0]}", flush=True)  # fmt: skip
    return ours != theirs or apart > 0


if __name__ == "__main__":
    main()
