"""What preparing gives: the rows, and all that was counted on the way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ragfit.data.findings import Finding
from ragfit.data.mask import Encoder
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.rows import Source, texts_of
from ragfit.draw.blocks import Badge, Bar, Block, Callout, Heading, Line, Span, Table
from ragfit.draw.text import listed
from ragfit.draw.view import View
from ragfit.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FIRST = 6  # token texts that are listed, before the rest is only counted


@dataclass(frozen=True)
class Cut:
    """How a prompt of `length` characters was cut: `left` are the (start, end) of what is left of it."""

    left: tuple[tuple[int, int], ...]
    length: int

    def apply(self, query: str) -> str:
        return "".join(query[start:end] for start, end in self.left)


@dataclass
class Part:
    """What became of the rows of one part (train or dev).

    Attributes:
        rows: how many there are.
        kept: for each prepared row, its number in the data file (from 0).
        dropped: numbers of the rows not trained on, by reason.
        cut: for each row whose prompt was cut, its number and a `Cut`.
        lengths: (prompt tokens, completion tokens) of each prepared row.
        rejected_lengths: tokens of each row that was dropped as too long; an estimate for one of megabytes.
    """

    rows: int = 0
    kept: list[int] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    cut: dict[int, Cut] = field(default_factory=dict)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    rejected_lengths: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(prompt + completion for prompt, completion in self.lengths)

    @property
    def longest(self) -> int:
        """The tokens of the longest prepared row; 0 where there is none."""
        return max(map(sum, self.lengths), default=0)

    @property
    def loss_tokens(self) -> int:
        return sum(completion for _, completion in self.lengths)

    @property
    def loss_share(self) -> float:
        """The share of the tokens that have loss; 0.0 where there are no tokens."""
        return self.loss_tokens / max(self.tokens, 1)


@dataclass(repr=False)
class Report:
    """What `prepare` did, counted.

    Attributes:
        data_file: where the rows came from.
        in_file: the number of rows in the data file.
        train, dev: what became of each part (dev has no rows where there is no dev set).
        first_labels, last_labels: how often each token is the first or last with loss, as text.
        last_ids: the ids of the latter, the tokens that end a turn.
        boundary: how often each text stands in a token that spans the boundary.
        findings: what looks wrong, warnings first.
        cached: whether the rows were prepared by an earlier run and came from the cache.
    """

    data_file: str
    in_file: int
    train: Part
    dev: Part
    first_labels: Counter[str]
    last_labels: Counter[str]
    last_ids: list[int]
    boundary: Counter[str]
    findings: list[Finding]
    cached: bool = field(default=False, compare=False)

    def part(self, name: str) -> Part:
        return {"train": self.train, "dev": self.dev}[name]

    def __str__(self) -> str:
        lines = [f"{self.data_file}: {self.in_file} rows{' (loaded from the cache)' if self.cached else ''}"]
        for name, part in (("train", self.train), ("dev", self.dev)):
            if not part.rows:
                continue
            dropped = "".join(f", {len(rows)} {reason}" for reason, rows in part.dropped.items())
            cut = f", {len(part.cut)} cut" if part.cut else ""
            lines.append(
                f"  {name}: {len(part.kept)} of {part.rows} rows kept{dropped}{cut}; "
                f"{part.tokens:,} tokens, {part.loss_tokens:,} with loss ({part.loss_share:.1%})"
            )
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return ReportView(self).html()


@dataclass
class Prepared:
    """Rows ready to train on, and all that the views need to explain them.

    Attributes:
        train, dev: the prepared rows, with the columns `input_ids` and `labels` (dev may be None).
        report: what was counted.
        tokenizer, renderer, encoder: what the rows were made with.
        instruction: the instruction's text, which inference needs again.
        cfg: the configuration.
        sources: the rows of each part as they stand in the data file.
    """

    train: "Dataset"
    dev: "Dataset | None"
    report: Report
    tokenizer: "PreTrainedTokenizerBase"
    renderer: Renderer
    encoder: Encoder
    instruction: str
    cfg: DictConfig
    sources: dict[str, Source]

    def part(self, name: str) -> "Dataset | None":
        return {"train": self.train, "dev": self.dev}[name]

    def at(self, index: int, part: str = "train") -> dict[str, list[int]]:
        """The prepared row `index` of a part, or a ConfigError where there is none."""
        try:
            return self.part(part)[index]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            there = f"There are {len(self.train)} in train and {len(self.dev or ())} in dev (dev_split), from 0."
            raise ConfigError(f"row {index!r} of {part}", "there is no such prepared row", there) from error

    def row(self, number: int, part: str = "train") -> tuple[str, str, dict]:
        """(query, output, source row) of a row by its number in its file, the query as it was cut."""
        query, output, row = texts_of(self.sources[part], number, self.cfg)
        cut = self.report.part(part).cut.get(number)
        return cut.apply(query) if cut else query, output, row

    def rendered(self, index: int, part: str = "train") -> Rendered:
        """The prepared row `index` of a part as text, cut as it was for training."""
        query, output, _ = self.row(self.report.part(part).kept[index], part)
        return self.renderer.render(query, output)


class ReportView(View):
    """Rows, tokens and findings of a data set, by its `Prepared` or `Report`."""

    title = "Data"

    def __init__(self, prepared: "Prepared | Report"):
        self.report = prepared.report if isinstance(prepared, Prepared) else prepared
        self.aside = f"{self.report.data_file}, {self.report.in_file:,} rows in the file"
        self.aside += ", loaded from the cache" * self.report.cached

    def blocks(self) -> list[Block]:
        report = self.report
        parts = {name: part for name in ("train", "dev") if (part := report.part(name)).rows}
        reasons = dict.fromkeys(reason for part in parts.values() for reason in part.dropped)
        rows = {
            "rows": [f"{part.rows:,}" for part in parts.values()],
            "kept": [f"{len(part.kept):,}" for part in parts.values()],
            **{f"dropped: {why}": [_dropped(part.dropped.get(why, ())) for part in parts.values()] for why in reasons},
            "prompt cut": [f"{len(part.cut):,}" for part in parts.values()],
            "tokens": [f"{part.tokens:,}" for part in parts.values()],
            "with loss": [
                (Bar(part.loss_share), f"{part.loss_tokens:,} ({part.loss_share:.1%})") for part in parts.values()
            ],
        }
        ends = [
            ["first token with loss", _most_common(report.first_labels)],
            ["last token with loss", _most_common(report.last_labels)],
            ["tokens spanning the boundary", _most_common(report.boundary)],
        ]
        return [
            self._findings(),
            Heading("Rows and tokens"),
            Table(["", *parts], [[label, *cells] for label, cells in rows.items()], widths=("220px",)),
            Heading("Where loss begins and ends, over all rows"),
            Table((), ends, widths=("220px",)),
        ]

    def _findings(self) -> Block:
        if not self.report.findings:
            return Callout((Span("No findings."), " Every check on every row passed."), "good")
        rows = [
            [
                (Badge(found.severity, found.severity), " ", Span(found.kind)),
                found.which,
                (found.meaning, *((" Seen: ", Span(found.detail, "mono")) if found.detail else ())),
                found.fix,
            ]
            for found in self.report.findings
        ]
        return Table(["finding", "rows", "what it means", "what to do"], rows, widths=("18%", "13%", "34%", "35%"))


def _dropped(numbers: Sequence[int]) -> Line:
    listing = Span(f"(row{'s' * (len(numbers) != 1)} {listed(numbers)})", "quiet")
    return (f"{len(numbers):,} ", listing) if numbers else "0"


def _most_common(texts: Counter) -> Line:
    """Texts with their counts, the most frequent first."""
    pairs = texts.most_common(FIRST)
    parts = [part for text, count in pairs for part in (", ", Span(repr(text), "mono"), f" × {count:,}")]
    more = len(texts) - len(pairs)
    return (*parts[1:], f" and {more:,} more" if more else "") if pairs else "none"
