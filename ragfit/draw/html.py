"""Blocks as HTML, and the look that all views share.

Written for the strictest reader, JupyterLab's sanitizer for untrusted notebooks: no scripts, style sheets or `hsl()`,
no `unicode-bidi: isolate` (hence `<bdi>`). A coloured element names both its colours, so it reads in light and dark
themes, and carries a cue that does not need colour, because GitHub drops styles altogether. Where a notebook is
trusted, paper, ink and tints follow JupyterLab's theme: a `var()` after the plain colour, which the sanitizer drops.
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragfit.draw import blocks
from ragfit.draw.blocks import Block, Line
from ragfit.draw.text import short, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[str, str]
Cells = Sequence[Line]  # of a table's row

# Pairs of (background, foreground), contrast at least 4.5:1.
PAPER = ("#ffffff", "#1f2328")
FAINT = ("#ffffff", "#57606a")
QUIET = ("#f6f8fa", "#57606a")
LOSS = ("#dcf5e4", "#0b3d22")
LOSS_PAPER = ("#dff0e5", "#1f2328")  # under a longer text
MARKER = ("#fff1c2", "#5a4300")
SPECIAL = ("#ebe4fc", "#46288a")
PADDING = ("#eaeef2", "#57606a")
BOUNDARY = ("#ffe0d9", "#82200f")
WARNING = ("#fff0d9", "#7a3e00")
NOTE = ("#e4effc", "#0b4a8f")
GOOD = ("#dcf5e4", "#0b5a2b")
BAD = ("#ffe3e0", "#94180c")
# Of lines and bars, which suit any paper.
GREEN, LINE, BLUE, ORANGE, RED, GREY, PURPLE = (
    "#1a7f45", "#d8dee4", "#2f6fd8", "#c2560c", "#d04436", "#8b949e", "#7a5fd0",
)  # fmt: skip
# The line that goes with a pair.
ACCENTS = {
    LOSS: GREEN, LOSS_PAPER: GREEN, MARKER: "#b58900", SPECIAL: PURPLE, PADDING: GREY, BOUNDARY: RED,
    WARNING: ORANGE, NOTE: BLUE, GOOD: GREEN, BAD: RED, QUIET: GREY,
}  # fmt: skip
_SHEET, _INK = "var(--jp-layout-color1,#ffffff)", "var(--jp-content-font-color1,#1f2328)"
# Of tokens, from surprising the model least to most: the highest loss in nats, the pair, and its tint in a theme.
HEAT = (
    (0.1, ("#e9f7ee", "#0b3d22"), GREEN, 14),
    (0.5, ("#fdf6d8", "#5a4300"), "#b58900", 20),
    (1.5, ("#fde3bd", "#6b3500"), ORANGE, 32),
    (3.0, ("#fbc9ab", "#7a2206"), RED, 42),
    (float("inf"), ("#f6a99a", "#5c0f06"), RED, 62),
)
# What JupyterLab's theme has in place of these pairs: a share of the line in its paper and in its ink.
_TINTS = [(pair, line, 18) for pair, line in ACCENTS.items()] + [heat[1:] for heat in HEAT]
_THEME = {
    pair: (f"color-mix(in srgb,{line} {share}%,{_SHEET})", f"color-mix(in srgb,{line} 35%,{_INK})")
    for pair, line, share in _TINTS
} | {
    PAPER: (_SHEET, _INK),
    FAINT: (_SHEET, "var(--jp-content-font-color2,#57606a)"),
    QUIET: ("var(--jp-layout-color2,#f6f8fa)", _INK),
    LOSS_PAPER: (f"color-mix(in srgb,{GREEN} 14%,{_SHEET})", _INK),
}
_TONES = {"good": GOOD, "bad": BAD, "warning": WARNING, "note": NOTE, "quiet": PADDING}
_BARS = {"good": GREEN, "bad": RED, "warning": ORANGE, "note": BLUE, "quiet": GREY}

# For MathJax, of JupyterLab and of nbconvert: it would typeset what stands between two dollar signs.
AS_IT_STANDS = "mathjax_ignore tex2jax_ignore"
SANS = "font-family:system-ui,-apple-system,Segoe UI,Roboto,sans-serif"
MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
FOLDED = 240  # characters of a long text that are seen before it is opened


def escape(text: str) -> str:
    """Text as HTML; safe in attributes too, which are all in double quotes: an apostrophe costs one byte, not six."""
    return html.escape(text, quote=False).replace('"', "&quot;")


def html_lines(text: str) -> str:
    """Visible text as HTML, with line breaks that do not depend on styles."""
    return escape(visible(text)).replace("\n", "<br>")


def colours(pair: Pair) -> str:
    """Background and text colour as CSS, with the theme's own after them where it has them."""
    plain = f"background:{pair[0]};color:{pair[1]}"
    return plain if pair not in _THEME else f"{plain};background:{_THEME[pair][0]};color:{_THEME[pair][1]}"


