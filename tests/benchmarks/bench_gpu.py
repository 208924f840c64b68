"""Training on a GPU: ragfit against `trl.SFTTrainer` as its users run it, with packing off and on.

    python tests/benchmarks/bench_gpu.py                       # a Phi-3 of 0.5 billion weights, made on the spot
    python tests/benchmarks/bench_gpu.py --bits 8              # the documented 8 bits; --bits 4 too
    python tests/benchmarks/bench_gpu.py --model FOLDER        # a model of yours that has qkv_proj, with its tokenizer
    python tests/benchmarks/bench_gpu.py --device cpu          # a tiny model: shows that the script works, no figures

Both sides train on the same token ids and labels, with the same adapter, bfloat16 autocast, optimizer and activation
checkpointing. Each is a run in a process of its own; they take a few optimizer steps in turn, while the other waits.
Peak memory is torch's own on a GPU (`max_memory_allocated`), and the process's on a CPU. The rows are PubMedQA's where
`--data` has them, and drawn at random elsewhere.
"""

import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, parser, print_ratio, print_versions, random_text, steps_in_turn, work

FILE = "pubmed-rag-train.jsonl"
BATCH = 4  # rows, where they are padded
LORA = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["qkv_proj"], "task_type": "CAUSAL_LM"}
WIDE = {
    "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 16,
}  # fmt: skip
SIZES = {"cuda": (WIDE, 4096, 400), "cpu": ({}, 400, 40)}  # model, tokens of a pack and of the longest row, rows


def main():
    options = parser(__doc__)
    options.add_argument("--device", choices=list(SIZES), default="cuda", help="cpu: a tiny model, to try the script")
    options.add_argument("--model", help="a folder with a model and its tokenizer")
    options.add_argument("--bits", type=int, choices=[4, 8], help="quantize the base; by default it is bfloat16")
    options.add_argument("--steps", type=int, default=4, help="optimizer steps in turn")
    args = options.parse_args()
    if args.worker:
        return work(args.worker, {"ragfit": ours, "trl": theirs})
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA here. --device cpu tries the script with a tiny model.")
    print_versions()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(f"device: {device}, weights: {f'{args.bits} bits' if args.bits else 'bfloat16'}")
    sizes, length, count = SIZES[args.device]
    with tempfile.TemporaryDirectory() as folder:
        case = {"model": args.model or made_model(f"{folder}/model", sizes), "folder": folder, "length": length}
        case |= {"steps": args.steps, "bits": args.bits, "device": args.device}
        write_rows(Path(folder, "rows.jsonl"), args.data / FILE, count, length)
        table = [compare(name, case | {"packing": name == "packed"}, args.pairs) for name in ("padded", "packed")]
    print("\n| | tokens a second | of SFTTrainer's | peak memory, GiB | of SFTTrainer's |\n|---|---|---|---|---|")
    for name, (ours_speed, their_speed, speed), (our_peak, their_peak, peak) in table:
        print(f"| {name}: ragfit | {ours_speed:,.0f} | {speed:.2f} | {our_peak:.2f} | {peak:.2f} |")
        print(f"| {name}: SFTTrainer | {their_speed:,.0f} | | {their_peak:.2f} | |")


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
        found = map(json.loads, real.read_text(encoding="utf-8").splitlines()[:count])
        texts = ((row["prompt"][: length * 3 // 4], row["answers"][0][: length // 10]) for row in found)
    else:
        draw, words = random.Random(0), random_text(0)
        cut = (words[: draw.randint(length // 20, length // 3)] for _ in range(count))
        texts = ((f"{text}\nWhich?", text[: 40 + n % 40]) for n, text in enumerate(cut))
    rows = [json.dumps({"prompt": prompt, "answers": [answer]}) + "\n" for prompt, answer in texts]
    path.write_text("".join(rows), encoding="utf-8")


def compare(name, case, pairs):
    """(name, then for tokens a second and for peaks: ragfit's median, SFTTrainer's, and their ratio)."""
    first, found = steps_in_turn(__file__, case, pairs)
    losses = ", ".join(f"{figures['loss']:.4f} ({side})" for side, figures in first.items())
    print(f"{name}: loss of the first steps {losses}")
    columns = []
    for figure, unit in (("speed", "tokens/s"), ("peak", "GiB")):
        value = (lambda one: one["tokens"] / one["seconds"]) if figure == "speed" else (lambda one: one["peak"])
        both = [(value(pair["ragfit"]), value(pair["trl"])) for pair in found]
        ratio = print_ratio(f"{name}, {figure}", both, "ragfit", "trl", unit, inverse=True)
        columns.append((*map(statistics.median, zip(*both, strict=True)), ratio))
    return name, *columns


def arguments(case):
    """What both sides are given."""
    return {
        "output_dir": str(Path(case["folder"], case["side"])), "max_steps": 10**6, "logging_steps": 10**6,
        "per_device_train_batch_size": 1 if case["packing"] else BATCH, "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4, "lr_scheduler_type": "constant", "optim": "adamw_torch", "bf16": True,
        "gradient_checkpointing": True, "packing": case["packing"], "max_length": case["length"],
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": 1,
    }  # fmt: skip


def ours(case):
    import ragfit
    from ragfit.config.overrides import override

    keys = {f"train.{key}": value for key, value in arguments(case).items() if case["packing"] or key != "max_length"}
    keys |= {f"model.lora.{key}": value for key, value in LORA.items()} | {"model.lora.use_rslora": False}
    keys |= {"model.load_in_8bit": case["bits"] == 8, "model.load_in_4bit": case["bits"] == 4}
    keys |= {"model.torch_dtype": "bfloat16", "model.model_name_or_path": case["model"], "model.completion_start": ""}
    keys |= {"model.max_sequence_len": case["length"], "output_key": "answers", "instruction": None}
    keys |= {"data_file": str(Path(case["folder"], "rows.jsonl"))}
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

    def masked(row):
        return {"completion_mask": [int(label != -100) for label in row["labels"]]}

    rows = load_from_disk(Path(case["folder"], "prepared")).map(masked, remove_columns="labels", keep_in_memory=True)
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    keys = {None: None, 8: {"load_in_8bit": True}, 4: {"load_in_4bit": True} | four}[case["bits"]]
    quantized = keys and BitsAndBytesConfig(**keys)
    args = arguments(case) | {"completion_only_loss": True, "use_cpu": case["device"] == "cpu"}
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.bfloat16, quantization_config=quantized)
    return SFTTrainer(
        model=model, args=SFTConfig(**args), train_dataset=rows, peft_config=LoraConfig(**LORA),
        processing_class=AutoTokenizer.from_pretrained(case["model"]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
