"""`prepare`: the one way from a configuration to the rows that are trained on, and that every notebook shows."""

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from omegaconf import DictConfig

from ragfit.config.explain import explained
from ragfit.config.load import resolved
from ragfit.config.paths import find_existing, find_file
from ragfit.data.cache import get_or_prepare, key_of
from ragfit.data.findings import KINDS, Checks, Finding
from ragfit.data.fit import Fitter, taken
from ragfit.data.mask import Encoder, Masked, to_arrow
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.report import Part, Prepared, Report
from ragfit.data.rows import Source, choose, open_rows, split, texts_of
from ragfit.data.template import RowRefused
from ragfit.data.words import question_of, words_of
from ragfit.draw.progress import progress_bar
from ragfit.errors import ConfigError, DataError, PromptError
from ragfit.models.tokenizer import load_tokenizer, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 128  # rows that are tokenized at once: enough for all cores, few enough that long ones need no gigabytes
Kept = tuple[Rendered, Masked] | None


@dataclass(frozen=True)
class Settings:
    """What the explorer changes. `instruction` and `template` are texts, not paths."""

    completion_start: str = ""
    instruction: str = ""
    instruction_in_prompt: bool = False
    template: str = ""
    max_sequence_len: int | None = None
    over_length: str = "drop"


@explained("Preparing the rows")
def prepare(cfg: DictConfig, tokenizer: "PreTrainedTokenizerBase | None" = None, cache: bool = True) -> Prepared:
    """Read, render, tokenize and label the rows that a configuration names, or take them from `ragfit.data.cache`.

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
    texts = [cfg[key] and find_file(cfg[key], key).read_text("utf-8-sig") for key in ("instruction", "template")]
    sources, model = open_sources(cfg), resolved(cfg, "model")
    name, revision = model.get("model_name_or_path"), model.get("revision")
    # With a tokenizer at hand, nothing is asked of the hub.
    stops = stop_token_ids(name if tokenizer is None else find_existing(name), revision)
    tokenizer = tokenizer or load_tokenizer(name, revision, bool(model.get("trust_remote_code")))
    prompt = texts[0], texts[1] or None, model.get("instruction_in_prompt"), model.get("completion_start")
    renderer = Renderer(tokenizer, *prompt, stops, model.get("chat_template_kwargs"))
    preparer = Preparer(cfg, renderer, sources)
    train, dev, report = get_or_prepare(key_of(cfg, renderer, sources) if cache else None, preparer.write)
    report.data_file = str(cfg.data_file)
    return Prepared(train, dev, report, tokenizer, renderer, preparer.encoder, renderer.instruction, cfg, sources)


def open_sources(cfg: DictConfig) -> dict[str, Source]:
    """The opened file of each part; train and dev have the same one where `dev_split` is a share or a number."""
    named, own = vars(cfg).get("named_in", {}), isinstance(cfg.get("dev_split"), str)
    train = open_rows(cfg.data_file, "data_file", named.get("data_file", ""))
    dev = open_rows(cfg.dev_split, "dev_split", named.get("dev_split", "")) if own else train
    return {"train": train} if cfg.get("dev_split") is None else {"train": train, "dev": dev}


def choose_rows(cfg: DictConfig, sources: Mapping[str, Source]) -> dict[str, list[int]]:
    """The numbers of the rows of each part."""
    train = choose(len(sources["train"]), cfg.shuffle, cfg.limit)
    if "dev" not in sources or isinstance(cfg.dev_split, str):
        return {part: train if part == "train" else list(range(len(rows))) for part, rows in sources.items()}
    texts = (texts_of(sources["train"], number, cfg) for number in train)
    questions = [words_of(asked := question_of(source, query)).strip() or asked for query, _, source in texts]
    return dict(zip(("train", "dev"), split(train, cfg.dev_split, cfg.shuffle, questions), strict=True))


class Preparer:
    """Prepares rows of opened files under one configuration, and gathers what is found on the way."""

    def __init__(self, cfg: DictConfig, renderer: Renderer, sources: Mapping[str, Source]):
        self.cfg, self.renderer, self.sources = cfg, renderer, sources
        self.encoder = Encoder(renderer.tokenizer, renderer.bos)
        self.checks = Checks(renderer, self.encoder)
        limit, policy = cfg.model.get("max_sequence_len"), cfg.model.get("over_length")
        self.fitter = Fitter(renderer, self.encoder, limit, policy, cfg.output_key)

    def write(self, folder: Path) -> Report:
        """Prepare all rows into `train.arrow` and `dev.arrow` of a folder, and report on them."""
        cfg, parts = self.cfg, {"dev": Part()}
        for name, numbers in choose_rows(cfg, self.sources).items():
            parts[name] = part = self.run(name, numbers, folder / f"{name}.arrow")
            if name == "train" and not part.kept:
                reasons = ", ".join(f"{len(numbers)} {reason}" for reason, numbers in part.dropped.items())
                advice = " ".join(KINDS[f"dropped: {reason}"][2] for reason in part.dropped)
                raise DataError(cfg.data_file, f"none of its {part.rows} rows can be trained on ({reasons})", advice)
        return Report(str(cfg.data_file), len(self.sources["train"]), **parts, **self.checks.counts())

    def run(self, part: str, numbers: list[int], path: Path) -> Part:
        """Prepare rows of a part into an Arrow file."""
        result = Part(rows=len(numbers))
        with (
            progress_bar(total=len(numbers), desc=f"preparing {part}", unit="row") as progress,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, to_arrow([]).schema) as writer,
            ThreadPoolExecutor(1) as ahead,
        ):
            texts = (self._rendered(part, numbers[at : at + _BATCH], result) for at in range(0, len(numbers), _BATCH))
            encoded = ((rows, ahead.submit(self.encoder.encode, [row[-1] for row in rows])) for rows in texts)
            # While one batch is tokenized, which needs no Python, the next is read and rendered.
            for (rows, masked), _ in itertools.pairwise(itertools.chain(encoded, [None])):
                kept = [self._keep(part, *row, one, result) for row, one in zip(rows, masked.result(), strict=True)]
                writer.write_batch(to_arrow([one[1] for one in kept if one]))
                progress.update(len(result.kept) + sum(map(len, result.dropped.values())) - progress.n)
        return result

    def one(self, number: int, part: str, settings: Settings) -> tuple[Rendered, Masked, list[Finding]]:
        """Prepare a row under other settings. One that would be dropped comes as it is, with a finding "dropped: …"."""
        old, template = self.renderer, settings.template or None
        prompt = settings.instruction, template, settings.instruction_in_prompt, settings.completion_start
        renderer = Renderer(old.tokenizer, *prompt, old.stop_ids, None if template else old.chat_template_kwargs)
        work = Preparer(self.cfg, renderer, self.sources)
        work.fitter = replace(work.fitter, limit=settings.max_sequence_len, policy=settings.over_length)
        texts = texts_of(self.sources[part], number, self.cfg)
        row = renderer.render(*texts[:2])
        [masked] = work.encoder.encode([row])
        return *(work._keep(part, number, texts, row, masked, Part()) or (row, masked)), work.checks.findings()

    def _rendered(self, part: str, numbers: list[int], result: Part) -> list[tuple[int, tuple, Rendered]]:
        """The number, the texts and the rendered text of each row that the template takes."""
        rows = []
        for number in numbers:
            texts = texts_of(self.sources[part], number, self.cfg)
            try:
                rows.append((number, texts, self.renderer.render(*texts[:2])))
            except RowRefused as error:
                self._drop("refused by the template", part, number, result, error.problem)
            except PromptError as error:
                error.where = f"{self.sources[part].where(number, self.sources[part].by)}: {error.where}"
                raise
        return rows

    def _keep(self, part: str, number: int, texts: tuple, row: Rendered, masked: Masked, result: Part) -> Kept:
        """A tokenized row as it is trained on, counted and looked at; None where it is dropped."""
        fitted = self.fitter.fit(*texts, row, masked)
        if fitted is None:
            result.rejected_lengths.append(len(masked.input_ids))
            return self._drop("too long", part, number, result)
        cut, row, masked = fitted
        if masked.end <= masked.start:
            return self._drop("no loss", part, number, result)
        if cut:
            result.cut[number] = cut
            for kind in taken(cut, *texts, self.cfg.output_key):
                self.checks.add(kind, part, number)
        self.checks.check(part, number, *texts, row, masked)
        result.kept.append(number)
        result.lengths.append((masked.start + len(masked.input_ids) - masked.end, masked.end - masked.start))
        return row, masked

    def _drop(self, why: str, part: str, number: int, result: Part, detail: str = "") -> None:
        result.dropped.setdefault(why, []).append(number)
        self.checks.add(f"dropped: {why}", part, number, detail)