def border(side: str = "") -> str:
    """A thin line around an element, or at one side of it, as CSS."""
    side = f"-{side}" if side else ""
    return f"border{side}:1px solid {LINE};border{side}-color:var(--jp-border-color2,{LINE})"


def badge(text: str, pair: Pair) -> str:
    """A small label."""
    return (
        f'<b style="{colours(pair)};padding:1px 7px;border-radius:9px;font-size:11px;font-weight:600;'
        f'white-space:nowrap">{escape(text)}</b>'
    )


def details(summary: str, body: str) -> str:
    """A part that can be opened, of HTML."""
    return (
        '<details style="margin:6px 0"><summary style="cursor:pointer;padding:2px 8px;'
        f'border-radius:5px;{colours(QUIET)}">{summary}</summary>{body}</details>'
    )


def mono(text: str, begin: int = 900, end: int = 300) -> str:
    """Text as it stands, every character visible; the middle of a long text is folded."""
    parts = [f"<bdi>{html_lines(text)}</bdi>"]
    if len(text) > 2 * (begin + end):
        # Fold whole lines where there are lines.
        left = text.rfind("\n", begin // 2, begin) + 1 or begin
        least, most = len(text) - end, len(text) - end // 2
        right = text.find("\n", least, most) + 1 or text.find(" ", least, most) + 1 or least
        middle = details(f"{right - left:,} more characters", f"<bdi>{html_lines(text[left:right])}</bdi>")
        parts = [f"<bdi>{html_lines(text[:left])}</bdi>", middle, f"<bdi>{html_lines(text[right:])}</bdi>"]
    look = "font-size:12px;line-height:1.55;white-space:pre-wrap;overflow-wrap:break-word;padding:6px 10px"
    return f'<div style="{MONO};{look}">{"".join(parts)}</div>'


def card(title: str, aside: Line, body: str) -> str:
    """The frame of a view: a title, what stands beside it, and HTML below."""
    return (
        f'<div class="{AS_IT_STANDS}" style="{SANS};font-size:13px;line-height:1.5;{colours(PAPER)};{border()};'
        'border-radius:8px;padding:12px 16px;margin:4px 0;text-align:left"><div style="margin:0 0 6px">'
        f'<b style="font-size:14px">{html_lines(title)}</b> <span style="{colours(FAINT)}">{inline(aside)}</span></div>'
        f"{body}</div>"
    )


def inline(part: Line) -> str:
    """A line of text as HTML."""
    match part:
        case tuple():
            return "".join(map(inline, part))
        case blocks.Span(text, "bold"):
            return f"<b>{html_lines(text)}</b>"
        case blocks.Span(text, "quiet"):
            return f'<span style="font-size:12px;{colours(FAINT)}">{html_lines(text)}</span>'
        case blocks.Span(text, "mono"):
            return f'<span style="{MONO};font-size:12px"><bdi>{html_lines(text)}</bdi></span>'
        case blocks.Badge(text, tone):
            return badge(text, _TONES[tone])
        case blocks.Bar(share, tone, width):
            filled = max(2.0 if share > 0 else 0.0, min(1.0, share) * width)
            look = "height:7px;border-radius:4px"
            return (
                f'<span style="display:inline-block;vertical-align:middle;width:{width}px;{look};background:#8884">'
                f'<span style="display:block;width:{filled:.0f}px;{look};background:{_BARS[tone]};color:{_BARS[tone]}">'
                "</span></span>&ensp;"
            )
        case blocks.Long(""):
            return badge("empty", PADDING)
        case blocks.Long(text) if len(text) > FOLDED:
            return details(f"<bdi>{escape(short(text, FOLDED))}</bdi>", f"<bdi>{html_lines(text)}</bdi>")
        case blocks.Long(text):
            return f"<bdi>{html_lines(text)}</bdi>"
    return "<br>" if part == "\n" else html_lines(part)


def block(one: Block) -> str:
    """A block as HTML."""
    match one:
        case blocks.Facts(items):
            rows = [[label, (blocks.Span(value), " ", blocks.Span(note, "quiet"))] for label, value, note in items]
            return _table((), rows, widths=("130px",))
        case blocks.Table(head, rows, right, widths, wide):
            head = [_on_two_lines(word) if wide else word for word in head] if any(head) else ()
            drawn = _table(head, rows, right, widths)
            return f'<div style="overflow-x:auto">{drawn}</div>' if wide else drawn
        case blocks.Callout(text, tone):
            pair = _TONES[tone]
            look = f"border-left:3px solid {ACCENTS[pair]};border-radius:4px;padding:5px 10px;margin:6px 0"
            return f'<div style="{colours(pair)};{look}">{inline(text)}</div>'
        case blocks.Note(text):
            return f'<div style="font-size:12px;{colours(FAINT)};margin:3px 0">{inline(text)}</div>'
        case blocks.Heading(text):
            return f'<div style="{colours(PAPER)};font-weight:600;margin:12px 0 2px"><b>{html_lines(text)}</b></div>'
        case blocks.Source(text):
            return mono(text)
        case blocks.Picture(figure, description):
            return _picture(figure(), description)
        case blocks.Fold(summary, inner):
            return details(html_lines(summary), "".join(map(block, inner)))
        case blocks.Drawn(draw):
            return draw()


def _table(head: Cells, rows: Sequence[Cells], right: Sequence[int] = (), widths: Sequence[str] = ()) -> str:
    count = len(head or (rows[0] if rows else ()))
    layout = "fixed" if widths and len(widths) >= count else "auto"

    def cell(tag: str, value: Line, column: int) -> str:
        side = f"{'right' if column in right else 'left'};white-space:normal"
        side += f";width:{widths[column]}" if column < len(widths) and widths[column] else ""
        return (
            f'<{tag} style="text-align:{side};vertical-align:top;line-height:1.5;padding:5px 10px;border:0;'
            f'overflow-wrap:break-word">{inline(value)}</{tag}>'
        )

    def line(tag: str, cells: Cells) -> str:
        look = f"{colours(QUIET if tag == 'th' else PAPER)};{border('bottom')}"
        return f'<tr style="{look}">{"".join(cell(tag, value, column) for column, value in enumerate(cells))}</tr>'

    look = "width:100%;border-collapse:collapse;border:0;margin:6px 0;font-size:13px"
    top = f"<thead>{line('th', head)}</thead>" if head else ""
    body = "".join(line("td", cells) for cells in rows)
    return f'<table style="{look};table-layout:{layout};{colours(PAPER)}">{top}<tbody>{body}</tbody></table>'


def _on_two_lines(name: str) -> Line:
    """A dotted key or a name with underscores, so that it makes a narrow column."""
    parts = re.split(r"(?<=\.)(?=[^.]+$)", name) if "." in name else name.split("_")
    return tuple(piece for part in parts for piece in ("\n", part))[1:]


def _picture(figure: "Figure", description: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    # Black where the theme is dark: no ink has a contrast of 4.5 both on white and on a dark grey.
    black = f"color(from {_SHEET} srgb calc(99*r - 49) calc(99*g - 49) calc(99*b - 49))"
    look = f"max-width:100%;{colours(PAPER)};background:{black};{border()};border-radius:6px;margin:6px 0"
    code = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="{escape(description)}" style="{look}" src="data:image/png;base64,{code}">'
