"""What `prepare` did with the data: every row counted, and what looks wrong."""

from ragfit.views import style
from ragfit.views.style import Html, View, escape, visible

FIRST = 6  # row numbers and token texts listed before the rest is only counted


class ReportView(View):
    """Rows, tokens and findings of a data set.

    Args:
        prepared: of `ragfit.prepare`, or its `report`.
    """

    title = "Data"

    def __init__(self, prepared):
        self.report = getattr(prepared, "report", prepared)

    def html(self):
        report = self.report
        names = [name for name in ("train", "dev") if getattr(report, name).rows]
        parts = [getattr(report, name) for name in names]
        found = style.callout(Html("<b>No findings.</b> Every check on every row passed."), style.GOOD)
        if report.findings:
            lines = [[_badge(f), Html(f"<b>{escape(f.kind)}</b>"), _rows(f), _meaning(f), f.fix] for f in report.findings]
            found = style.table(["", "finding", "rows", "what it means", "what to do"], lines, widths=("66px", "15%", "12%", "29%", ""))
        reasons = dict.fromkeys(reason for part in parts for reason in part.dropped)
        rows = [
            ["rows", *(f"{part.rows:,}" for part in parts)],
            ["kept", *(f"{len(part.kept):,}" for part in parts)],
            *[
                [f"dropped: {reason}", *(_dropped(part.dropped.get(reason, ())) for part in parts)]
                for reason in reasons or ["none"]
            ],
            ["prompt cut", *(f"{len(part.cut):,}" for part in parts)],
            ["tokens", *(f"{part.tokens:,}" for part in parts)],
            ["with loss", *(_share(part) for part in parts)],
        ]
        labels = [
            ["first token with loss", _counter(report.first_labels)],
            ["last token with loss", _counter(report.last_labels)],
            ["tokens across the boundary", _counter(report.boundary) if report.boundary else "none"],
        ]
        return style.card(
            self.title,
            found,
            Html(_head("Rows and tokens")),
            style.table(["", *names], rows, right=range(1, len(names) + 1), widths=("220px",)),
            Html(_head("Where loss begins and ends, over all rows")),
            style.table(None, labels, widths=("220px",)),
            aside=f"{report.data_file}, {report.in_file:,} rows in the file" + (", prepared before" if report.cached else ""),
        )

    def text(self):
        report = self.report
        lines = [style.plain(report)]
        for name, counter in (("first", report.first_labels), ("last", report.last_labels), ("boundary", report.boundary)):
            if counter:
                many = ", ".join(f"{text!r} × {count:,}" for text, count in counter.most_common(FIRST))
                lines.append(f"  {'tokens across the boundary' if name == 'boundary' else f'{name} token with loss'}: {many}")
        if not report.findings:
            lines.append("  no findings")
        return "\n".join(lines)


def report_html(report):
    """The HTML of a report, for its `_repr_html_`."""
    return str(ReportView(report).html())


def _head(text):
    return f'<div style="{style.colours(style.PAPER)};font-weight:600;margin:12px 0 2px">{escape(text)}</div>'


def _share(part):
    share = part.loss_tokens / max(part.tokens, 1)
    return Html(f"{style.bar(share, width=70)}&ensp;{part.loss_tokens:,} ({share:.1%})")


def _dropped(numbers):
    if not numbers:
        return "0"
    first = ", ".join(map(str, numbers[:FIRST])) + (", …" if len(numbers) > FIRST else "")
    return Html(f'{len(numbers):,} <span style="{style.colours((style.PAPER[0], style.QUIET[1]))}">(rows {first})</span>')


def _rows(finding):
    if not finding.rows:
        return Html("all rows")
    groups = {}
    for part, number in finding.rows[:FIRST]:
        groups.setdefault(part, []).append(str(number))
    first = "; ".join(f"{part} {', '.join(numbers)}" for part, numbers in groups.items())
    more = ", …" if len(finding.rows) > FIRST else ""
    return Html(f"{len(finding.rows):,} row{'s' * (len(finding.rows) != 1)} ({escape(first + more)})")


def _meaning(finding):
    if not finding.detail:
        return finding.meaning
    seen = f'<br>Seen: <bdi style="{style.MONO};font-size:12px">{escape(visible(finding.detail))}</bdi>'
    return Html(escape(finding.meaning) + seen)


def _badge(finding):
    return style.badge(finding.severity, style.WARNING if finding.severity == "warning" else style.NOTE)


def _counter(counter):
    """Texts with their counts, the most frequent first."""
    parts = [
        f'<bdi style="{style.MONO};{style.colours(style.LOSS)};padding:1px 4px;border-radius:3px">{escape(repr(text))}</bdi> × {count:,}'
        for text, count in counter.most_common(FIRST)
    ]
    more = len(counter) - FIRST
    return Html(" &ensp; ".join(parts) + (f" &ensp; and {more:,} more" if more > 0 else ""))
