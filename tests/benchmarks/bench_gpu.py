"""Training on a GPU: ragfit against `trl.SFTTrainer` as its users run it, with packing off and on.

    python tests/benchmarks/bench_gpu.py                       # a Phi-3 of 0.5 billion weights, made on the spot
    python tests/benchmarks/bench_gpu.py --bits 8              # the documented 8 bits; --bits 4 too
    python tests/benchmarks/bench_gpu.py --model FOLDER        # a model of yours that has qkv_proj, with its tokenizer
    python tests/benchmarks/bench_gpu.py --device cpu          # a tiny model: shows that the script works, no figures

Both sides train on the same token ids and labels, with the same adapter, bfloat16 autocast, optimizer and activation
checkpointing. Each is a run in a process of its own; they take a few optimizer steps in turn, while the other waits.
Tokens are those that TRL counts, without padding. Peak memory is torch's own on a GPU (`max_memory_allocated`), and
the process's on a CPU. The rows are PubMedQA's where `--data` has them, and drawn at random elsewhere.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import PAIRS, ROOT, parser, print_ratio, print_versions, random_text

FILE = "pubmed-rag-train.jsonl"
LORA = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["qkv_proj"], "task_type": "CAUSAL_LM"}
SIZES = {  # of the model, and the tokens of a pack and of the longest row, the rows, and of these in a padded batch
    "cuda": ({"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 16}, 4096, 400, 4),
    "cpu": ({}, 400, 40, 4),
}  # fmt: skip


def main():
    options = parser(__doc__)
    options.add_argument("--device", choices=list(SIZES), default="cuda", help="cpu: a tiny model, to try the script")
    options.add_argument("--model", help="a folder with a model and its tokenizer")
    options.add_argument("--bits", type=int, choices=(4, 8), help="load the model quantized")
    options.add_argument("--steps", type=int, default=4, help="optimizer steps in turn")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        return work(json.loads(args.worker))
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA here. --device cpu tries the script with a tiny model.")
    print_versions()
    print(
        f"device: {torch.cuda.get_device_name() if args.device == 'cuda' else 'cpu'}, weights: {f'{args.bits} bits' if args.bits else 'bfloat16'}"
    )
    sizes, length, count, batch = SIZES[args.device]
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or made_model(f"{folder}/model", sizes)
        case = {"model": model, "folder": folder, "length": length, "batch": batch, "steps": args.steps}
        case |= {"bits": args.bits, "device": args.device}
        write_rows(Path(folder, "rows.jsonl"), args.data / FILE, count, length)
        table = [compare(name, case | {"packing": name == "packed"}, args.pairs) for name in ("padded", "packed")]
    print("\n| | tokens a second | of SFTTrainer's | peak memory, GiB | of SFTTrainer's |\n|---|---|---|---|---|")
    for name, (ours, theirs, speed), (mine, other, memory) in table:
        print(f"| {name}: ragfit | {ours:,.0f} | {speed:.2f} | {mine:.2f} | {memory:.2f} |")
        print(f"| {name}: SFTTrainer | {theirs:,.0f} | | {other:.2f} | |")


def made_model(folder, sizes):
    """A Phi-3 with random weights and a small tokenizer; of its 32,064 ids that tokenizer has but a few."""
    sys.path.insert(0, str(ROOT / "tests"))
    from gpu.on_device import make_phi3

    return str(make_phi3(folder, vocabulary=32064, **sizes))


def write_rows(path, real, count, length):
    """Rows as RAG has them: a prompt of some documents, of very different lengths, and a short answer.

    None has more tokens than `length`: a small tokenizer has one for a character at most.
    """
    if real.is_file():
        found = (json.loads(line) for line in real.read_text(encoding="utf-8").splitlines()[:count])
        rows = [
            {"prompt": row["prompt"][: length * 3 // 4], "answers": [row["answers"][0][: length // 10]]}
            for row in found
        ]
    else:
        draw, words = random.Random(0), random_text(0)
        cut = [words[: draw.randint(length // 20, length // 3)] for _ in range(count)]
        rows = [{"prompt": f"{text}\nWhich?", "answers": [text[: 40 + n % 40]]} for n, text in enumerate(cut)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def compare(name, case, pairs):
    """Both sides in turn; (name, both sides' tokens a second and their ratio, both sides' peaks and their ratio)."""
    sides = {}
    for side in ("ragfit", "trl"):
        worker = json.dumps(case | {"side": side})
        with Path(case["folder"], f"{side}.log").open("w") as log:
            sides[side] = subprocess.Popen(
                [sys.executable, __file__, "--worker", worker], text=True, stderr=log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        if not sides[side].stdout.readline():  # ragfit's is first, and leaves its rows for the other
            sys.exit(f"{name}: the {side} side did not start.\n{Path(log.name).read_text()[-3000:]}")

    def steps(side):
        sides[side].stdin.write("steps\n")
        sides[side].stdin.flush()
        answer = sides[side].stdout.readline()
        return json.loads(answer) if answer else sys.exit(Path(case["folder"], f"{side}.log").read_text()[-3000:])

    first = {side: steps(side) for side in sides}  # and warms up
    found = [
        {side: steps(side) for side in (("ragfit", "trl") if number % 2 else ("trl", "ragfit"))}
        for number in range(max(pairs, PAIRS))
    ]
    for process in sides.values():
        process.stdin.close()
        process.wait()
    losses = ", ".join(f"{figures['loss']:.4f} ({side})" for side, figures in first.items())
    print(f"{name}: loss of the first steps {losses}")
    columns = []
    for figure, unit, inverse in (("speed", "tokens/s", True), ("peak", "GiB", True)):
        both = [(pair["ragfit"][figure], pair["trl"][figure]) for pair in found]
        ratio = print_ratio(f"{name}, {figure}", both, "ragfit", "trl", unit, inverse)
        columns.append((*(statistics.median(values) for values in zip(*both, strict=True)), ratio))
    return name, *columns


def work(case):
    answer = sys.stdout
    sys.stdout = sys.stderr  # the libraries' own lines would come between the answers
    trainer = (ours if case["side"] == "ragfit" else theirs)(case)
    trainer.add_callback(steps_in_turn(case, answer))
    print("ready", file=answer, flush=True)
    trainer.train()


def steps_in_turn(case, answer):
    import torch
    from transformers import TrainerCallback

    cuda = case["device"] == "cuda"

    class Steps(TrainerCallback):
        """Takes a few steps of the run for each line that comes in, and answers with their figures."""

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

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in logs:
                return
            if cuda:
                torch.cuda.synchronize()
            seconds, tokens = time.perf_counter() - self.begin, logs["num_tokens"] - self.tokens
            self.tokens = logs["num_tokens"]
            peak = torch.cuda.max_memory_allocated() if cuda else peak_of_process()
            found = {"speed": tokens / seconds, "peak": peak / 2**30, "loss": logs["loss"]}
            print(json.dumps(found), file=answer, flush=True)

    return Steps()


def peak_of_process():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def arguments(case):
    """What both sides are given."""
    return {
        "output_dir": str(Path(case["folder"], case["side"])),
        "per_device_train_batch_size": 1 if case["packing"] else case["batch"],
        "gradient_accumulation_steps": 1,
        "max_steps": 10**6,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 10**6,
        "save_strategy": "no",
        "optim": "adamw_torch",
        "bf16": True,
        "gradient_checkpointing": True,
        "packing": case["packing"],
        "max_length": case["length"],
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }


def ours(case):
    import ragfit
    from ragfit.config.overrides import override

    keys = {f"train.{key}": value for key, value in arguments(case).items()}
    keys |= {f"model.lora.{key}": value for key, value in LORA.items()} | {"model.lora.use_rslora": False}
    keys |= {"model.load_in_8bit": case["bits"] == 8, "model.load_in_4bit": case["bits"] == 4}
    keys |= {"model.torch_dtype": "bfloat16", "model.model_name_or_path": case["model"], "model.completion_start": ""}
    keys |= {"model.max_sequence_len": case["length"], "output_key": "answers"}
    keys |= {"data_file": str(Path(case["folder"], "rows.jsonl")), "instruction": None}
    if not case["packing"]:
        del keys["train.max_length"]
    cfg = ragfit.load_config("training", [f"++{override(key, value)}" for key, value in keys.items()])
    prepared = ragfit.prepare(cfg)
    prepared.train.save_to_disk(Path(case["folder"], "prepared"))
    return ragfit.build_trainer(cfg, prepared)


def theirs(case):
    """`SFTTrainer` as its documentation has it."""
    import torch
    from datasets import load_from_disk
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    rows = load_from_disk(Path(case["folder"], "prepared")).map(
        lambda row: {"completion_mask": [int(label != -100) for label in row["labels"]]},
        remove_columns="labels", keep_in_memory=True,
    )  # fmt: skip
    quantized = {
        None: None,
        8: BitsAndBytesConfig(load_in_8bit=True),
        4: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    }[case["bits"]]  # fmt: skip
    args = arguments(case) | {"completion_only_loss": True, "use_cpu": case["device"] == "cpu"}
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.bfloat16, quantization_config=quantized)
    return SFTTrainer(
        model=model, args=SFTConfig(**args), train_dataset=rows, peft_config=LoraConfig(**LORA),
        processing_class=AutoTokenizer.from_pretrained(case["model"]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
