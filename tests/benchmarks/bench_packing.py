"""What an epoch computes and takes with rows packed, padded at random, grouped by length, and one at a time.

Each round trains one epoch in each way, with rounds in turned order, on the rows of the demo, PubMedQA and ASQA, by a
small Llama with random weights, in float32. A pack has the tokens of `--batch` rows of average length, so that all
ways have about as many rows a step.
"""

import itertools
import statistics
import tempfile
from pathlib import Path

from common import PAIRS, ROOT, in_pairs, parser, print_ratio, print_versions, timed, tokenizer_folder

FILES = (  # name, data file, rows
    ("demo", ROOT / "configs/demo/train.jsonl", None),
    ("PubMedQA", "pubmed-rag-train.jsonl", 120),
    ("ASQA", "asqa-prefix-train.jsonl", 32),
)
SIZES = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip


def ways(report, batch):
    """{name: keys of `train`} of the ways to make batches of a part's rows."""
    length = max(batch * report.tokens // len(report.kept), report.longest)
    return {
        "packed": {"packing": True, "max_length": length, "per_device_train_batch_size": 1},
        "padded at random": {},
        "grouped by length": {"train_sampling_strategy": "group_by_length"},
        "one at a time": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch},
    }


def epochs(cfg, prepared, keys):
    """A function that trains an epoch, each with another seed, and returns (thousand positions, seconds)."""
    from omegaconf import OmegaConf

    import ragfit

    seeds = itertools.count(42)

    def epoch():
        trainer = ragfit.build_trainer(OmegaConf.merge(cfg, {"train": keys | {"seed": next(seeds)}}), prepared)
        positions, collate = [], trainer.data_collator

        def counted(rows):
            made = collate(rows)
            positions.append(made["input_ids"].numel() / 1000)
            return made

        trainer.data_collator = counted
        seconds, _ = timed(trainer.train)
        return sum(positions), seconds

    return epoch


def main():
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=8, help="per_device_train_batch_size of padded batches")
    args = made.parse_args()
    print_versions()
    from transformers import LlamaConfig, LlamaForCausalLM

    import ragfit
    from ragfit.config.overrides import override
    from ragfit.models.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(tokenizer_folder())
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        for name, file, rows in FILES:
            keys = {
                "model.model_name_or_path": f"{folder}/model", "model.completion_start": "<|im_start|>assistant\n",
                "model.max_sequence_len": None, "model.load_in_8bit": False, "train.bf16": False,
                "model.lora.target_modules": ["q_proj", "v_proj"], "data_file": str(args.data / file),
                "output_key": "answers", "limit": rows, "shuffle": 1, "train.output_dir": str(Path(folder, "out")),
                "train.save_strategy": "no", "train.optim": "adamw_torch", "train.logging_steps": 1000,
                "train.gradient_accumulation_steps": 1, "train.per_device_train_batch_size": args.batch,
            }  # fmt: skip
            cfg = ragfit.load_config("training", [override(key, value) for key, value in keys.items()])
            prepared = ragfit.prepare(cfg)
            calls = {way: epochs(cfg, prepared, more) for way, more in ways(prepared.report.train, args.batch).items()}
            _, found = in_pairs(calls, max(args.pairs, PAIRS))
            tokens = [sum(pair) for pair in prepared.report.train.lengths]
            middle = statistics.median(tokens)
            print(f"{name}: {len(tokens)} rows of {min(tokens)} to {max(tokens)} tokens, median {middle:.0f}")
            for way in list(calls)[1:]:
                for which, unit in enumerate(("thousand positions", "s")):
                    pairs = [(one["packed"][which], one[way][which]) for one in found]
                    print_ratio(f"{name}, an epoch", pairs, "packed", way, unit)


if __name__ == "__main__":
    main()
