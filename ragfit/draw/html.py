"""The look that all views share: palette, safe text, and the elements that pages are made of.

Written for the strictest reader, JupyterLab's sanitizer for untrusted notebooks: no scripts, style sheets or `hsl()`,
no `unicode-bidi: isolate` (hence `<bdi>`). A coloured element names both its colours, so it reads in light and dark
themes, and carries a cue that does not need colour, because GitHub drops styles altogether. Where a notebook is
trusted, paper and ink follow JupyterLab's theme: a `var()` after the plain colour, which the sanitizer drops.
"""

import base64
import html
import io
from typing import TYPE_CHECKING

from ragfit.draw.text import visible

if TYPE_CHECKING:
    pass

# Pairs of (background, foreground), contrast at least 4.5:1.
PAPER = ("#ffffff", "#1f2328")
FAINT = ("#ffffff", "#57606a")
QUIET = ("#f6f8fa", "#57606a")
LOSS = ("#dcf5e4", "#0b3d22")
LOSS_STRIPE = ("#c3ebcf", "#0b3d22")
MARKER = ("#fff1c2", "#5a4300")
SPECIAL = ("#ebe4fc", "#46288a")
PADDING = ("#eaeef2", "#57606a")
BOUNDARY = ("#ffe0d9", "#82200f")
WARNING = ("#fff0d9", "#7a3e00")
NOTE = ("#e4effc", "#0b4a8f")
GOOD = ("#dcf5e4", "#0b5a2b")
BAD = ("#ffe3e0", "#94180c")
LOSS_EDGE, LINE, BLUE, ORANGE = "#1a7f45", "#d8dee4", "#2563c9", "#c2560c"
# From surprising the model least to most: the loss of a token, in nats.
HEAT = (
    (0.1, ("#e9f7ee", "#0b3d22")),
    (0.5, ("#fdf6d8", "#5a4300")),
    (1.5, ("#fde3bd", "#6b3500")),
    (3.0, ("#fbc9ab", "#7a2206")),
    (float("inf"), ("#f6a99a", "#5c0f06")),
)

# For MathJax, of JupyterLab and of nbconvert: it would typeset what stands between two dollar signs.
AS_IT_STANDS = "mathjax_ignore tex2jax_ignore"
SANS = "font-family:system-ui,-apple-system,Segoe UI,Roboto,sans-serif"
MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"


class Html(str):
    """Text that is HTML already and is not escaped again."""


def escape(text):
    """Any value as HTML text, `Html` unchanged; safe in double-quoted attributes too."""
    return text if isinstance(text, Html) else html.escape(str(text), quote=True)


def attribute(text):
    """Text for a double-quoted attribute; an apostrophe costs one byte, not six."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def html_lines(text):
    """Visible text as HTML, with line breaks that do not depend on styles."""
    return Html(escape(visible(text)).replace("\n", "<br>"))


def small_mono(text):
    """Visible text in a line, in a small typewriter's letters."""
    return Html(f'<span style="{MONO};font-size:12px"><bdi>{html_lines(text)}</bdi></span>')


# What JupyterLab's theme has for these pairs.
_THEME = {
    PAPER: ("var(--jp-layout-color1,#ffffff)", "var(--jp-content-font-color1,#1f2328)"),
    FAINT: ("var(--jp-layout-color1,#ffffff)", "var(--jp-content-font-color2,#57606a)"),
    QUIET: ("var(--jp-layout-color2,#f6f8fa)", "var(--jp-content-font-color2,#57606a)"),
}


def colours(pair: tuple[str, str]) -> str:
    """Background and text colour as CSS, with the theme's own after them where there are such."""
    plain = f"background:{pair[0]};color:{pair[1]}"
    return plain if pair not in _THEME else f"{plain};background:{_THEME[pair][0]};color:{_THEME[pair][1]}"


def border(side: str = "") -> str:
    """A thin line around an element, or at one side of it, as CSS."""
    side = f"-{side}" if side else ""
    return f"border{side}:1px solid {LINE};border{side}-color:var(--jp-border-color2,{LINE})"


def badge(text, pair=NOTE, title=""):
    """A small label."""
    hint = f' title="{attribute(title)}"' if title else ""
    return Html(
        f'<b{hint} style="{colours(pair)};padding:1px 7px;border-radius:9px;font-size:11px;font-weight:600;'
        f'white-space:nowrap">{escape(text)}</b>'
    )


def bar(share, colour=LOSS_EDGE, width=110):
    """A share as a bar; give the number beside it."""
    filled = max(2.0 if share > 0 else 0.0, min(1.0, share) * width)
    return Html(
        f'<span style="display:inline-block;vertical-align:middle;width:{width}px;height:7px;border-radius:4px;'
        f'background:#8884"><span style="display:block;width:{filled:.0f}px;height:7px;border-radius:4px;'
        f'background:{colour};color:{colour}"></span></span>'
    )


