"""Blocks as HTML, and what all views are: something to look at in a notebook, a log and a page of its own."""

import re
from collections.abc import Sequence
from pathlib import Path

from ragfit.draw.blocks import (
    Badge,
    Bar,
    Block,
    Callout,
    Facts,
    Fold,
    Heading,
    Line,
    Long,
    Note,
    Picture,
    Source,
    Span,
    Table,
)  # fmt: skip
from ragfit.draw.html import (
    BAD,
    FAINT,
    GOOD,
    NOTE,
    PADDING,
    PAPER,
    WARNING,
    Html,
    badge,
    bar,
    callout,
    card,
    colours,
    details,
    escape,
    html_lines,
    mono,
    picture,
    small_mono,
    small_text,
    table,
)  # fmt: skip
from ragfit.draw.text import lines, plain, short

_TONES = {"good": GOOD, "bad": BAD, "warning": WARNING, "note": NOTE, "quiet": PADDING}
FOLDED = 240  # characters of a long text that are seen before it is opened


def inline(part: Line) -> Html:
    """A line of text as HTML."""
    match part:
        case Html():
            return part
        case tuple():
            return Html("".join(map(inline, part)))
        case Span(text, "bold"):
            return Html(f"<b>{html_lines(text)}</b>")
        case Span(text, "quiet"):
            return Html(f'<span style="font-size:12px;{colours(FAINT)}">{html_lines(text)}</span>')
        case Span(text, "mono"):
            return small_mono(text)
        case Badge(text, tone):
            return badge(text, _TONES[tone])
        case Bar(share):
            return Html(f"{bar(share, width=70)}&ensp;")
        case Long(""):
            return badge("empty", PADDING)
        case Long(text) if len(text) > FOLDED:
            return details(Html(f"<bdi>{escape(short(text, FOLDED))}</bdi>"), Html(f"<bdi>{html_lines(text)}</bdi>"))
        case Long(text):
            return Html(f"<bdi>{html_lines(text)}</bdi>")
    return Html("<br>") if part == "\n" else html_lines(part)


def block(one: Block) -> Html:
    """A block as HTML."""
    match one:
        case Html():
            return one
        case Facts(items):
            rows = [
                [label, Html(f"{inline(Span(value))} {inline(Span(note, 'quiet'))}")] for label, value, note in items
            ]
            return table(None, rows, widths=("130px",))
        case Table(head, rows, right, widths, wide):
            head = [_on_two_lines(word) if wide else word for word in head] if any(head) else None
            drawn = table(head, [list(map(inline, row)) for row in rows], right, widths)
            return Html(f'<div style="overflow-x:auto">{drawn}</div>') if wide else drawn
        case Callout(text, tone):
            return callout(inline(text), _TONES[tone])
        case Note(text):
            return small_text(inline(text))
        case Heading(text):
            return Html(f'<div style="{colours(PAPER)};font-weight:600;margin:12px 0 2px">{escape(text)}</div>')
        case Source(text):
            return mono(text)
        case Picture(figure, description):
            return picture(figure(), description)
        case Fold(summary, inner):
            return details(summary, Html("".join(map(block, inner))))
    raise TypeError(f"{type(one).__name__} is not a block.")


def _on_two_lines(name: str) -> Html:
    """A dotted key or a name with underscores, so that it makes a narrow column."""
    parts = re.split(r"(?<=\.)(?=[^.]+$)", name) if "." in name else name.split("_")
    return Html("<br>".join(map(html_lines, parts)))


class View:
    """Something to look at: HTML for notebooks and text for logs, both made of the same blocks.

    Attributes:
        title: what stands on top.
        aside: what stands beside it.
    """

    title: str = "ragfit"
    aside: str = ""

    def blocks(self) -> list[Block]:
        raise NotImplementedError

    def html(self) -> Html:
        return card(self.title, *map(block, self.blocks()), aside=self.aside)

    def text(self) -> str:
        aside = f" ({plain(self.aside)})" if self.aside else ""
        return "\n".join([f"{plain(self.title)}{aside}:", *lines(self.blocks())])

    def _repr_html_(self) -> str:
        return str(self.html())

    def __repr__(self) -> str:
        return self.text()

    def save_html(self, path: str | Path) -> Path:
        """Write the view as a whole page that needs nothing from elsewhere."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(self.title, [self]), encoding="utf-8", errors="backslashreplace")
        return path


def page(title: str, views: Sequence[View]) -> str:
    """Views as one page of HTML; should a text get past their escaping, no script in it would run."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_PAGE}</style></head>"
        f"<body>{''.join(str(view.html()) for view in views)}</body></html>\n"
    )


# What JupyterLab's themes define, for a reader whose system is dark.
_PAGE = (
    "body{margin:24px auto;max-width:1040px;padding:0 16px;background:#f3f5f7}"
    "@media(prefers-color-scheme:dark){body{background:#14181d;--jp-layout-color0:#1b2026;--jp-layout-color2:#272e36;"
    "--jp-content-font-color0:#e6e9ec;--jp-content-font-color2:#a9b2bb;--jp-border-color2:#3a424b}}"
)
