"""Blocks as HTML, and the look that all views share.

Written for the strictest reader, JupyterLab's sanitizer for untrusted notebooks: no scripts, style sheets, `hsl()` or
`unicode-bidi: isolate` (hence `<bdi>`). A coloured element names both its colours, and has a cue that needs none, as
GitHub drops styles. Where a notebook is trusted, a `var()` behind the plain colour follows JupyterLab's theme.
"""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

from ragfit.draw import blocks
from ragfit.draw.blocks import Block, Line
from ragfit.draw.text import in_one_line, plain, visible

GREEN, LINE, BLUE, ORANGE = "#1a7f45", "#d8dee4", "#2f6fd8", "#c2560c"
RED, GREY, PURPLE, GOLD = "#d04436", "#8b949e", "#7a5fd0", "#b58900"  # lines and bars, on any paper


class Pair(NamedTuple):
    """Paper and ink, contrast at least 4.5:1, and a line that goes with them; `share` % of it tint a theme's paper."""

    paper: str
    ink: str
    line: str = GREY
    share: int = 18


PAPER, FAINT = Pair("#ffffff", "#1f2328"), Pair("#ffffff", "#57606a")
QUIET, PADDING = Pair("#f6f8fa", "#57606a"), Pair("#eaeef2", "#57606a")
LOSS, NOTE = Pair("#dcf5e4", "#0b3d22", GREEN), Pair("#e4effc", "#0b4a8f", BLUE)
MARKER, SPECIAL = Pair("#fff1c2", "#5a4300", GOLD), Pair("#ebe4fc", "#46288a", PURPLE)
WARNING, BAD = Pair("#fff0d9", "#7a3e00", ORANGE), Pair("#ffe3e0", "#94180c", RED)
TONES = {"good": LOSS, "bad": BAD, "warning": WARNING, "note": NOTE, "quiet": PADDING}
# Of tokens, from surprising the model least to most: the highest loss in nats, and its colours.
HEAT = (
    (0.1, Pair("#e9f7ee", "#0b3d22", GREEN, 14)),
    (0.5, Pair("#fdf6d8", "#5a4300", GOLD, 20)),
    (1.5, Pair("#fde3bd", "#6b3500", ORANGE, 32)),
    (3.0, Pair("#fbc9ab", "#7a2206", RED, 42)),
    (float("inf"), Pair("#f6a99a", "#5c0f06", RED, 62)),
)
_SHEET, _INK = "var(--jp-layout-color1,#ffffff)", "var(--jp-content-font-color1,#1f2328)"
# What JupyterLab's theme has of its own; other pairs mix their line into its paper and ink.
_THEME = {PAPER: (_SHEET, _INK), QUIET: ("var(--jp-layout-color2,#f6f8fa)", _INK)}
_THEME[FAINT] = _SHEET, "var(--jp-content-font-color2,#57606a)"
# 0 in JupyterLab's light theme and 32 in its dark one: a picture's paper and ink change places, and hues stay.
_TURNED = "filter:invert(calc(?*.0272)) hue-rotate(calc(?*5.625deg))".replace("?", "var(--jp-shadow-base-lightness,0)")

MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
FOLDED, BEGIN, END = 240, 900, 300  # characters seen of a long text, and before and behind a fold of one as it stands


def escape(text: str) -> str:
    """Text as HTML; safe in attributes too, which are all in double quotes: an apostrophe costs one byte, not six."""
    return html.escape(plain(text), quote=False).replace('"', "&quot;")


def html_lines(text: str) -> str:
    """Visible text as HTML, with line breaks that do not depend on styles."""
    return escape(visible(text)).replace("\n", "<br>")


def colours(pair: Pair) -> str:
    """Background and text colour as CSS, with the theme's own after them."""
    mixed = [f"color-mix(in srgb,{pair.line} {share}%,{of})" for share, of in ((pair.share, _SHEET), (35, _INK))]
    paper, ink = _THEME.get(pair, mixed)
    return f"background:{pair.paper};color:{pair.ink};background:{paper};color:{ink}"


def border(side: str = "") -> str:
    """A thin line around an element, or at one side of it (`-bottom`), as CSS."""
    return f"border{side}:1px solid {LINE};border{side}-color:var(--jp-border-color2,{LINE})"


def badge(text: str, pair: Pair) -> str:
    """A small label."""
    look = "padding:1px 7px;border-radius:9px;font-size:11px;font-weight:600;white-space:nowrap"
    return f'<b style="{colours(pair)};{look}">{escape(text)}</b>'


def details(summary: str, body: str) -> str:
    """A part that can be opened, of HTML."""
    look = f"cursor:pointer;padding:2px 8px;border-radius:5px;{colours(QUIET)}"
    return f'<details style="margin:6px 0"><summary style="{look}">{summary}</summary>{body}</details>'


