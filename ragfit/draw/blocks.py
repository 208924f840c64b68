"""What a view shows, said once: `draw.html` makes HTML of these blocks, `draw.text` makes lines for a log.

A result that shows itself declares its blocks beside the code that computed it:

>>> from ragfit.draw.text import lines
>>> for line in lines([Callout("Two rows are the same."), Facts([("rows", "200", "12 dropped")])]):
...     print("|" + line)
|  ! Two rows are the same.
|  rows  200  (12 dropped)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tone = Literal["good", "bad", "warning", "note", "quiet"]


# Parts of a line.


@dataclass(frozen=True)
class Span:
    """Text that looks different: bold, quiet (small and grey) or mono (as it stands, in a typewriter's letters)."""

    text: str
    look: Literal["bold", "quiet", "mono"] = "bold"


@dataclass(frozen=True)
class Badge:
    """A small label whose colour repeats what its word says."""

    text: str
    tone: Tone = "note"


@dataclass(frozen=True)
class Bar:
    """A share, from 0 to 1, as a bar; give the number beside it, which is all that a log shows.

    Attributes:
        width: of the whole bar, in pixels.
    """

    share: float
    tone: Tone = "good"
    width: int = 70


@dataclass(frozen=True)
class Long:
    """Text from data that may be long: folded in a page, cut in a log."""

    text: str


# A string is text; "\n" alone begins a new line.
Line = str | Span | Badge | Bar | Long | tuple["Line", ...]


# Blocks.


@dataclass(frozen=True)
class Facts:
    """Labels with their values, and a note on each that may be empty.

    Attributes:
        items: `(label, value, note)`.
    """

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """A table; a log has it in columns or, where cells are long, as a record for each row.

    Attributes:
        head: column titles; empty for none.
        right: columns of numbers, set to the right.
        widths: of the first columns in a page, such as "25%" or "190px"; where all have one, long words break.
        wide: whether it stays in columns however wide it is, but in a terminal; a page scrolls it sideways.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Line]]
    right: Sequence[int] = ()
    widths: Sequence[str] = ()
    wide: bool = False


@dataclass(frozen=True)
class Callout:
    """What should be read first."""

    text: Line
    tone: Tone = "warning"


@dataclass(frozen=True)
class Note:
    """A line of small, quiet text."""

    text: Line


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Source:
    """Text as it stands, such as YAML, every character visible."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure in a page.

    Attributes:
        figure: makes it, with `ragfit.draw.figure`; a log asks for none.
        description: for whoever cannot see it.
        text: what a log shows in its place, or "".
    """

    figure: Callable[[], "Figure"]
    description: str
    text: str = ""


@dataclass(frozen=True)
class Fold:
    """A part that can be opened.

    Attributes:
        in_text: whether a log has it too.
    """

    summary: str
    blocks: Sequence["Block"]
    in_text: bool = True


@dataclass(frozen=True)
class Drawn:
    """A part that its view draws itself.

    Attributes:
        html: makes its HTML, in which every text is escaped.
        lines: makes its lines for a log, in which every character is printable.
    """

    html: Callable[[], str]
    lines: Callable[[], Iterable[str]]


Block = Facts | Table | Callout | Note | Heading | Source | Picture | Fold | Drawn
