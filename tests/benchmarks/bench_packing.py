"""What an epoch computes and takes with rows padded at random, grouped by length, one at a time, and packed.

Each round trains one epoch in each way, with rounds in turned order, on the rows of the demo, PubMedQA and ASQA, by the
small Llama with random weights, in float32. A pack has the tokens of `--batch` rows of average length, so that all
ways have about as many rows a step. "block mask" is packed too, with transformers' own SDPA over a mask of all pairs of
positions, which a CPU would use without this kit's attention.
"""

import gc
import statistics
import tempfile
import time
from pathlib import Path

from common import PAIRS, ROOT, parser, print_ratio, print_versions, tokenizer_folder

FILES = (  # name, data file, output key, rows
    ("demo", ROOT / "configs/demo/train.jsonl", "answers", None),
    ("PubMedQA", "pubmed-rag-train.jsonl", "answers", 120),
    ("ASQA", "asqa-prefix-train.jsonl", "answers", 32),
)
WAYS = ("packed", "padded at random", "grouped by length", "one at a time", "packed, block mask")


def small_model(folder, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_config(folder, file, more):
    """The configuration of a run of `small_model` in a folder over the rows of a file."""
    import ragfit
    from ragfit.config.overrides import override

    keys = {
        "model.model_name_or_path": f"{folder}/model", "model.completion_start": "<|im_start|>assistant\n",
        "model.max_sequence_len": None, "model.load_in_8bit": False, "model.lora.target_modules": ["q_proj", "v_proj"],
        "data_file": str(file), "train.output_dir": str(Path(folder, "out")),
        "train.save_strategy": "no", "train.optim": "adamw_torch", "train.logging_steps": 1000,
    }  # fmt: skip
    return ragfit.load_config("training", [override(key, value) for key, value in (keys | more).items()])


def epoch(way, prepared, cfg, batch, seed):
    """(thousand positions, seconds) of an epoch."""
    from omegaconf import OmegaConf

    import ragfit

    report, keys = prepared.report.train, {"seed": seed, "per_device_train_batch_size": batch}
    if way == "grouped by length":
        keys["train_sampling_strategy"] = "group_by_length"
    elif way == "one at a time":
        keys |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch}
    elif way.startswith("packed"):
        length = max(batch * report.tokens // len(report.kept), max(map(sum, report.lengths)))
        keys |= {"packing": True, "max_length": length, "per_device_train_batch_size": 1}
    trainer = ragfit.build_trainer(OmegaConf.merge(cfg, {"train": keys}), prepared)
    if way.endswith("block mask"):
        trainer.model.get_base_model().set_attn_implementation("sdpa")
    positions, collate = [], trainer.data_collator

    def counted(rows):
        made = collate(rows)
        positions.append(made["input_ids"].numel() / 1000)
        return made

    trainer.data_collator = counted
    gc.collect()
    begin = time.perf_counter()
    trainer.train()
    return sum(positions), time.perf_counter() - begin


def main():
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=8, help="per_device_train_batch_size of padded batches")
    args = made.parse_args()
    print_versions()
    import ragfit
    from ragfit.models.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        small_model(f"{folder}/model", load_tokenizer(tokenizer_folder()))
        for name, file, key, rows in FILES:
            if not (args.data / file).is_file():
                print(f"{name}: {file} is not in {args.data}")
                continue
            keys = {"output_key": key, "limit": rows, "shuffle": 1}
            keys |= {"train.bf16": False, "train.gradient_accumulation_steps": 1}
            cfg = small_config(folder, args.data / file, keys)
            prepared, found = ragfit.prepare(cfg), {way: [] for way in WAYS}
            for number in range(1 + max(args.pairs, PAIRS)):  # the first to warm up
                for way in WAYS if number % 2 else reversed(WAYS):
                    found[way].append(epoch(way, prepared, cfg, args.batch, 42 + number))
            packed = found.pop("packed")[1:]
            tokens = [sum(pair) for pair in prepared.report.train.lengths]
            print(
                f"{name}: {len(tokens)} rows of {min(tokens)} to {max(tokens)} tokens, median {statistics.median(tokens):.0f}"
            )
            for way, others in found.items():
                for unit, which in (("thousand positions", 0), ("s", 1)):
                    pairs = [(one[which], other[which]) for one, other in zip(packed, others[1:], strict=True)]
                    print_ratio(f"{name}, an epoch", pairs, "packed", way, unit)


if __name__ == "__main__":
    main()
