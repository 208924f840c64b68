"""The training step on a CPU: ragfit's trainer against `trl.SFTTrainer`.

    python tests/benchmarks/bench_step.py                    # float32 and bfloat16, without and with checkpointing
    python tests/benchmarks/bench_step.py --only float32
    python tests/benchmarks/bench_step.py --only defaults    # each side with its own defaults

Both sides train the demo model with the same LoRA adapter on the same batch: one row of 2,800 tokens of which 40 are
labelled. Each is a run in a process of its own and takes one optimizer step in turn, while the other waits.
Peak memory is the process's own (VmHWM, reset before each step), weights and libraries included. The `trl` side is as
a user would write it; `--allocator` gives it ragfit's allocator settings as well, to tell the two effects apart.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import PAIRS, parser, print_ratio, print_versions, random_text

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
CASES = {  # name: (weights, bf16, activation checkpointing)
    "float32": ("float32", False, False),
    "bfloat16": ("bfloat16", True, False),
    "float32, checkpointing": ("float32", False, True),
    "bfloat16, checkpointing": ("bfloat16", True, True),
    "defaults": (None, None, None),
}


def main():
    options = parser(__doc__)
    options.add_argument("--only", action="append", choices=list(CASES), help="a case; may be given again")
    options.add_argument("--tokens", type=int, default=2800, help="tokens of the row")
    options.add_argument("--labelled", type=int, default=40, help="labelled tokens of the row")
    options.add_argument("--allocator", action="store_true", help="ragfit's allocator settings on both sides")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        return work(json.loads(args.worker))
    print_versions()
    for name in args.only or CASES:
        weights, bf16, checkpointing = CASES[name]
        case = {"weights": weights, "bf16": bf16, "checkpointing": checkpointing, "tokens": args.tokens}
        case |= {"labelled": args.labelled, "data": str(args.data)}
        compare(name, case, args.pairs, args.allocator)


def compare(name, case, pairs, allocator):
    settings = {
        "THP_MEM_ALLOC_ENABLE": "1",
        "MALLOC_TRIM_THRESHOLD_": str(10**11),
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
    }
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for side in ("ragfit", "trl"):
            worker = json.dumps(case | {"side": side, "folder": f"{folder}/{side}"})
            more = settings if side == "trl" and allocator else {}
            sides[side] = subprocess.Popen(
                [sys.executable, __file__, "--worker", worker],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1"} | more,
            )  # fmt: skip
            if not sides[side].stdout.readline():
                sys.exit(f"{name}: the {side} side did not start. Run it alone: {__file__} --worker '{worker}'")

        def step(side):
            sides[side].stdin.write("step\n")
            sides[side].stdin.flush()
            return json.loads(sides[side].stdout.readline())

        losses = {side: step(side)["loss"] for side in sides}  # and warms up
        found = [
            {side: step(side) for side in (("ragfit", "trl") if number % 2 else ("trl", "ragfit"))}
            for number in range(max(pairs, PAIRS))
        ]
        for process in sides.values():
            process.stdin.close()
            process.wait()
    print(f"{name}: loss of the first step {losses['ragfit']:.6f} (ragfit), {losses['trl']:.6f} (trl)")
    for figure, unit in (("seconds", "s"), ("peak", "GiB")):
        print_ratio(
            f"{name}, {figure}", [(pair["ragfit"][figure], pair["trl"][figure]) for pair in found],
            "ragfit", "trl", unit, inverse=figure == "peak",
        )  # fmt: skip


def work(case):
    answer = sys.stdout
    sys.stdout = sys.stderr  # the libraries' own lines would come between the answers
    if case["side"] == "ragfit":
        import ragfit.training.run  # noqa: F401  as a run does it, before torch: its allocator's settings are read once
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        """Takes a step of the run for each line that comes in, and answers with its figures."""

        def on_step_begin(self, args, state, control, **kwargs):
            if not sys.stdin.readline():
                os._exit(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.begin = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds = time.perf_counter() - self.begin
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20

        def on_log(self, args, state, control, logs=None, **kwargs):
            found = {"seconds": self.seconds, "loss": logs["loss"], "peak": self.peak}
            print(json.dumps(found), file=answer, flush=True)

    import ragfit.models.demo

    folder = str(ragfit.models.demo.model_folder("demo:smollm2-135m-instruct"))
    side = ours if case["side"] == "ragfit" else theirs
    trainer = side(case, folder, [Steps()])
    print("ready", file=answer, flush=True)
    trainer.train()


def rows(case, folder):
    """The row, as often as steps may be asked for."""
    from datasets import Dataset

    ids = row(case, folder)
    labels = [-100] * (case["tokens"] - case["labelled"]) + ids[-case["labelled"] :]
    return Dataset.from_list([{"input_ids": ids, "labels": labels}] * 50)


def row(case, folder):
    """Ids of the wanted length: of real text, and of random text where that ends."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text, files = "", sorted(Path(case["data"]).glob("*.jsonl"))
    real = (json.loads(line)["prompt"] for file in files for line in file.open(encoding="utf-8"))
    texts = itertools.chain(real, map(random_text, itertools.count()))
    ids = []
    while len(ids) < case["tokens"]:
        text += next(texts)
        ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[: case["tokens"]]


STEP = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "logging_steps": 1, "save_strategy": "no"}


def ours(case, folder, callbacks):
    from dataclasses import replace

    import ragfit

    keys = {
        "model.dtype": case["weights"],
        "train.bf16": case["bf16"],
        "train.gradient_checkpointing": case["checkpointing"],
    }
    keys |= {f"train.{key}": f"'{value}'" for key, value in STEP.items()}
    overrides = [f"++{key}={value}" for key, value in keys.items() if value is not None]
    cfg = ragfit.load_config("demo", [*overrides, "limit=4", "dev_split=null", f"train.output_dir={case['folder']}"])
    return ragfit.build_trainer(cfg, replace(ragfit.prepare(cfg), train=rows(case, folder)), callbacks)


def theirs(case, folder, callbacks):
    """`SFTTrainer` as its documentation has it."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    args = {
        "output_dir": case["folder"],
        "use_cpu": True,
        "max_length": None,
        "report_to": "none",
        "learning_rate": 1e-3,
    } | STEP
    model = folder
    if case["weights"]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, case["weights"]))
        args |= {"bf16": case["bf16"], "gradient_checkpointing": case["checkpointing"]}
    return SFTTrainer(
        model=model, args=SFTConfig(**args), train_dataset=rows(case, folder),
        peft_config=LoraConfig(**LORA), callbacks=callbacks,
    )  # fmt: skip


if __name__ == "__main__":
    main()
