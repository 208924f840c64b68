"""Preparation: `ragfit.prepare` against SFTTrainer's own and against the tokenizer alone.

    python tests/benchmarks/bench_prepare.py                       # 1,000 rows of about 2,800 tokens

What is timed:

- ours: `ragfit.prepare(cfg, tokenizer)` without the cache, from the file on disk to the dataset and its report.
- theirs: `SFTTrainer._prepare_dataset`, what the trainer's constructor does with the same rows as prompt and
  completion messages. Loading the rows, the model and the tokenizer is not counted, and datasets' own cache is off.
  Without `--max-length` it is spared two passes, which cut the rows and look for those without a label.
- tokenizer: `encode_batch` of the same rendered texts, which are there already.
- cache: a second `ragfit.prepare` of the same rows, from the cache.

All run in one process with the same number of threads. Labels are compared row by row.
"""

import contextlib
import io
import json
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import measure_pairs, parser, print_ratio, print_versions, random_text, timed, tokenizer_folder  # noqa: E402

INSTRUCTION = "Answer the question with the documents. Say so where they do not hold the answer."


def read_documents(folder):
    """(documents, [(question, answer)]) of the JSONL files of a folder, or of random words where it has none."""
    documents, asked = {}, []
    for path in sorted(Path(folder).glob("asqa-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            documents |= dict.fromkeys(row["positive_passages"])
            asked.append((row["query"], row["generated_answer"]))
    if not asked:
        asked = [(random_text(seed, 8), random_text(seed + 1000, 20)) for seed in range(99)]
        documents = [random_text(seed, 60) for seed in range(500)]
    return list(documents), asked


def write_rows(path, folder, count, tokens, tokenizer):
    """Write rows of about `tokens` tokens: questions over documents drawn at random."""
    documents, asked = read_documents(folder)
    lengths = [len(encoding) for encoding in tokenizer.backend_tokenizer.encode_batch(documents)]
    draw = random.Random(0)
    with Path(path).open("w", encoding="utf-8") as file:
        for _ in range(count):
            (question, answer), left, chosen = draw.choice(asked), tokens - 150, []
            while left > 0:
                i = draw.randrange(len(documents))
                chosen.append(f"Document {len(chosen) + 1}: {documents[i]}")
                left -= lengths[i] + 6
            prompt = "\n".join([*chosen, f"Question: {question}"])
            file.write(json.dumps({"prompt": prompt, "answers": [answer]}, ensure_ascii=False) + "\n")


def make_config(path, folder, instruction, max_length=None):
    import ragfit

    overrides = [f"data_file={path}", "output_key=answers", f"instruction={instruction}"]
    overrides += [
        f"model.model_name_or_path={folder}",
        "model.completion_start=''",
        f"model.max_sequence_len={max_length or 'null'}",
    ]
    return ragfit.load_config("training", overrides=overrides)


def make_trainer(tokenizer, folder, max_length=None):
    """An SFTTrainer as its users make it, with a model of a few thousand weights."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    args = SFTConfig(
        output_dir=str(folder), max_length=max_length, packing=False, report_to="none", use_cpu=True, bf16=False
    )
    start = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}]
    )
    return SFTTrainer(model=LlamaForCausalLM(config), args=args, train_dataset=start, processing_class=tokenizer)


def as_messages(path):
    from datasets import Dataset

    def messages(line):
        row = json.loads(line)
        system = {"role": "system", "content": INSTRUCTION}
        return {
            "prompt": [system, {"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["answers"][0]}],
        }

    with Path(path).open(encoding="utf-8") as file:
        return Dataset.from_list([messages(line) for line in file])


def compare(args, folder):
    import datasets

    import ragfit
    from ragfit.models.tokenizer import load_tokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    os.environ["RAGFIT_CACHE"] = str(folder / "cache")
    tokenizer = load_tokenizer(args.tokenizer)
    rows, instruction = folder / "rows.jsonl", folder / "instruction.txt"
    instruction.write_text(INSTRUCTION, encoding="utf-8")
    write_rows(rows, args.data, args.rows, args.tokens, tokenizer)
    cfg = make_config(rows, args.tokenizer, instruction, args.max_length)
    trainer, dataset = make_trainer(tokenizer, folder, args.max_length), as_messages(rows)

    def ours():
        return ragfit.prepare(cfg, tokenizer, cache=False)

    def theirs():
        with contextlib.redirect_stderr(io.StringIO()):
            return trainer._prepare_dataset(dataset, tokenizer, trainer.args, False, None, "train")

    prepared, other = ours(), theirs()
    report = prepared.report.train
    print(f"rows: {args.rows}, max_length {args.max_length}, of {report.tokens / len(report.kept):.0f} tokens, {report.loss_tokens / report.tokens:.1%} with loss; "
          f"{rows.stat().st_size / 1e6:.1f} MB; tokenizer {Path(args.tokenizer).name}")  # fmt: skip
    different = sum(
        (a["input_ids"], a["labels"]) != (b["input_ids"], b["labels"])
        for a, b in zip(prepared.train, other, strict=True)
    )
    # TRL gives loss to all that the template writes after the answer; this kit stops behind the end-of-turn token.
    tail = tokenizer.encode(prepared.renderer.tail, add_special_tokens=False)
    apart = sum(
        a["input_ids"] != b["input_ids"]
        or a["labels"][: len(a["labels"]) - len(tail) + 1] != b["labels"][: len(b["labels"]) - len(tail) + 1]
        for a, b in zip(prepared.train, other, strict=True)
    )
    print(f"labels: {different} of {args.rows} rows differ from TRL's, {apart} before the end-of-turn token")
    print_ratio("prepare against SFTTrainer", measure_pairs(ours, theirs, args.pairs), "ragfit", "SFTTrainer")

    texts = [prepared.rendered(i).text for i in range(len(report.kept))]
    backend = prepared.encoder.backend

    def encode():
        backend.encode_batch(texts, add_special_tokens=False)

    figures = measure_pairs(ours, encode, args.pairs)
    median = print_ratio("prepare against encode_batch", figures, "ragfit", "encode_batch", inverse=True)
    print(f"share of the time outside encode_batch: {1 - 1 / median:.0%}")

    first, _ = timed(ragfit.prepare, cfg, tokenizer)
    again, second = timed(ragfit.prepare, cfg, tokenizer)
    print(f"cache: first run {first:.2f} s, second {again:.3f} s; from the cache: {second.report.cached}")


def main():
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=1000)
    made.add_argument("--tokens", type=int, default=2800, help="tokens a row")
    made.add_argument("--max-length", type=int, help="a limit that no row reaches, for both sides (default: none)")
    made.add_argument("--tokenizer", default=None, help="a tokenizer's folder (default: SmolLM2's)")
    args = made.parse_args()
    args.tokenizer = args.tokenizer or tokenizer_folder()
    print_versions()
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
