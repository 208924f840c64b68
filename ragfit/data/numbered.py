"""Where documents stand that are numbered in a prompt: `[1] …`, `Document 1: …`, `<doc id="1">…</doc>`.

What cannot be told is not guessed: numbers that stand at the start of more lines than one, or an end of the last
document that nothing marks.
"""

import re
from collections.abc import Mapping

Span = tuple[int, int, int, int]  # a document's number, where its header starts, where its text starts and ends

_NAME = r"(?i:document|doc|passage|source|context|article|snippet|evidence)"
_BRACKETS = re.compile(rf"^[ \t]*(?:{_NAME} )?\[(\d+)\]:?[ \t]?", re.MULTILINE)
_TAGS = re.compile(rf"^[ \t]*<({_NAME})\b[^>\n]*?\b(?:id|index|number)=[\"']?(?P<n>\d+)[\"']?[^>\n]*>\s*", re.MULTILINE)
_FORMS = (
    _BRACKETS,
    re.compile(rf"^[ \t]*\[{_NAME} #?(\d+)\]:?[ \t]?", re.MULTILINE),
    # Document 1: …, Document 1 (Title: …): …, and on a line of its own, be it a heading.
    re.compile(rf"^[ \t]*(?:#+ |\*\*)?{_NAME} #?(\d+)(?:\*?\*?:\*?\*?[ \t]?|\*?\*?[ \t]*(?=\(|\r?\n|$))", re.MULTILINE),
    _TAGS,
)
_ASKS = r"(?:(?:Question|Answer|Query|Instruction)\b|(?i:question|answer|query|instruction|user question|q|a)\**:)"
_AFTER_THE_LAST = re.compile(rf"\n[ \t\r]*\n(?=[#* \t]*{_ASKS})")
_NEXT_LINE_ASKS = re.compile(r"\n(?=[#* \t]*(?i:question|query|q)\**:)")
_ASKED_BEFORE = re.compile(rf"^[#* \t]*{_ASKS}", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")


def numbered_documents(query: str, row: Mapping) -> list[Span]:
    """The documents that are numbered in a prompt from 1 or from 0; [] where they can't be told.

    Args:
        row: its `query` or `question`, where it stands after the documents, is none of the last one.
    """
    found = [(matches[0].start(), form, matches) for form in _FORMS if (matches := list(form.finditer(query)))]
    if not found:
        return []
    _, form, matches = min(found, key=lambda one: one[0])  # a form within a document begins after the document's own
    group = "n" if form is _TAGS else 1
    first = wanted = int(int(matches[0][group]) != 0)
    headers = []
    for match in matches:
        if int(match[group]) == wanted:  # a [7] at the start of a document's own line is no new document
            headers.append(match)
            wanted += 1
    if sum(first <= int(match[group]) < wanted for match in matches) > len(headers):
        return []
    if form is _BRACKETS and len(headers) == 1 and f"[{wanted}]" in query[headers[0].end() :]:
        return []  # on one line with the next one, or is it a citation?
    if not headers:
        return []
    starts = [match.start() for match in headers[1:]]
    texts = [(match.end(), end) for match, end in zip(headers, [*starts, len(query)], strict=True)]
    last = texts[-1][0]
    end = query.find(f"</{headers[-1][1]}>", last) + len(f"</{headers[-1][1]}>") if form is _TAGS else 0
    end = end if end > last else _end_of_the_last(query, row, texts)
    if end is None:
        return []
    ends = [len(query[:stop].rstrip()) for _, stop in texts[:-1]] + [len(query[:end].rstrip())]
    return [
        (number, match.start(), match.end(), max(stop, match.end()))
        for number, match, stop in zip(range(first, wanted), headers, ends, strict=True)
    ]


def _end_of_the_last(query: str, row: Mapping, texts: list[tuple[int, int]]) -> int | None:
    """Where the last document ends: before the question, an empty line, or with the prompt. None: it can't be told."""
    (begin, end), before = texts[-1], query[: texts[0][0]]
    others = [query[left:right].rstrip() for left, right in texts[:-1]]
    asked = next((row[key].strip() for key in ("query", "question") if isinstance(row.get(key), str)), "")
    asked_before = asked in before if asked else bool(_ASKED_BEFORE.search(before))
    marks = (_AFTER_THE_LAST,) if asked_before else (_AFTER_THE_LAST, _NEXT_LINE_ASKS)
    ends = [match.start() for mark in marks if (match := mark.search(query, begin))]
    if not asked_before:
        if asked and (at := query.rfind(asked, begin)) >= 0:
            paragraphs = [match.start() for match in _PARAGRAPH.finditer(query, begin, at)]
            ends.append(paragraphs[-1] if paragraphs else query.rfind("\n", begin, at))
        elif any(mark.search(text) for mark in marks for text in others):
            return None  # do questions belong to the documents, or does one follow them?
        # The only document of several paragraphs may be one with the question after it.
        elif not ends and _PARAGRAPH.search(query[begin:end].strip()) and not any(map(_PARAGRAPH.search, others)):
            return None if others else end
    first = min(ends, default=end)
    return first if first >= 0 else None
