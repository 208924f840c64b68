"""`prepare`: the one way from a configuration to the rows that are trained on.

The notebooks, the command line and the trainer all take its result, so what a notebook shows is what is trained on.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ragfit.config.explain import explained
from ragfit.config.load import resolved
from ragfit.config.paths import find_existing
from ragfit.data.cache import get_or_prepare, key_of
from ragfit.data.findings import KINDS, Checks, Finding
from ragfit.data.fit import Fitter, taken
from ragfit.data.mask import Encoder, Masked, to_arrow
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.report import Part, Prepared, Report
from ragfit.data.rows import Source, choose, open_rows, read_text, saying_who_named, split, texts_of
from ragfit.data.template import RowRefused
from ragfit.data.words import question_of, words_of
from ragfit.draw.progress import progress_bar
from ragfit.errors import ConfigError, DataError, PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows that are tokenized at once: enough for all cores, few enough that the offsets of long rows need no gigabytes.
_BATCH_ROWS, _BATCH_CHARACTERS = 256, 2**20


@dataclass(frozen=True)
class Settings:
    """What the explorer changes. `instruction` and `template` are texts, not paths."""

    completion_start: str = ""
    instruction: str = ""
    instruction_in_prompt: bool = False
    template: str = ""
    max_sequence_len: int | None = None
    over_length: str = "drop"


@dataclass(frozen=True)
class Row:
    """A row on its way, with its number in its file."""

    number: int
    query: str
    output: str
    source: dict
    rendered: Rendered


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
    from ragfit.models.tokenizer import load_tokenizer, stop_token_ids

    with saying_who_named(cfg):
        sources = open_sources(cfg)
        model = resolved(cfg, "model")
        name, revision = model.get("model_name_or_path"), model.get("revision")
        # With a tokenizer at hand, nothing is asked of the hub.
        knows_stops = tokenizer is None or find_existing(name)
        if tokenizer is None:
            tokenizer = load_tokenizer(name, revision, bool(model.get("trust_remote_code")))
        stops = stop_token_ids(name, revision) if knows_stops else []
        prompt = instruction, template, model.get("instruction_in_prompt"), model.get("completion_start")
        renderer = Renderer(tokenizer, *prompt, stops, model.get("chat_template_kwargs"))
        preparer = Preparer(cfg, renderer, sources)
        train, dev, report = get_or_prepare(key_of(cfg, renderer, sources) if cache else None, preparer.write)
    report.data_file = str(cfg.data_file)
    return Prepared(train, dev, report, tokenizer, renderer, preparer.encoder, instruction, cfg, sources)


def open_sources(cfg: DictConfig) -> dict[str, Source]:
    """The opened file of each part; train and dev have the same one where `dev_split` is a share or a number."""
    rows = open_rows(cfg.data_file)
    if cfg.get("dev_split") is None:
        return {"train": rows}
    return {"train": rows, "dev": open_rows(cfg.dev_split, "dev_split") if isinstance(cfg.dev_split, str) else rows}


def choose_rows(cfg: DictConfig, sources: Mapping[str, Source]) -> dict[str, list[int]]:
    """The numbers of the rows of each part."""
    train = choose(len(sources["train"]), cfg.shuffle, cfg.limit)
    if "dev" not in sources:
        return {"train": train}
    if isinstance(cfg.dev_split, str):
        return {"train": train, "dev": list(range(len(sources["dev"])))}
    texts = (texts_of(sources["train"], number, cfg) for number in train)
    questions = [words_of(asked := question_of(source, query)).strip() or asked for query, _, source in texts]
    train, dev = split(train, cfg.dev_split, cfg.shuffle, questions)
    return {"train": train, "dev": dev}


class Preparer:
    """Prepares rows, and gathers what is found on the way.

    Args:
        cfg: the configuration, for its keys and `model.max_sequence_len` and `model.over_length`.
        renderer: the `Renderer`, with the tokenizer and the texts of instruction and template.
        sources: the opened file of each part.
    """

    def __init__(self, cfg: DictConfig, renderer: Renderer, sources: Mapping[str, Source]):
        self.cfg, self.renderer, self.sources = cfg, renderer, sources
        self.encoder = Encoder(renderer.tokenizer, renderer.bos)
        self.checks = Checks(renderer, self.encoder)
        limit, policy = cfg.model.get("max_sequence_len") or math.inf, cfg.model.get("over_length") or "drop"
        self.fitter = Fitter(renderer, self.encoder, limit, policy, cfg.output_key)

    def write(self, folder: Path) -> Report:
        """Prepare all rows into `train.arrow` and `dev.arrow` of a folder, and report on them."""
        parts = {"dev": Part()}
        for name, numbers in choose_rows(self.cfg, self.sources).items():
            parts[name] = part = self.run(name, numbers, folder / f"{name}.arrow")
            if name == "train" and not part.kept:
                reasons = ", ".join(f"{len(numbers)} {reason}" for reason, numbers in part.dropped.items())
                problem = f"none of its {part.rows} rows can be trained on ({reasons})"
                advice = " ".join(KINDS[f"dropped: {reason}"][2] for reason in part.dropped)
                raise DataError(self.cfg.data_file, problem, advice)
        file, rows = str(self.cfg.data_file), len(self.sources["train"])
        return Report(file, rows, **parts, **self.checks.counts(), findings=self.checks.findings())

    def run(self, part: str, numbers: list[int], path: Path) -> Part:
        """Prepare rows of a part into an Arrow file."""
        import pyarrow as pa

        result = Part(rows=len(numbers))
        with (
            progress_bar(total=len(numbers), desc=f"preparing {part}", unit="row") as progress,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, to_arrow([]).schema) as writer,
        ):
            for batch, encoded in self._encoded(self._batches(part, numbers, result)):
                pairs = zip(batch, encoded, strict=True)
                kept = [one for row, masked in pairs if (one := self._keep(part, row, masked, result))]
                writer.write_batch(to_arrow([masked for _, masked in kept]))
                progress.update(len(result.kept) + sum(map(len, result.dropped.values())) - progress.n)
        return result

    def one(self, number: int, part: str, settings: Settings) -> tuple[Rendered, Masked, list[Finding]]:
        """Prepare one row under other settings.

        Args:
            number: the row's number in its file.
            settings: a `Settings`, or any object with its attributes.

        Returns:
            (text, ids with loss, findings); among the findings is one whose kind begins with "dropped: " where the row
            is not trained on. One that is too long comes as it is.

        Raises:
            RagfitError: the settings cannot be used, or the template refuses the row.
        """
        old, template = self.renderer, settings.template if settings.template.strip() else None
        instruction, kwargs = settings.instruction.strip() and settings.instruction, old.chat_template_kwargs
        prompt = instruction, template, settings.instruction_in_prompt, settings.completion_start
        renderer = Renderer(old.tokenizer, *prompt, old.stop_ids, None if template else kwargs)
        work = Preparer(self.cfg, renderer, self.sources)
        limit, policy = settings.max_sequence_len or math.inf, settings.over_length or "drop"
        work.fitter = replace(work.fitter, limit=limit, policy=policy)
        query, output, source = texts_of(self.sources[part], number, self.cfg)
        row = Row(number, query, output, source, renderer.render(query, output))
        [masked] = work.encoder.encode([row.rendered])
        kept = work._keep(part, row, masked, Part())
        return *(kept or (row.rendered, masked)), work.checks.findings()

    def _batches(self, part: str, numbers: Iterable[int], result: Part) -> Iterator[list[Row]]:
        """Read and render rows, in batches that are tokenized at once."""
        batch, size = [], 0
        for number in numbers:
            query, output, source = texts_of(self.sources[part], number, self.cfg)
            try:
                row = Row(number, query, output, source, self.renderer.render(query, output))
            except RowRefused as error:
                self._drop("dropped: refused by the template", part, number, result, error.problem)
                continue
            except PromptError as error:
                where = f"{self.sources[part].where(number)}: {error.where}"
                raise PromptError(where, error.problem, error.fix) from error
            batch.append(row)
            size += len(row.rendered.text)
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        yield batch

    def _encoded(self, batches: Iterable[list[Row]]) -> Iterator[tuple[list[Row], list[Masked]]]:
        """Batches with their ids. While one is tokenized, which needs no Python, the next is read and rendered."""
        waiting = None
        with ThreadPoolExecutor(1) as ahead:
            for batch in batches:
                coming = batch, ahead.submit(self.encoder.encode, [row.rendered for row in batch])
                if waiting:
                    yield waiting[0], waiting[1].result()
                waiting = coming
            yield waiting[0], waiting[1].result()

    def _keep(self, part: str, row: Row, masked: Masked, result: Part) -> tuple[Rendered, Masked] | None:
        """A tokenized row as it is trained on, counted and looked at; None where it is dropped."""
        number, texts = row.number, (row.query, row.output, row.source)
        fitted = self.fitter.fit(*texts, row.rendered, masked)
        if fitted is None:
            result.rejected_lengths.append(len(masked.input_ids))
            return self._drop("dropped: too long", part, number, result)
        cut, rendered, masked = fitted
        if masked.end <= masked.start:
            return self._drop("dropped: no loss", part, number, result)
        if cut:
            result.cut[number] = cut
            self.checks.add("cut", part, number)
            for what in taken(cut, *texts, self.cfg.output_key):
                self.checks.add(f"cut: {what}", part, number)
        self.checks.check(part, number, row.query, row.output, rendered, masked, row.source)
        result.kept.append(number)
        result.lengths.append((masked.start + len(masked.input_ids) - masked.end, masked.end - masked.start))
        return rendered, masked

    def _drop(self, kind: str, part: str, number: int, result: Part, detail: str = "") -> None:
        result.dropped.setdefault(kind.removeprefix("dropped: "), []).append(number)
        self.checks.add(kind, part, number, detail)
