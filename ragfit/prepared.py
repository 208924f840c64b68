"""What preparing gives: the rows, and all that was counted on the way."""

from collections import Counter
from dataclasses import dataclass, field

from ragfit.data import text_of
from ragfit.masking import Encoder
from ragfit.prompts import Renderer


@dataclass
class Part:
    """What became of the rows of one part (train or dev).

    Attributes:
        kept: for each prepared row, its number in the data file (from 0).
        dropped: numbers of the rows not trained on, by reason.
        cut: for each row whose prompt was cut, its number and a `Cut`.
        lengths: (prompt tokens, completion tokens) of each prepared row.
        rejected_lengths: tokens of each row that was dropped as too long; an estimate for one of megabytes.
    """

    rows: int = 0
    kept: list = field(default_factory=list)
    dropped: dict = field(default_factory=dict)
    cut: dict = field(default_factory=dict)
    lengths: list = field(default_factory=list)
    rejected_lengths: list = field(default_factory=list)

    @property
    def tokens(self):
        return sum(prompt + completion for prompt, completion in self.lengths)

    @property
    def loss_tokens(self):
        return sum(completion for _, completion in self.lengths)


@dataclass(repr=False)
class Report:
    """What `prepare` did, counted.

    Attributes:
        data_file: where the rows came from.
        in_file: the number of rows in the data file.
        train, dev: a `Part` each (dev has no rows where there is no dev set).
        first_labels, last_labels: how often each token is the first or last with loss, as text.
        last_ids: the ids of the latter, the tokens that end a turn.
        boundary: how often each text stands in a token that spans the boundary.
        findings: a list of `ragfit.findings.Finding`.
        cached: whether the rows were prepared by an earlier run and came from the cache.
    """

    data_file: str
    in_file: int
    train: Part
    dev: Part
    first_labels: Counter
    last_labels: Counter
    last_ids: list
    boundary: Counter
    findings: list
    cached: bool = field(default=False, compare=False)

    def __str__(self):
        lines = [f"{self.data_file}: {self.in_file} rows{' (prepared before, from the cache)' if self.cached else ''}"]
        for name, part in (("train", self.train), ("dev", self.dev)):
            if not part.rows:
                continue
            dropped = "".join(f", {len(rows)} {reason}" for reason, rows in part.dropped.items())
            cut = f", {len(part.cut)} cut" if part.cut else ""
            share = part.loss_tokens / max(part.tokens, 1)
            lines.append(
                f"  {name}: {len(part.kept)} of {part.rows} rows kept{dropped}{cut}; "
                f"{part.tokens:,} tokens, {part.loss_tokens:,} with loss ({share:.1%})"
            )
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self):
        from ragfit.views import report_html

        return report_html(self)


@dataclass
class Prepared:
    """Rows ready to train on, and all that the views need to explain them.

    Attributes:
        train, dev: `datasets.Dataset` with the columns `input_ids` and `labels` (dev may be None).
        report: a `Report`.
        tokenizer, renderer, encoder: what the rows were made with.
        instruction: the instruction's text, which inference needs again.
    """

    train: object
    dev: object
    report: Report
    tokenizer: object
    renderer: Renderer
    encoder: Encoder
    instruction: str
    cfg: object
    sources: dict

    def row(self, number, part="train"):
        """(query, output, source row) of a row by its number in its file, the query as it was cut."""
        rows = self.sources[part]
        row = rows[number]
        where = rows.where(number)
        query = text_of(row, self.cfg.input_key, where, "input_key")
        output = text_of(row, self.cfg.output_key, where, "output_key")
        cut = getattr(self.report, part).cut.get(number)
        if cut:
            query = cut.apply(query)
        return query, output, row

    def rendered(self, index, part="train"):
        """The prepared row `index` of a part as text, cut as it was for training."""
        number = getattr(self.report, part).kept[index]
        query, output, _ = self.row(number, part)
        return self.renderer.render(query, output)


@dataclass(frozen=True)
class Cut:
    """How a prompt was cut: `start:stop` of its characters are left of `length`."""

    start: int
    stop: int
    length: int

    def apply(self, query):
        return query[self.start : self.stop]
