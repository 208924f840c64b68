"""Where documents stand that are marked in a prompt: `[1] …`, `Document 1: …`, `<doc id="1">…</doc>`, `<doc>…</doc>`.

What cannot be told is not guessed, and what cannot be read whole is not read in part: numbers that stand at the start
of more lines than one, numbers that lack one, or an end of the last document that nothing marks.
"""

import re
from collections.abc import Mapping, Sequence

Span = tuple[int, int, int, int]  # a document's number, where its header starts, where its text starts and ends

_NAME = r"(?i:document|doc|passage|source|context|article|snippet|evidence)"
_BRACKETS = re.compile(rf"^[ \t]*(?:{_NAME} )?\[(?P<n>\d+)\]:?[ \t]?", re.MULTILINE)
_ID = r"\b[^>\n]*?\b(?:id|index|number)=[\"']?(?P<n>\d+)[\"']?[^>\n]*"
_TAGS = re.compile(rf"^[ \t]*<(?P<tag>{_NAME}){_ID}>\s*", re.MULTILINE)
_FORMS = (
    _BRACKETS,
    re.compile(rf"^[ \t]*\[{_NAME} #?(?P<n>\d+)\]:?[ \t]?", re.MULTILINE),
    # Document 1: …, Document 1 (Title: …): …, and on a line of its own, be it a heading.
    re.compile(
        rf"^[ \t]*(?:#+ |\*\*)?{_NAME} #?(?P<n>\d+)(?:\*?\*?:\*?\*?[ \t]?|\*?\*?[ \t]*(?=\(|\r?\n|$))", re.MULTILINE
    ),
    _TAGS,
)
_PLAIN_TAG = re.compile(rf"<(?P<tag>{_NAME})>")
_ASKS = r"(?:(?:Question|Answer|Query|Instruction)\b|(?i:question|answer|query|instruction|user question|q|a)\**:)"
_AFTER_THE_LAST = re.compile(rf"\n[ \t\r]*\n(?=[#* \t]*{_ASKS})")
_NEXT_LINE_ASKS = re.compile(r"\n(?=[#* \t]*(?i:question|query|q)\**:)")
_ASKED_BEFORE = re.compile(rf"^[#* \t]*{_ASKS}", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")


def numbered_documents(query: str, row: Mapping) -> list[Span]:
    """The documents that are marked in a prompt, numbered from 1 or from 0 in any order; [] where they can't be told.

    Args:
        row: its `query` or `question`, where it stands after the documents, is none of the last one.
    """
    found = [(matches[0].start(), form, matches) for form in _FORMS if (matches := list(form.finditer(query)))]
    if not found:
        return _tagged(query)
    _, form, matches = min(found, key=lambda one: one[0])  # a form within a document begins after the document's own
    headers = _headers(query, matches)
    if form is _BRACKETS and len(headers) == 1 and f"[{int(headers[0]['n']) + 1}]" in query[headers[0].end() :]:
        return []  # on one line with the next one, or is it a citation?
    if not headers:
        return []
    starts = [match.start() for match in headers[1:]]
    texts = [(match.end(), end) for match, end in zip(headers, [*starts, len(query)], strict=True)]
    last = texts[-1][0]
    closing = f"</{headers[-1]['tag']}>" if form is _TAGS else ""
    end = query.find(closing, last) + len(closing) if closing else 0
    end = end if end > last else _end_of_the_last(query, row, texts)
    if end is None:
        return []
    ends = [len(query[:stop].rstrip()) for _, stop in texts[:-1]] + [len(query[:end].rstrip())]
    return [
        (int(match["n"]), match.start(), match.end(), max(stop, match.end()))
        for match, stop in zip(headers, ends, strict=True)
    ]


def _headers(query: str, matches: Sequence[re.Match]) -> list[re.Match]:
    """Those of the numbers at the start of a line that begin documents; [] where it can't be told."""
    numbers = [int(match["n"]) for match in matches]
    first = int(0 not in numbers)
    if sorted(numbers) == list(range(first, first + len(numbers))):
        return list(matches)
    headers: list[re.Match] = []
    for match, number in zip(matches, numbers, strict=True):
        if number == first + len(headers):
            headers.append(match)
    # A [7] at the start of a line within a document is no new document, if it stands there otherwise than those do.
    apart = len(headers) > 1 and all(_after_empty_line(query, one) for one in headers[1:])
    capital = not any(_goes_on(query, one) for one in headers)
    for other in set(matches) - set(headers):
        within = (apart and not _after_empty_line(query, other)) or (capital and _goes_on(query, other))
        if not within or int(other["n"]) < first + len(headers):
            return []
    return headers if headers[:1] == [matches[0]] else []


def _after_empty_line(query: str, header: re.Match) -> bool:
    return query.count("\n", len(query[: header.start()].rstrip()), header.start()) > 1


def _goes_on(query: str, header: re.Match) -> bool:
    """Whether a small letter follows, as within a sentence."""
    return query[header.end() : header.end() + 1].islower()


def _tagged(query: str) -> list[Span]:
    """Documents in tags without numbers, as RAFT writes them, numbered by their places."""
    spans, at = [], 0
    for number, match in enumerate(_PLAIN_TAG.finditer(query), 1):
        closing = f"</{match['tag']}>"
        end = query.find(closing, match.end())
        if match.start() < at or end < 0:
            return []
        at = end + len(closing)
        spans.append((number, match.start(), match.end(), at))
    ends = {match.group() for match in re.finditer(rf"</{_NAME}>", query)}
    whole = sum(query.count(closing) for closing in ends) == len(spans)
    return spans if whole else []


def _end_of_the_last(query: str, row: Mapping, texts: list[tuple[int, int]]) -> int | None:
    """Where the last document ends: before the question, an empty line, or with the prompt. None: it can't be told."""
    (begin, end), before = texts[-1], query[: texts[0][0]]
    others = [query[left:right].rstrip() for left, right in texts[:-1]]
    asked = next((row[key].strip() for key in ("query", "question") if isinstance(row.get(key), str)), "")
    asked_before = asked in before if asked else bool(_ASKED_BEFORE.search(before))
    marks = (_AFTER_THE_LAST,) if asked_before else (_AFTER_THE_LAST, _NEXT_LINE_ASKS)
    ends = [match.start() for mark in marks if (match := mark.search(query, begin))]
    around = [
        query.find(f"</{tag}>", begin) for tag in re.findall(r"<(\w+)>", before)
    ]  # <context>[1] … [2] …</context>
    ends += [len(query[:at].rstrip()) for at in around if at > 0]
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
