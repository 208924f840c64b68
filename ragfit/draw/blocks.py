"""What a view shows, said once: `draw.html` makes HTML of these blocks, `draw.text` makes lines for a log."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    items: Sequence[tuple[str, str, str]]  # (label, value, note), of which the note may be empty


@dataclass(frozen=True)
class Table:
    """A table; a log has it in columns or, where cells are long, as a record for each row."""

    head: Sequence[str]  # empty for none
    rows: Sequence[Sequence[Line]]
    right: Sequence[int] = ()  # columns of numbers
    widths: Sequence[str] = ()  # of the first columns in a page ("25%", "190px"); where all have one, long words break
    wide: bool = False  # stays in columns, but in a terminal; a page scrolls it sideways


@dataclass(frozen=True)
class Callout:
    text: Line  # what should be read first
    tone: Tone = "warning"


@dataclass(frozen=True)
class Note:
    text: Line  # small and quiet


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure in a page; a log has `text` in its place. The description is for whoever cannot see it."""

    figure: Callable[[], Any]
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


Block = Facts | Table | Callout | Note | Heading | Picture | Fold | Drawn