def table(head, rows, right=(), widths=()):
    """A table; cells are escaped unless they are `Html`.

    Args:
        head: column titles; None for none.
        rows: lists of cells.
        right: columns set to the right, for numbers.
        widths: of the first columns, such as "25%" or "190px"; given for all, long words break to keep them.
    """
    count = len(head or (rows[0] if rows else ()))
    layout = "fixed" if widths and len(widths) >= count else "auto"

    def cell(tag, value, column):
        look = f"{colours(QUIET)};font-weight:600" if tag == "th" else colours(PAPER)
        side = "right;white-space:nowrap" if column in right else "left;white-space:normal"
        side += f";width:{widths[column]}" if column < len(widths) and widths[column] else ""
        return (
            f'<{tag} style="{look};text-align:{side};vertical-align:top;padding:5px 10px;border:0;'
            f'{border("bottom")};overflow-wrap:break-word">{escape(value)}</{tag}>'
        )

    def line(tag, cells):
        return f"<tr>{''.join(cell(tag, value, column) for column, value in enumerate(cells))}</tr>"

    top = f"<thead>{line('th', head)}</thead>" if head else ""
    return Html(
        '<table style="width:100%;border-collapse:collapse;border:0;margin:6px 0;font-size:13px;'
        f'table-layout:{layout};{colours(PAPER)}">{top}<tbody>{"".join(line("td", cells) for cells in rows)}</tbody></table>'
    )


def details(summary, body, open=False):
    """A part that can be opened."""
    return Html(
        f'<details{" open" if open else ""} style="margin:6px 0"><summary style="cursor:pointer;padding:2px 8px;'
        f'border-radius:5px;{colours(QUIET)}">{escape(summary)}</summary>{escape(body)}</details>'
    )


def small_text(text):
    """A line of small, calm text."""
    return Html(f'<div style="font-size:12px;{colours(FAINT)};margin:3px 0">{escape(text)}</div>')


def callout(text, pair=WARNING):
    """A line that should be read first."""
    return Html(
        f'<div style="{colours(pair)};border-left:3px solid {pair[1]};border-radius:4px;padding:5px 10px;margin:6px 0">'
        f"{escape(text)}</div>"
    )


def mono(text, begin=900, end=300):
    """Text as it stands, every character visible; the middle of a long text is folded."""
    parts = [f"<bdi>{html_lines(text)}</bdi>"]
    if len(text) > 2 * (begin + end):
        # Fold whole lines where there are lines.
        left = text.rfind("\n", begin // 2, begin) + 1 or begin
        least, most = len(text) - end, len(text) - end // 2
        right = text.find("\n", least, most) + 1 or text.find(" ", least, most) + 1 or least
        middle = details(f"{right - left:,} more characters", Html(f"<bdi>{html_lines(text[left:right])}</bdi>"))
        parts = [f"<bdi>{html_lines(text[:left])}</bdi>", middle, f"<bdi>{html_lines(text[right:])}</bdi>"]
    return Html(
        f'<div style="{MONO};font-size:12px;line-height:1.55;white-space:pre-wrap;overflow-wrap:break-word;padding:6px 10px">'
        f"{''.join(parts)}</div>"
    )


def card(title, *parts, aside=""):
    """The frame of a view: a title, what stands beside it, and the parts below."""
    body = "".join(escape(part) for part in parts)
    return Html(
        f'<div class="{AS_IT_STANDS}" style="{SANS};font-size:13px;line-height:1.5;{colours(PAPER)};{border()};border-radius:8px;'
        f'padding:12px 16px;margin:4px 0;text-align:left"><div style="margin:0 0 6px"><b style="font-size:14px">{escape(title)}</b>'
        f' <span style="{colours(FAINT)}">{escape(aside)}</span></div>{body}</div>'
    )


def figure(height):
    """An empty matplotlib figure in the views' look. Made without pyplot, so that nothing has to be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8.4, height), dpi=110, layout="constrained", facecolor=PAPER[0])


def strip_axes(axis):
    """Take the weight off a plot's frame and ticks."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(LINE)
    axis.tick_params(labelsize=8, colors=QUIET[1], length=3)
    axis.grid(axis="y", color="#eceff3", linewidth=0.8)
    axis.set_axisbelow(True)


def picture(figure, description):
    """A figure as a PNG inside the HTML."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    code = base64.b64encode(data.getvalue()).decode("ascii")
    return Html(
        f'<img alt="{attribute(description)}" style="max-width:100%;{colours(PAPER)};{border()};border-radius:6px;'
        f'margin:6px 0" src="data:image/png;base64,{code}">'
    )
