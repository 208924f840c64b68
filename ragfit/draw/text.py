"""Text of any origin made safe to print: every character is seen, and nothing moves the cursor. And blocks as lines."""

import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

from ragfit.draw import blocks
from ragfit.draw.blocks import Block, Line

WIDTH, LONG = 150, 300  # characters of a log's line, above which a table is written as records, and of a long text

# A terminal's escape sequences: colours and cursor moves (CSI), titles and links (OSC), and the short ones.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]")
_PICTURES = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\n": "\n", "\t": "→\t", "\x7f": "␡"}
_PICTURES |= {"\u200b": "⟨ZWSP⟩", "\u200d": "⟨ZWJ⟩", "\u202e": "⟨RLO⟩", "\u2028": "⟨LS⟩", "\ufeff": "⟨BOM⟩"}


def _picture(char: str) -> str:
    return char if char.isprintable() else _PICTURES.get(char) or ("⍽" if char.isspace() else f"⟨U+{ord(char):04X}⟩")


def plain(text: object) -> str:
    """Text for a log: as it stands, but nothing in it can move the cursor or reorder a line."""
    return text if (text := str(text)).isprintable() else "".join(map(_picture, text))


def visible(text: str) -> str:
    """Text with every character seen: a newline is `⏎` and stays one, of several spaces each is a dot."""
    text = plain(text).replace("\n", "⏎\n")
    return text.replace("  ", "··").replace("· ", "··") if "  " in text else text


def in_one_line(text: object, length: int = 600) -> str:
    """The beginning of any text, on one line and without terminal escapes."""
    text = plain(" ".join(_ESCAPES.sub("", str(text)).split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def counted(number: int, what: str) -> str:
    """A number with what it counts: `1 row`, `2,000 rows`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def listed(items: Sequence[object], most: int = 6) -> str:
    """Items one after the other, only the first of many: `3, 5, 8, …`."""
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")


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
            return in_one_line(text, LONG) or "(empty)"
        case blocks.Span(text, "mono"):
            return visible(text).replace("⏎\n", "⏎")
        case blocks.Span(text) | str(text):
            return plain(text)


def lines(view: Iterable[Block]) -> Iterator[str]:
    """Blocks as lines of text, indented by two spaces."""
    for block in view:
        match block:
            case blocks.Facts(items):
                rows = [(label, value, note and f"({note})") for label, value, note in items]
                yield from _table(blocks.Table((), rows))
            case blocks.Table():
                yield from _table(block)
            case blocks.Callout(text, "warning" | "bad"):
                yield f"  ! {line(text)}"
            case blocks.Callout(text) | blocks.Note(text) | blocks.Picture(text=text) if text:
                yield f"  {line(text)}"
            case blocks.Heading(text):
                yield f"  {plain(text)}{':' * (not text.endswith('?'))}"
            case blocks.Fold(blocks=inner, in_text=True):
                yield from lines(inner)
            case blocks.Drawn(lines=draw):
                yield from draw()


def _table(table: blocks.Table) -> Iterator[str]:
    """Columns or, where they are too wide for a line, a record for each row."""
    head, *rows = [list(map(line, row)) for row in (table.head, *table.rows)]
    shown = [head, *rows] if any(head) else rows
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    room = shutil.get_terminal_size().columns - 2 if sys.stdout.isatty() else math.inf if table.wide else WIDTH
    if not any(head) or sum(widths) + 2 * len(widths) <= room:
        for row in shown:
            aligned = ((cell.rjust if n in table.right else cell.ljust)(widths[n]) for n, cell in enumerate(row))
            yield f"  {'  '.join(aligned)}".rstrip()
        return
    for row in rows:
        yield "  " + "\n    ".join(": ".join(filter(None, pair)) for pair in zip(head, row, strict=True) if pair[1])
