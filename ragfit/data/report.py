"""What preparing gives: the rows, and all that was counted on the way."""

from collections import Counter
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


@dataclass(frozen=True)
class Cut:
    """How a prompt was cut: `left` are the (start, end) of what is left of it."""

    left: tuple[tuple[int, int], ...]

    def apply(self, query: str) -> str:
        return "".join(query[start:end] for start, end in self.left)


# What became of the rows of one part (train or dev). Rows are named by their numbers in the data file, from 0.
@dataclass
class Part:
    rows: int = 0
    kept: list[int] = field(default_factory=list)  # in the order of the prepared rows
    dropped: dict[str, list[int]] = field(default_factory=dict)  # by reason
    cut: dict[int, Cut] = field(default_factory=dict)
    lengths: list[tuple[int, int]] = field(default_factory=list)  # (prompt, completion) tokens of each prepared row
    rejected_lengths: list[int] = field(default_factory=list)  # tokens of each row that was dropped as too long

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.lengths))

    @property
    def longest(self) -> int:
        return max(map(sum, self.lengths), default=0)

    @property
    def loss_tokens(self) -> int:
        return sum(completion for _, completion in self.lengths)

    @property
    def loss_share(self) -> float:
        return self.loss_tokens / max(self.tokens, 1)


@dataclass(repr=False)
class Report:
    """What `prepare` did, counted."""

    data_file: str
    in_file: int  # rows in the data file
    train: Part
    dev: Part  # has no rows where there is no dev set
    first_labels: Counter[str]  # how often each token is the first with loss, as text
    last_labels: Counter[str]
    last_ids: list[int]  # the ids of the latter, the tokens that end a turn
    boundary: Counter[str]  # how often each text stands in a token that spans the boundary
    findings: list[Finding]  # what looks wrong, warnings first
    cached: bool = field(default=False, compare=False)  # whether an earlier run has prepared the rows

    def part(self, name: str) -> Part:
        return {"train": self.train, "dev": self.dev}[name]

    def __repr__(self) -> str:
        return ReportView(self).text()

    def _repr_html_(self) -> str:
        return ReportView(self).html()


@dataclass
class Prepared:
    """Rows ready to train on, and all that the views need to explain them."""

    train: "Dataset"  # with the columns `input_ids` and `labels`
    dev: "Dataset | None"
    report: Report
    tokenizer: "PreTrainedTokenizerBase"
    renderer: Renderer
    encoder: Encoder
    instruction: str  # the text, which inference needs again
    cfg: DictConfig
    sources: dict[str, Source]  # the rows of each part as they stand in the data file

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
        return self.renderer.render(*self.row(self.report.part(part).kept[index], part)[:2])


class ReportView(View):
    """Rows, tokens and findings of a data set, by its `Prepared` or `Report`."""

    title = "Data"

    def __init__(self, prepared: "Prepared | Report"):
        self.report = prepared.report if isinstance(prepared, Prepared) else prepared
        self.aside = f"{self.report.data_file}, {self.report.in_file:,} rows in the file"
        self.aside += ", loaded from the cache" * self.report.cached

    def blocks(self) -> list[Block]:
        report, passed = self.report, (Span("No findings."), " Every check on every row passed.")
        parts = {name: part for name in ("train", "dev") if (part := report.part(name)).rows}
        columns = [_figures(part, [*report.train.dropped, *report.dev.dropped]) for part in parts.values()]
        labels = ("first token with loss", "last token with loss", "tokens spanning the boundary")
        ends = zip(labels, (report.first_labels, report.last_labels, report.boundary), strict=True)
        head, widths = ("finding", "rows", "what it means", "what to do"), ("18%", "13%", "34%", "35%")
        found = Table(head, [_finding(one) for one in report.findings], widths=widths)
        return [
            found if report.findings else Callout(passed, "good"),
            Heading("Rows and tokens"),
            Table(["", *parts], [[label, *(one[label] for one in columns)] for label in columns[0]], widths=("220px",)),
            Heading("Where loss begins and ends, over all rows"),
            Table((), [[label, _most_common(texts)] for label, texts in ends], widths=("220px",)),
        ]


def _figures(part: Part, reasons: list[str]) -> dict[str, Line]:
    dropped: dict[str, Line] = {f"dropped: {why}": "0" for why in reasons}
    for why, rows in part.dropped.items():
        dropped[f"dropped: {why}"] = (f"{len(rows):,} ", Span(f"(row{'s' * (len(rows) != 1)} {listed(rows)})", "quiet"))
    return {
        "rows": f"{part.rows:,}",
        "kept": f"{len(part.kept):,}",
        **dropped,
        "prompt cut": f"{len(part.cut):,}",
        "tokens": f"{part.tokens:,}",
        "with loss": (Bar(part.loss_share), f"{part.loss_tokens:,} ({part.loss_share:.1%})"),
    }


def _finding(one: Finding) -> list[Line]:
    seen = (" Seen: ", Span(one.detail, "mono")) if one.detail else ()
    return [(Badge(one.severity, one.severity), " ", Span(one.kind)), one.which, (one.meaning, *seen), one.fix]


def _most_common(texts: Counter) -> Line:
    listing = [part for text, n in texts.most_common(6) for part in (", ", Span(repr(text), "mono"), f" × {n:,}")]
    more = f" and {len(texts) - 6:,} more" if len(texts) > 6 else ""
    return (*listing[1:], more) if listing else "none"
