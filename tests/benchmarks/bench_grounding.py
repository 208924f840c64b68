"""Dropping each document: `ragfit.evaluation.reading` against one plain forward pass for each row and variant.

python tests/benchmarks/bench_grounding.py --rows 6
"""

import tempfile

from common import measure_pairs, parser, print_ratio, print_versions


def plain(model, rows):
    """Each text alone, with logits at every position."""
    import torch

    losses = []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row.input_ids], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, row.start - 1 : row.end - 1]
            wanted = ids[0, row.start : row.end]
            losses.append(torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").tolist())
    return losses


def main():
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=6, help="dev rows of the demo")
    args = options.parse_args()
    print_versions()
    import ragfit
    from ragfit.evaluation.probes import probes, taken_apart
    from ragfit.evaluation.reading import completion_losses

    with tempfile.TemporaryDirectory() as folder:
        cfg = ragfit.load_config("demo", [f"train.output_dir={folder}/out"])
        prepared = ragfit.prepare(cfg)
        trainer = ragfit.build_trainer(cfg, prepared)
    trainer.model.eval()
    texts, found = [], taken_apart(prepared, "dev", args.rows)[0]
    for number in range(len(found)):
        asked = [text for name, text in probes(found, number).items() if name == "all" or name.startswith("without")]
        texts.append(prepared.encoder.encode([prepared.renderer.render(*text) for text in asked]))

    def ours():
        return [completion_losses(trainer, rows) for rows in texts]

    def theirs():
        return [plain(trainer.model, rows) for rows in texts]

    pairs = zip(sum(ours(), []), sum(theirs(), []), strict=True)
    largest = max(abs(a - b) for both in pairs for a, b in zip(*both, strict=True))
    print(f"{sum(map(len, texts))} texts; largest difference of a token's loss: {largest:.1e} nats")
    print_ratio("dropping documents", measure_pairs(ours, theirs, args.pairs), "ragfit", "plain passes")


if __name__ == "__main__":
    main()
