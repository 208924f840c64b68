"""`prepare`: the one way from a configuration to the rows that are trained on.

The notebooks, the command line and the trainer all take its result, so what a notebook shows is what is trained on.
"""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ragfit.config.explain import explained
from ragfit.config.paths import find_existing
from ragfit.data.cache import get_or_prepare, key_of
from ragfit.data.findings import KINDS, Checks
from ragfit.data.fit import Fitter, TooLong
from ragfit.data.mask import Encoder, Masked, to_arrow
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.report import Cut, Part, Prepared, Report
from ragfit.data.rows import Source, choose, open_rows, read_text, split, texts_of
from ragfit.data.template import RowRefused
from ragfit.draw.progress import progress_bar
from ragfit.errors import ConfigError, DataError, PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows that are tokenized at once: enough for all cores, few enough that the offsets of long rows need no gigabytes.
_BATCH_ROWS, _BATCH_CHARACTERS = 256, 2**20
_AHEAD = 2  # batches that are tokenized while others are rendered and labelled
Batch = list[tuple[int, str, str, dict, Cut, Rendered]]  # number, query, output, source, cut and text of each row


@explained("Preparing the rows")
def prepare(cfg: DictConfig, tokenizer: "PreTrainedTokenizerBase | None" = None, cache: bool = True) -> Prepared:
    """Read, render, tokenize and label the rows that a configuration names.

    Needs no torch where the tokenizer can be loaded without it. The same rows under the same settings are prepared
    once, and come from the cache then (see `ragfit.data.cache`).

    Args:
        cfg: a configuration of `ragfit.load_config`.
        tokenizer: a `transformers` tokenizer; loaded from `cfg.model` where None.
        cache: false to prepare anew and keep nothing.

    Raises:
        RagfitError: with the file and line, or the key, and what to do.
    """
    for key, example in (("data_file", "asqa-prefix-train.jsonl"), ("input_key", "prompt"), ("output_key", "answers")):
        if not cfg.get(key):
            raise ConfigError(key, "it is not set", f"Set it, for instance {key}={example}.")
    instruction = read_text(cfg.instruction, "instruction") if cfg.instruction else ""
    template = read_text(cfg.template, "template") if cfg.template else None
    chosen = _choose_rows(cfg)
    from ragfit.models.tokenizer import load_tokenizer, stop_token_ids

    model = cfg.model
    name, revision = model.get("model_name_or_path"), model.get("revision")
    # With a tokenizer at hand, nothing is asked of the hub.
    knows_stops = tokenizer is None or find_existing(name, "model.model_name_or_path")
    if tokenizer is None:
        tokenizer = load_tokenizer(name, revision, bool(model.get("trust_remote_code")))
    stop_ids = stop_token_ids(name, revision) if knows_stops else []
    in_prompt, marker = model.get("instruction_in_prompt"), model.get("completion_start")
    renderer = Renderer(tokenizer, instruction, template, in_prompt, marker, stop_ids)
    train, dev, report = get_or_prepare(
        key_of(cfg, renderer, list(chosen.values())) if cache else None,
        lambda folder: _write_rows(cfg, renderer, chosen, folder),
        [rows for rows, _ in chosen.values()],
    )
    report.data_file = str(cfg.data_file)
    return Prepared(
        train=train,
        dev=dev,
        report=report,
        tokenizer=tokenizer,
        renderer=renderer,
        encoder=Encoder(tokenizer, renderer.bos),
        instruction=instruction,
        cfg=cfg,
        sources={name: rows for name, (rows, _) in chosen.items()},
    )


def _choose_rows(cfg: DictConfig) -> dict[str, tuple[Source, list[int]]]:
    """The source and the numbers of the rows of each part."""
    rows, share = _open("data_file", cfg), cfg.get("dev_split")
    train = choose(len(rows), cfg.shuffle, cfg.limit)
    if share is None:
        return {"train": (rows, train)}
    if isinstance(share, str):
        dev_rows = _open("dev_split", cfg)
        return {"train": (rows, train), "dev": (dev_rows, list(range(len(dev_rows))))}
    train, dev = split(train, share, cfg.shuffle)
    return {"train": (rows, train), "dev": (rows, dev)}


def _open(key: str, cfg: DictConfig) -> Source:
    rows = open_rows(cfg[key], key)
    if not len(rows):
        raise DataError(cfg[key], "the file has no rows", f"Check {key}.")
    return rows


def _write_rows(
    cfg: DictConfig, renderer: Renderer, chosen: dict[str, tuple[Source, list[int]]], folder: Path
) -> Report:
    """Prepare the parts into Arrow files, and report on them."""
    preparer, parts = Preparer(cfg, renderer), {"dev": Part()}
    for name, (rows, numbers) in chosen.items():
        parts[name] = part = preparer.run(name, rows, numbers, folder / f"{name}.arrow")
        if name == "train" and not part.kept:
            reasons = ", ".join(f"{len(numbers)} {reason}" for reason, numbers in part.dropped.items())
            advice = " ".join(KINDS[f"dropped: {reason}"][2] for reason in part.dropped)
            raise DataError(cfg.data_file, f"none of its {part.rows} rows can be trained on ({reasons})", advice)
    return Report(
        data_file=str(cfg.data_file),
        in_file=len(chosen["train"][0]),
        **parts,
        **preparer.checks.counts(),
        findings=preparer.checks.findings(),
    )


