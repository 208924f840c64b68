"""The training step on a CPU: ragfit's trainer against `trl.SFTTrainer`.

    python tests/benchmarks/bench_step.py                    # float32 and bfloat16, without and with checkpointing
    python tests/benchmarks/bench_step.py --only float32
    python tests/benchmarks/bench_step.py --only defaults    # each side with its own defaults

Both sides train the demo model with the same LoRA adapter on the same batch: one row of 2,800 tokens of which 40 are
labelled. Each is a run in a process of its own and takes one optimizer step in turn, while the other waits. Peak memory
is the process's own. The `trl` side is as a user would write it.
"""

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from common import parser, print_ratio, print_versions, random_text, steps_in_turn, work

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
STEP = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "save_strategy": "no"}
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
    args = options.parse_args()
    if args.worker:
        return work(args.worker, {"ragfit": ours, "trl": theirs})
    print_versions()
    for name in args.only or CASES:
        case = dict(zip(("weights", "bf16", "checkpointing"), CASES[name], strict=True))
        case |= {"steps": 1, "tokens": args.tokens, "labelled": args.labelled, "data": str(args.data)}
        with tempfile.TemporaryDirectory() as folder:
            first, found = steps_in_turn(__file__, case | {"folder": folder}, args.pairs)
        print(
            f"{name}: loss of the first step {first['ragfit']['loss']:.6f} (ragfit), {first['trl']['loss']:.6f} (trl)"
        )
        for figure, unit in (("seconds", "s"), ("peak", "GiB")):
            both = [(pair["ragfit"][figure], pair["trl"][figure]) for pair in found]
            print_ratio(f"{name}, {figure}", both, "ragfit", "trl", unit, inverse=figure == "peak")


def demo_folder():
    from ragfit.models.demo import model_folder

    return str(model_folder("demo:smollm2-135m-instruct"))


def rows(case):
    """The row, as often as steps may be asked for."""
    from datasets import Dataset

    ids = row(case, demo_folder())
    labels = [-100] * (case["tokens"] - case["labelled"]) + ids[-case["labelled"] :]
    return Dataset.from_list([{"input_ids": ids, "labels": labels}] * 50)


def row(case, folder):
    """Ids of the wanted length: of real text, and of random text where that ends."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = sorted(Path(case["data"]).glob("*.jsonl"))
    real = (json.loads(line)["prompt"] for file in files for line in file.open(encoding="utf-8"))
    texts = itertools.chain(real, map(random_text, itertools.count()))
    text, ids = "", []
    while len(ids) < case["tokens"]:
        text += next(texts)
        ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[: case["tokens"]]


def ours(case):
    import ragfit

    keys = {"model.dtype": case["weights"], "train.bf16": case["bf16"]}
    keys |= {"train.gradient_checkpointing": case["checkpointing"]} | {f"train.{key}": f"'{STEP[key]}'" for key in STEP}
    overrides = [f"++{key}={value}" for key, value in keys.items() if value is not None]
    overrides += ["limit=4", "dev_split=null", f"train.output_dir={case['folder']}/ragfit"]
    cfg = ragfit.load_config("demo", overrides)
    return ragfit.build_trainer(cfg, replace(ragfit.prepare(cfg), train=rows(case)))


def theirs(case):
    """`SFTTrainer` as its documentation has it."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    args = {"output_dir": f"{case['folder']}/trl", "use_cpu": True, "max_length": None, "report_to": "none"}
    args |= STEP | {"learning_rate": 1e-3}
    model = demo_folder()
    if case["weights"]:
        model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, case["weights"]))
        args |= {"bf16": case["bf16"], "gradient_checkpointing": case["checkpointing"]}
    return SFTTrainer(
        model=model, args=SFTConfig(**args), train_dataset=rows(case), peft_config=LoraConfig(**LORA)
    )  # fmt: skip


if __name__ == "__main__":
    main()
