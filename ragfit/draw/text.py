"""Text of any origin made safe to print: every character is seen, and nothing moves the cursor or reorders a line."""

import re
import unicodedata

# A terminal's escape sequences: colours and cursor moves (CSI), titles and links (OSC), and the short ones.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]")

_NAMES = {
    "\n": "⏎\n", "\t": "→\t", "\x7f": "␡", "\xad": "⟨SHY⟩", "\u061c": "⟨ALM⟩", "\u200b": "⟨ZWSP⟩", "\u200c": "⟨ZWNJ⟩",
    "\u200d": "⟨ZWJ⟩", "\u200e": "⟨LRM⟩", "\u200f": "⟨RLM⟩", "\u2028": "⟨LS⟩", "\u2029": "⟨PS⟩", "\u202a": "⟨LRE⟩",
    "\u202b": "⟨RLE⟩", "\u202c": "⟨PDF⟩", "\u202d": "⟨LRO⟩", "\u202e": "⟨RLO⟩", "\u2060": "⟨WJ⟩", "\u2066": "⟨LRI⟩",
    "\u2067": "⟨RLI⟩", "\u2068": "⟨FSI⟩", "\u2069": "⟨PDI⟩", "\ufeff": "⟨BOM⟩",
}  # fmt: skip


def _picture(char):
    if char in _NAMES:
        return _NAMES[char]
    if char < " ":
        return chr(0x2400 + ord(char))
    kind = unicodedata.category(char)
    if kind == "Zs":
        return "⍽"
    return char if kind == "Cn" else f"⟨U+{ord(char):04X}⟩"


def visible(text):
    """Text with every character seen: control, format and bidi characters, odd spaces and runs of spaces as pictures.

    A newline is `⏎` and stays a newline; a single space stays a space.
    """
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _picture(char) for char in text)
    return text.replace("  ", "··").replace("· ", "··") if "  " in text else text


def plain(text):
    """Text for a log: as it stands, but nothing in it can move the cursor or reorder a line."""
    return "".join(char if char.isprintable() or char == "\n" else _picture(char) for char in str(text))


def in_one_line(text, length=600):
    """Any text on one line, without terminal escapes; the end of a long one is cut off."""
    text = plain(" ".join(_ESCAPES.sub("", str(text)).split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"