class Preparer:
    """Prepares parts, and gathers what is found on the way.

    Args:
        cfg: the configuration, for its keys and `model.max_sequence_len` and `model.over_length`.
        renderer: the `Renderer`, with the tokenizer and the texts of instruction and template.
    """

    def __init__(self, cfg: DictConfig, renderer: Renderer):
        self.cfg, self.renderer, self.checks = cfg, renderer, Checks(renderer)
        self.encoder = Encoder(renderer.tokenizer, renderer.bos)
        limit, policy = cfg.model.get("max_sequence_len") or math.inf, cfg.model.get("over_length") or "drop"
        self.fitter = Fitter(renderer, self.encoder, limit, policy)

    def run(self, part: str, rows: Source, numbers: list[int], path: Path) -> Part:
        """Prepare the rows of a part into an Arrow file."""
        import pyarrow as pa

        result = Part(rows=len(numbers))
        ids_type = pa.list_(pa.int32())
        schema = pa.schema([("input_ids", ids_type), ("labels", ids_type)])
        # A bar for a second of work would only be noise in a notebook.
        few = len(numbers) < 2000
        with (
            progress_bar(total=len(numbers), desc=f"preparing {part}", unit="row", disable=few) as progress,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
            ThreadPoolExecutor(_AHEAD) as ahead,
        ):

            def finish(batch: Batch, encoded: Future[list[Masked]]) -> None:
                if kept := self._label(part, batch, encoded.result(), result):
                    writer.write_batch(pa.record_batch(list(to_arrow(kept)), schema=schema))
                progress.update(len(result.kept) + sum(map(len, result.dropped.values())) - progress.n)

            # While batches are tokenized, which needs no Python, the next one is read and rendered.
            left, waiting = iter(numbers), deque()
            while batch := self._render(part, rows, left, result):
                waiting.append((batch, ahead.submit(self._encode, batch)))
                if len(waiting) > _AHEAD:
                    finish(*waiting.popleft())
            while waiting:
                finish(*waiting.popleft())
        return result

    def prepare_row(self, part: str, rows: Source, number: int, result: Part) -> list[Masked]:
        """Prepare one row; an empty list where it is dropped."""
        batch = self._render(part, rows, iter([number]), result)
        return self._label(part, batch, self._encode(batch), result)

    def _render(self, part: str, rows: Source, numbers: Iterator[int], result: Part) -> Batch:
        """Read and render rows until they fill a batch; an empty list where there are none left."""
        batch, size = [], 0
        for number in numbers:
            query, output, source = texts_of(rows, number, self.cfg)
            try:
                cut = self.fitter.shorten(query, output)
                rendered = self.renderer.render(cut.apply(query), output)
            except TooLong as error:
                self._drop_too_long(part, number, error.tokens, result)
                continue
            except RowRefused as error:
                self._drop(f"dropped: {error.reason}", part, number, result, f"{rows.where(number)}: {error}")
                continue
            except PromptError as error:
                raise PromptError(f"{rows.where(number)}: {error.where}", error.problem, error.fix) from error
            batch.append((number, query, output, source, cut, rendered))
            size += max(len(query), len(rendered.text))
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                break
        return batch

    def _encode(self, batch: Batch) -> list[Masked]:
        return self.encoder.encode([rendered for *_, rendered in batch])

    def _label(self, part: str, batch: Batch, encoded: list[Masked], result: Part) -> list[Masked]:
        """What is kept of a batch of tokenized rows."""
        kept = []
        for (number, query, output, source, cut, row), masked in zip(batch, encoded, strict=True):
            try:
                cut, row, masked = self.fitter.fit(query, output, cut, row, masked)
            except TooLong as error:
                self._drop_too_long(part, number, error.tokens, result)
                continue
            if cut.stop - cut.start < cut.length:
                result.cut[number] = cut
                self.checks.add("cut", part, number)
            if masked.end <= masked.start:
                self._drop("dropped: no loss", part, number, result)
                continue
            self.checks.check(part, number, query, output, row, masked, source)
            result.kept.append(number)
            result.lengths.append((masked.start + len(masked.input_ids) - masked.end, masked.end - masked.start))
            kept.append(masked)
        return kept

    def _drop(self, kind: str, part: str, number: int, result: Part, detail: str = "") -> None:
        result.dropped.setdefault(kind.removeprefix("dropped: "), []).append(number)
        self.checks.add(kind, part, number, detail)

    def _drop_too_long(self, part: str, number: int, tokens: int, result: Part) -> None:
        result.rejected_lengths.append(tokens)
        self._drop("dropped: too long", part, number, result)
