"""The training step on a CPU: ragfit's trainer against `trl.SFTTrainer`.

    python tests/benchmarks/bench_step.py                    # float32 and bfloat16, without and with checkpointing
    python tests/benchmarks/bench_step.py --only float32
    python tests/benchmarks/bench_step.py --only defaults    # each side with its own defaults

Both sides train the demo model with the same LoRA adapter on the same batch: one row of 2,800 tokens of which 40 are
labelled. Each lives in a process of its own and takes a forward and backward pass in turn, while the other waits.
Peak memory is the process's own (VmHWM, reset before each step), weights and libraries included. The `trl` side is as
a user would write it; `--allocator` gives it ragfit's allocator settings as well, to tell the two effects apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import PAIRS, parser, print_ratio, print_versions

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
    settings = {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_TRIM_THRESHOLD_": str(10**11), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for side in ("ragfit", "trl"):
            worker = json.dumps(case | {"side": side, "folder": f"{folder}/{side}"})
            more = settings if side == "trl" and allocator else {}
            sides[side] = subprocess.Popen(
                [sys.executable, __file__, "--worker", worker],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=os.environ | {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"} | more,
            )  # fmt: skip
            if not sides[side].stdout.readline():
                sys.exit(f"{name}: the {side} side did not start. Run it alone: {__file__} --worker '{worker}'")

        def step(side):
            sides[side].stdin.write("step\n")
            sides[side].stdin.flush()
            return json.loads(sides[side].stdout.readline())

        for side in sides:
            step(side)  # warm up
        found = [
            {side: step(side) for side in (("ragfit", "trl") if number % 2 else ("trl", "ragfit"))}
            for number in range(max(pairs, PAIRS))
        ]
        for process in sides.values():
            process.stdin.close()
            process.wait()
    losses = {side: found[0][side]["loss"] for side in sides}
    print(f"{name}: loss of the first step {losses['ragfit']:.6f} (ragfit), {losses['trl']:.6f} (trl)")
    for figure, unit in (("seconds", "s"), ("peak", "GiB")):
        print_ratio(
            f"{name}, {figure}", [(pair["ragfit"][figure], pair["trl"][figure]) for pair in found],
            "ragfit", "trl", unit, inverse=figure == "peak",
        )  # fmt: skip


def work(case):
    answer = sys.stdout
    sys.stdout = sys.stderr  # the libraries' own lines would come between the answers
    import ragfit.demo

    folder = str(ragfit.demo.model_folder("demo:smollm2-135m-instruct"))
    trainer = ours(case) if case["side"] == "ragfit" else theirs(case, folder)
    import torch

    ids = row(case, folder)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["labels"][:, : -case["labelled"]] = -100
    trainer.model.train()
    print("ready", file=answer, flush=True)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        begin = time.perf_counter()
        loss = trainer.training_step(trainer.model, dict(batch), torch.tensor(case["labelled"]))
        seconds = time.perf_counter() - begin
        trainer.model.zero_grad()
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
        print(json.dumps({"seconds": seconds, "loss": loss.item(), "peak": peak}), file=answer, flush=True)


def row(case, folder):
    """Real text of the wanted length, as ids of shape (1, tokens)."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text, files = "", sorted(Path(case["data"]).glob("*.jsonl"))
    lines = (json.loads(line)["prompt"] for file in files for line in file.open(encoding="utf-8"))
    ids = []
    while len(ids) < case["tokens"]:
        text += next(lines)
        ids = tokenizer.encode(text, add_special_tokens=False)
    return torch.tensor([ids[: case["tokens"]]])


def ours(case):
    import ragfit

    keys = {"model.dtype": case["weights"], "train.bf16": case["bf16"], "train.gradient_checkpointing": case["checkpointing"]}
    overrides = [f"++{key}={value}".lower() for key, value in keys.items() if value is not None]
    cfg = ragfit.load_config("demo", [*overrides, "limit=4", "dev_split=null", f"train.output_dir={case['folder']}"])
    return ragfit.build_trainer(cfg, ragfit.prepare(cfg))


def theirs(case, folder):
    """`SFTTrainer` on a model loaded as its documentation does."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    args = {"output_dir": case["folder"], "use_cpu": True, "max_length": None, "report_to": "none"}
    model = folder
    if case["weights"]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, case["weights"]))
        args |= {"bf16": case["bf16"], "gradient_checkpointing": case["checkpointing"]}
    rows = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}] * 4)
    return SFTTrainer(model=model, args=SFTConfig(**args), train_dataset=rows, peft_config=LoraConfig(**LORA))


if __name__ == "__main__":
    main()
