"""What of the batches is padding, with rows of similar length in a batch and without.

In alternating pairs with and without `train.group_by_length`, each pair with a seed of its own. The padding is counted in
the batches of the trainer's own loader; the preflight's figure, read off the sampler alone, stands beside it. The file
of long rows is trained on as well, by a small Llama with random weights, for the time that an epoch takes.
"""

import tempfile
import time
from pathlib import Path

from common import PAIRS, measure_pairs, parser, print_ratio, print_versions, tokenizer_folder

FILES = (  # data file, output key, rows, whether to train
    ("asqa-prefix-train.jsonl", "answers", 250, False),
    ("pubmed-rag-train.jsonl", "answers", 800, False),
    ("asqa-raft-cot-train.jsonl", "generated_answer", 208, False),
    ("asqa-raft-cot-train.jsonl", "generated_answer", 64, True),
)


def small_model(folder, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def epoch(prepared, cfg, grouped, seed, train):
    """(positions, padded positions, seconds, the preflight's share) of an epoch, trained on or only loaded."""
    from omegaconf import OmegaConf

    import ragfit
    from ragfit.training.preflight import padding

    keys = {"train_sampling_strategy": "group_by_length" if grouped else "random", "seed": seed}
    trainer = ragfit.build_trainer(OmegaConf.merge(cfg, {"train": keys}), prepared)
    said = padding(trainer)[0]
    positions, real, collate = [], [], trainer.data_collator

    def counted(rows):
        batch = collate(rows)
        positions.append(batch["attention_mask"].numel())
        real.append(int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = counted
    begin = time.perf_counter()
    trainer.train() if train else list(trainer.get_train_dataloader())
    seconds = time.perf_counter() - begin
    return sum(positions), sum(positions) - sum(real), seconds, said


def quick_look(count=100_000):
    """Seconds that the preflight's figure takes for so many rows: drawing the order and adding up lengths."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from ragfit.training.preflight import padded_share

    lengths = torch.randint(200, 4000, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    begin = time.perf_counter()
    order = list(LengthGroupedSampler(8, lengths=lengths))
    padded_share([order[i : i + 4] for i in range(0, count, 4)], lengths)
    return time.perf_counter() - begin


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


def compare(file, cfg, args, train):
    """Print the padding of a file's batches with and without grouping, and where `train` an epoch's time."""
    import ragfit

    prepared = ragfit.prepare(cfg)
    runs = {True: [], False: []}

    def run(grouped):
        seed = 42 + len(runs[grouped])
        runs[grouped].append(epoch(prepared, cfg, grouped, seed, train))
        return runs[grouped][-1][2]

    seconds = measure_pairs(lambda: run(True), lambda: run(False), args.pairs)
    pairs = list(zip(runs[True][1:], runs[False][1:], strict=True))
    name = f"{file}, {len(prepared.train)} rows, {args.batch} a batch"
    shares = [tuple(padded / positions for positions, padded, _, _ in pair) for pair in pairs]
    for which, grouped in ((0, "group_by_length"), (1, "random")):
        column = [pair[which] for pair in shares]
        middle = sorted(column)[len(column) // 2]
        said = ", ".join(pair[which][3] for pair in pairs)
        print(f"{name}, {grouped}: {middle:.1%} padding ({min(column):.1%}..{max(column):.1%}); preflight said {said}")
    print_ratio(
        f"{name}, positions computed",
        [tuple(side[0] / 1000 for side in pair) for pair in pairs],
        "grouped",
        "random",
        "thousand",
    )
    if train:
        print_ratio(f"{name}, an epoch of training", seconds, "grouped", "random")


def main():
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=4, help="per_device_train_batch_size")
    args = made.parse_args()
    args.pairs = max(args.pairs, PAIRS)
    print_versions()
    from ragfit.models.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(tokenizer_folder())
        small_model(f"{folder}/model", tokenizer)
        for file, key, rows, train in FILES:
            if not (args.data / file).is_file():
                print(f"{file}: not in {args.data}")
                continue
            batch = {"train.per_device_train_batch_size": args.batch}
            cfg = small_config(folder, args.data / file, {"output_key": key, "limit": rows} | batch)
            compare(file, cfg, args, train)
    times = [quick_look() for _ in range(args.pairs)]
    print(
        f"preflight's share for 100,000 rows: {sorted(times)[len(times) // 2]:.2f} s ({min(times):.2f}..{max(times):.2f})"
    )


if __name__ == "__main__":
    main()