def mono(text: str) -> str:
    """Text as it stands, every character seen; the middle of a long text is folded, in whole lines if it has any."""
    left = right = len(text)
    if len(text) > 2 * (BEGIN + END):
        left = text.rfind("\n", BEGIN // 2, BEGIN) + 1 or BEGIN
        right = text.find("\n", len(text) - END, len(text) - END // 2) + 1 or len(text) - END
    shown = [f"<bdi>{html_lines(part)}</bdi>" for part in (text[:left], text[left:right], text[right:]) if part]
    if len(shown) > 1:
        shown[1] = details(f"{right - left:,} more characters", shown[1])
    look = "font-size:12px;line-height:1.55;white-space:pre-wrap;overflow-wrap:break-word;padding:6px 10px"
    return f'<div style="{MONO};{look}">{"".join(shown)}</div>'


def card(title: str, aside: Line, body: str) -> str:
    """The frame of a view: a title, what stands beside it, and HTML below. No dollar sign in it begins a formula."""
    look = "font-family:system-ui,-apple-system,Segoe UI,Roboto,sans-serif;font-size:13px;line-height:1.5"
    look += f";text-align:left;margin:4px 0;padding:12px 16px;border-radius:8px;{colours(PAPER)};{border()}"
    beside = f'<span style="{colours(FAINT)}">{inline(aside)}</span>'
    head = f'<div style="margin:0 0 6px"><b style="font-size:14px">{html_lines(title)}</b> {beside}</div>'
    return f'<div class="mathjax_ignore tex2jax_ignore" style="{look}">{head}{body}</div>'


def inline(part: Line) -> str:
    """A line of text as HTML."""
    match part:
        case tuple():
            return "".join(map(inline, part))
        case blocks.Span(text, "bold"):
            return f"<b>{html_lines(text)}</b>"
        case blocks.Span(text, look):
            look = MONO if look == "mono" else colours(FAINT)
            return f'<span style="font-size:12px;{look}"><bdi>{html_lines(text)}</bdi></span>'
        case blocks.Badge(text, tone):
            return badge(text, TONES[tone])
        case blocks.Bar(share, tone, width):
            look, line = "height:7px;border-radius:4px", TONES[tone].line
            whole = f"display:inline-block;vertical-align:middle;width:{width}px;{look};background:#8884"
            part = f"width:{min(1, share):.1%};min-width:{2 * (share > 0)}px;{look};background:{line};color:{line}"
            return f'<span style="{whole}"><span style="display:block;{part}"></span></span>&ensp;'
        case blocks.Long(""):
            return badge("empty", PADDING)
        case blocks.Long(text):
            whole = f"<bdi>{html_lines(text)}</bdi>"
            return whole if len(text) <= FOLDED else details(f"<bdi>{escape(in_one_line(text, FOLDED))}</bdi>", whole)
    return "<br>" if part == "\n" else html_lines(part)


def block(one: Block) -> str:
    """A block as HTML."""
    match one:
        case blocks.Facts(items):
            rows = [[label, (blocks.Span(value), " ", blocks.Span(note, "quiet"))] for label, value, note in items]
            return _table(blocks.Table((), rows, widths=("130px",)))
        case blocks.Table():
            return _table(one)
        case blocks.Callout(text, tone):
            look = f"border-left:3px solid {TONES[tone].line};border-radius:4px;padding:5px 10px;margin:6px 0"
            return f'<div style="{colours(TONES[tone])};{look}">{inline(text)}</div>'
        case blocks.Note(text):
            return f'<div style="font-size:12px;{colours(FAINT)};margin:3px 0">{inline(text)}</div>'
        case blocks.Heading(text):
            return f'<div style="{colours(PAPER)};margin:12px 0 2px"><b>{html_lines(text)}</b></div>'
        case blocks.Picture(figure, description):
            figure().savefig(data := io.BytesIO(), format="png")
            code = base64.b64encode(data.getvalue()).decode("ascii")
            look = f"max-width:100%;background:{PAPER.paper};color:{PAPER.ink};{_TURNED};border-radius:6px;margin:6px 0"
            return f'<img alt="{escape(description)}" style="{look}" src="data:image/png;base64,{code}">'
        case blocks.Fold(summary, inner):
            return details(html_lines(summary), "".join(map(block, inner)))
        case blocks.Drawn(draw):
            return draw()


def _table(table: blocks.Table) -> str:
    def line(tag: str, cells: Sequence[Line]) -> str:
        drawn = []
        for column, cell in enumerate(map(inline, cells)):
            look = "vertical-align:top;line-height:1.5;padding:5px 10px;overflow-wrap:break-word;white-space:normal"
            side, width = "right" if column in table.right else "left", widths.get(column, "auto")
            look += f";border:0;text-align:{side};width:{width}"
            cell = cell.replace("_", "_<wbr>").replace(".", ".<wbr>") if table.wide and tag == "th" else cell
            drawn.append(f'<{tag} style="{look}">{cell}</{tag}>')
        return f'<tr style="{colours(QUIET if tag == "th" else PAPER)};{border("-bottom")}">{"".join(drawn)}</tr>'

    widths, columns = dict(enumerate(table.widths)), max(map(len, (table.head, *table.rows)))
    head = f"<thead>{line('th', table.head)}</thead>" if any(table.head) else ""
    body = "".join(line("td", cells) for cells in table.rows)
    layout = "fixed" if len(widths) >= columns else "auto"
    look = f"width:100%;border-collapse:collapse;border:0;margin:6px 0;font-size:13px;table-layout:{layout}"
    drawn = f'<table style="{look};{colours(PAPER)}">{head}<tbody>{body}</tbody></table>'
    return f'<div style="overflow-x:auto">{drawn}</div>' if table.wide else drawn
