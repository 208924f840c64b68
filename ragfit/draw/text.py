"""Text of any origin made safe to print: every character is seen, and nothing moves the cursor or reorders a line.

At the end, blocks as lines for a log.
"""

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from ragfit.draw import blocks
from ragfit.draw.blocks import Block, Line

WIDTH = 150  # characters of a line, above which a table is written as records
LONG = 300  # characters of a long text in a log

# A terminal's escape sequences: colours and cursor moves (CSI), titles and links (OSC), and the short ones.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]")
_NAMES = {
    "\n": "⏎\n", "\t": "→\t", "\x7f": "␡", "\u200b": "⟨ZWSP⟩", "\u200d": "⟨ZWJ⟩", "\u202e": "⟨RLO⟩", "\ufeff": "⟨BOM⟩",
}  # fmt: skip


def _picture(char: str) -> str:
    if char in _NAMES:
        return _NAMES[char]
    if char < " ":
        return chr(0x2400 + ord(char))
    return "⍽" if unicodedata.category(char) == "Zs" else f"⟨U+{ord(char):04X}⟩"


def visible(text: str) -> str:
    """Text with every character seen: control, format and bidi characters, odd spaces and runs of spaces as pictures.

    A newline is `⏎` and stays a newline; a single space stays a space.
    """
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _picture(char) for char in text)
    return text.replace("  ", "··").replace("· ", "··") if "  " in text else text


def plain(text: object) -> str:
    """Text for a log: as it stands, but nothing in it can move the cursor or reorder a line."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _picture(char) for char in text)


def in_one_line(text: object, length: int = 600) -> str:
    """Any text on one line, without terminal escapes; the end of a long one is cut off."""
    text = plain(" ".join(_ESCAPES.sub("", str(text)).split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def counted(number: int, what: str) -> str:
    """A number with what it counts: `1 row`, `2,000 rows`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def listed(items: Sequence[object], most: int = 6) -> str:
    """Items one after the other, only the first of many: `3, 5, 8, …`."""
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")


def short(text: str, length: int = 80) -> str:
    """The beginning of a text, on one line."""
    text = visible(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def width() -> int:
    """Characters of a line: a terminal's own, or those of a log."""
    return shutil.get_terminal_size().columns - 2 if sys.stdout.isatty() else WIDTH


def line(part: Line) -> str:
    """A line of text, on one line; a label stands apart from what is beside it, as in a page."""
    return " ".join(_words(part).split())


def _words(part: Line) -> str:
    match part:
        case tuple():
            return "".join(map(_words, part))
        case blocks.Bar():
            return ""
        case blocks.Badge(text):
            return f" {plain(text)} "
        case blocks.Long(text):
            return short(text, LONG) or "(empty)"
        case blocks.Span(text, "mono"):
            return visible(text).replace("⏎\n", "⏎")
        case blocks.Span(text) | str(text):
            return plain(text)


def lines(view: Iterable[Block]) -> Iterator[str]:
    """Blocks as lines of text, indented by two spaces."""
    for block in view:
        match block:
            case blocks.Facts(items):
                yield from _table([[label, value, f"({note})" if note else ""] for label, value, note in items])
            case blocks.Table(head, rows, right, wide=wide):
                yield from _table(rows, head if any(head) else (), right, wide)
            case blocks.Callout(text, tone):
                yield f"  ! {line(text)}" if tone in ("warning", "bad") else f"  {line(text)}"
            case blocks.Note(text):
                yield f"  {line(text)}"
            case blocks.Heading(text):
                yield f"  {plain(text)}" if text.endswith("?") else f"  {plain(text)}:"
            case blocks.Source(text):
                yield from (f"    {plain(part)}" for part in text.splitlines())
            case blocks.Picture(text=text) if text:
                yield f"  {plain(text)}"
            case blocks.Fold(blocks=inner, in_text=True):
                yield from lines(inner)
            case blocks.Drawn(lines=draw):
                yield from draw()


def _table(
    rows: Sequence[Sequence[Line]], head: Sequence[str] = (), right: Sequence[int] = (), wide: bool = False
) -> Iterator[str]:
    """Columns or, where they are too wide for a line, a record for each row."""
    head, *table = [list(map(line, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*([head] if head else []), *table, strict=True)]
    if not head or sum(widths) + 2 * len(widths) <= width() or (wide and not sys.stdout.isatty()):
        for row in [head, *table] if head else table:
            sides = enumerate(zip(row, widths, strict=True))
            yield "  " + "  ".join(c.rjust(w) if n in right else c.ljust(w) for n, (c, w) in sides).rstrip()
        return
    for row in table:
        pairs = [": ".join(filter(None, pair)) for pair in zip(head, row, strict=True)]
        yield f"  {pairs[0]}"
        yield from (f"    {pair}" for pair, cell in zip(pairs[1:], row[1:], strict=True) if cell)
