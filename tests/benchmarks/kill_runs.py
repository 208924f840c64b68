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
import torch
from common import parser, print_versions
from killed_runs import adapter, logged, process, run

from ragfit.config.overrides import override
from ragfit.runs.status import read, run_state
from ragfit.training.checkpoints import STAGING, newest, step_of


def settings(args, folder):
    """Overrides of `configs/training.yaml`, less `train.output_dir`."""
    if args.demo:
        overrides = [
            override("model.model_name_or_path", "demo:smollm2-135m-instruct"),
            override("model.lora.target_modules", ["q_proj", "v_proj"]),
            override("data_file", str(args.data)),
            "model.max_sequence_len=256",
            "model.over_length=cut_end",
            "train.learning_rate=1e-3",
        ]
    else:
        overrides = [*tiny(folder), "train.learning_rate=0.01"]
    return [
        override("model.completion_start", "<|im_start|>assistant\n"),
        "output_key=answers", "model.load_in_8bit=false", "train.optim=adamw_torch", f"limit={args.rows}", "shuffle=7",
        f"train.max_steps={args.steps}", f"train.save_steps={args.save_steps}", "train.logging_steps=3", *overrides,
    ]  # fmt: skip


def tiny(folder):
    from conftest import make_tokenizer
    from tiny_runs import question_rows
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, sizes = (
        make_tokenizer("digits", "chatml"),
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in question_rows(200)), encoding="utf-8")
    return [
        override("model.model_name_or_path", str(folder / "model")),
        override("data_file", str(folder / "rows.jsonl")),
        "model.lora.target_modules=[q_proj, v_proj]",
    ]


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
    chance = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-runs-"))
    overrides, log = settings(args, folder), folder / "log"

    start(overrides, folder / "warm", log).join()  # the server imports everything for the first
    began, through = time.monotonic(), start(overrides, folder / "through", log)
    ready = None
    while through.is_alive():
        if ready is None and "total_steps" in (read(folder / "through") or {}):
            ready = time.monotonic() - began
        time.sleep(0.01)
    if through.exitcode:
        sys.exit(f"The run to compare with failed:\n{log.read_text()[-3000:]}")
    step = (time.monotonic() - began - ready) / args.steps
    window = ready + step * args.steps / 4
    print(
        f"ran through: {ready:.1f} s to the first step, {step:.3f} s a step; kills fall in the first {window:.1f} s of each start"
    )

    kills, runs, lost, in_saves, out, half_written = 0, 0, 0, 0, folder / "killed-0", {}
    while True:
        at, started = chance.uniform(0, window), start(overrides, out, log)
        started.join(at if kills < args.kills else None)
        if started.is_alive():
            held, before = newest_step(out), half_written
            started.kill()
            started.join()
            kills += 1
            facts, left = read(out) or {}, newest(out)
            half_written = {path: path.stat().st_ino for path in (out / STAGING).glob("*")}
            lost += newest_step(out) < held
            in_saves += bool(half_written) and half_written != before
            half = ", ".join(path.name for path in half_written)
            state = run_state(facts)[0] if facts else "no status yet"
            print(
                f"kill {kills:2}: {at:5.2f} s after its start, step {facts.get('step') or 0:3} {state:<13} "
                f"left: {left.name if left else 'none':<14} {'half-written: ' + half if half else ''}",
                flush=True,
            )
            continue
        if started.exitcode:
            sys.exit(f"A resumed run failed:\n{log.read_text()[-3000:]}")
        runs += 1
        lost += compare(out, folder / "through")
        if kills >= args.kills:
            break
        out = folder / f"killed-{runs}"
    print(
        f"{kills} kills, {in_saves} of them in the middle of a save; {runs} runs brought to their end; {lost} with anything lost or different"
    )
    sys.exit(1 if lost else 0)


def newest_step(out):
    return step_of(newest(out))


def compare(out, through):
    """Print how a run that was killed compares; whether anything differs."""
    ours, theirs = logged(out), logged(through)
    losses = [(a["loss"], b["loss"]) for a, b in zip(ours, theirs, strict=True) if "loss" in a]
    off = max(abs(a - b) for a, b in losses)
    weights = adapter(through)
    apart = max((tensor - weights[name]).abs().max().item() for name, tensor in adapter(out).items())
    same = ours == theirs and apart == 0
    print(
        f"  {out.name} is through: {len(losses)} logged losses, largest difference {off:g}; other logged values "
        f"{'equal' if ours == theirs else 'DIFFER'}; adapter's largest difference {apart:g}; {run_state(read(out))[0]}",
        flush=True,
    )
    return not same


if __name__ == "__main__":
    main()
