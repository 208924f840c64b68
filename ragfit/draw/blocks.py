"""What a view shows, said once: `draw.html` makes HTML of these blocks, `draw.text` makes lines for a log.

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
    """A share, from 0 to 1, as a bar of `width` pixels; a log shows only the number that is given beside it."""

    share: float
    tone: Tone = "good"
    width: int = 70


@dataclass(frozen=True)
class Long:
    """Text from data that may be long: folded in a page, cut in a log."""

    text: str


# A string is text; "\n" alone begins a new line.
Line = str | Span | Badge | Bar | Long | tuple["Line", ...]


@dataclass(frozen=True)
class Facts:
    """`(label, value, note)`, of which the note may be empty."""

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
    """A matplotlib figure in a page; a log has `text` in its place. The description is for whoever cannot see it."""

    figure: Callable[[], "Figure"]
    description: str
    text: str = ""


@dataclass(frozen=True)
class Fold:
    """A part that can be opened; `in_text` says whether a log has it too."""

    summary: str
    blocks: Sequence["Block"]
    in_text: bool = True


@dataclass(frozen=True)
class Drawn:
    """A part that its view draws itself: HTML in which every text is escaped, and printable lines for a log."""

    html: Callable[[], str]
    lines: Callable[[], Iterable[str]]


Block = Facts | Table | Callout | Note | Heading | Source | Picture | Fold | Drawn
