"""Preparation: `ragfit.prepare` against SFTTrainer's own and against the tokenizer alone.

    python tests/benchmarks/bench_prepare.py                       # 1,000 rows of about 2,800 tokens

What is timed:

- ours: `ragfit.prepare(cfg, tokenizer)` without the cache, from the file on disk to the dataset and its report.
- theirs: `SFTTrainer._prepare_dataset`, what the trainer's constructor does with the same rows as prompt and
  completion messages. Loading the rows, the model and the tokenizer is not counted, and datasets' own cache is off.
  Without a `max_length` it is spared two passes, which cut the rows and look for those without a label.
- tokenizer: `encode_batch` of the same rendered texts, which are there already.
- cache: a second `ragfit.prepare` of the same rows, from the cache.

All run in one process with the same number of threads. Labels are compared row by row.
"""

import contextlib
import io
import json
import os
import random
import tempfile
from pathlib import Path

from common import measure_pairs, parser, print_ratio, print_versions, random_text, timed, tokenizer_folder

INSTRUCTION = "Answer the question with the documents. Say so where they do not hold the answer."


def read_documents(folder):
    """(documents, [(question, answer)]) of the JSONL files of a folder, or of random words where it has none."""
    documents, asked = {}, []
    for path in sorted(Path(folder).glob("asqa-*.jsonl")):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
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


def make_trainer(tokenizer, folder):
    """An SFTTrainer as its users make it, with a model of a few thousand weights."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    args = SFTConfig(output_dir=str(folder), max_length=None, report_to="none", use_cpu=True, bf16=False)
    start = Dataset.from_list([messages({"prompt": "a", "answers": ["b"]})])
    return SFTTrainer(model=model, args=args, train_dataset=start, processing_class=tokenizer)


def messages(row):
    """A row as TRL takes it."""
    return {
        "prompt": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["answers"][0]}],
    }


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
    keys = {"data_file": rows, "output_key": "answers", "instruction": instruction, "model.max_sequence_len": "null"}
    keys |= {"model.model_name_or_path": args.tokenizer, "model.completion_start": "''"}
    cfg = ragfit.load_config("training", [f"{key}={value}" for key, value in keys.items()])
    trainer = make_trainer(tokenizer, folder)
    dataset = datasets.Dataset.from_list([messages(json.loads(row)) for row in rows.read_text("utf-8").splitlines()])

    def ours():
        return ragfit.prepare(cfg, tokenizer, cache=False)

    def theirs():
        with contextlib.redirect_stderr(io.StringIO()):
            return trainer._prepare_dataset(dataset, tokenizer, trainer.args, False, None, "train")

    prepared, other = ours(), theirs()
    report = prepared.report.train
    print(f"rows: {args.rows} of {report.tokens / len(report.kept):.0f} tokens, {report.loss_share:.1%} with loss; "
          f"{rows.stat().st_size / 1e6:.1f} MB; tokenizer {Path(args.tokenizer).name}")  # fmt: skip
    # TRL gives loss to all that the template writes after the answer; this kit stops behind the end-of-turn token.
    behind = len(tokenizer.encode(prepared.renderer.tail, add_special_tokens=False)) - 1
    pairs = [(a, b, len(a["labels"]) - behind) for a, b in zip(prepared.train, other, strict=True)]
    apart = sum((a["input_ids"], a["labels"][:end]) != (b["input_ids"], b["labels"][:end]) for a, b, end in pairs)
    print(f"labels: {apart} of {args.rows} rows differ from TRL's before the end-of-turn token")
    print_ratio("prepare against SFTTrainer", measure_pairs(ours, theirs, args.pairs), "ragfit", "SFTTrainer")

    texts = [prepared.rendered(i).text for i in range(len(report.kept))]
    figures = measure_pairs(ours, lambda: prepared.encoder.backend.encode_batch(texts, False, False), args.pairs)
    median = print_ratio("prepare against encode_batch", figures, "ragfit", "encode_batch", inverse=True)
    print(f"share of the time outside encode_batch: {1 - 1 / median:.0%}")

    first, _ = timed(ragfit.prepare, cfg, tokenizer)
    again, second = timed(ragfit.prepare, cfg, tokenizer)
    print(f"cache: first run {first:.2f} s, second {again:.3f} s; from the cache: {second.report.cached}")


def main():
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=1000)
    made.add_argument("--tokens", type=int, default=2800, help="tokens a row")
    made.add_argument("--tokenizer", help="a tokenizer's folder (default: SmolLM2's)")
    args = made.parse_args()
    args.tokenizer = args.tokenizer or tokenizer_folder()
    print_versions()
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
