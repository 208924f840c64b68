"""A row's own list of documents, in the forms that data sets have, and where they stand in the row's prompt."""

import re
from collections.abc import Iterator, Mapping, Sequence

from ragfit.data.numbered import Span

DOCUMENT_KEYS = (
    "positive_passages", "documents", "passages", "contexts", "docs", "ctxs", "retrieved_contexts", "context",
    "CONTEXTS", "paragraphs", "source_documents", "search_results", "retrieved_documents", "retrieved_passages",
)  # fmt: skip
TEXTS = (
    "text", "content", "contents", "page_content", "paragraph_text", "passage_text", "snippet", "passage", "paragraph",
    "document", "body", "chunk", "search_context", "contexts", "sentences",
)  # fmt: skip
CUT = 20  # characters that must be left of a document that was cut with the prompt


def listed_documents(row: Mapping) -> Iterator[tuple[str, list[object]]]:
    """(key, documents) of each of the row's lists: as a list, as a mapping of lists (RAFT's nested), or as one text."""
    for key in DOCUMENT_KEYS:
        if isinstance(value := row.get(key), Mapping):
            texts = next((value[name] for name in TEXTS if isinstance(value.get(name), list)), [value])
            titles, value = value.get("title"), texts
            if isinstance(titles, list) and len(titles) == len(texts):
                nested = all(isinstance(one, list) for one in (*titles, *texts))
                pairs = zip(*(sum(one, []) if nested else one for one in (titles, texts)), strict=False)
                value = list(map(list, pairs))
        value = [value] if isinstance(value, str) and value.strip() else value
        if isinstance(value, list) and value:
            yield key, value


def title_and_text(document: object) -> tuple[str, str]:
    """Those of a document: a text, a mapping, or a title and its text or sentences; "" where no text is found."""
    title, text = "", document
    if isinstance(document, Mapping):
        title, text = str(document.get("title") or ""), next((document[key] for key in TEXTS if document.get(key)), "")
        if isinstance(text, Mapping):
            return title_and_text({"title": title, **text})
    elif isinstance(document, list) and len(document) == 2 and isinstance(document[0], str):
        title, text = document
    texts = text if isinstance(text, list) else [text]
    return title.strip(), "".join(texts).strip() if all(isinstance(one, str) for one in texts) else ""


def listed_in(query: str, documents: Sequence[object]) -> list[Span]:
    """The row's own documents that stand in its prompt word for word; [] where their places can't be told."""
    places = _places(query, documents)
    headers = [query[end:left].lstrip() for (_, end, _), (left, _, _) in zip(places, places[1:], strict=False)]
    if not places or any(len(header) > 200 or header.startswith("</") for header in headers):
        return []  # a document that the row does not list stands between two others, or tags close them
    lines = query[: places[0][0]].splitlines(keepends=True)
    first = "".join(lines[-len(headers[0].splitlines()) :]) if headers and headers[0] else ""
    headers.insert(0, first if len(first) <= 200 else "")
    numbers = [int(found[0]) for header in headers if (found := re.search(r"\d+", header))]
    if len(set(numbers)) < len(headers) or max(numbers) > len(documents):
        numbers = [place for *_, place in places]
    rows = zip(numbers, places, headers, strict=True)
    return [(number, left - len(header), left, end) for number, (left, end, _), header in rows]


def _places(query: str, documents: Sequence[object]) -> list[tuple[int, int, int]]:
    """(start, end, place in the list from 1) of the documents; [] where one stands there more often or otherwise."""
    listed: dict[tuple[str, str], list[int]] = {}
    for place, pair in enumerate(map(title_and_text, documents), 1):
        listed.setdefault(pair, []).append(place)
    places, left = [], query
    for (title, text), numbers in sorted(listed.items(), key=lambda one: -len(one[0][1])):  # one may hold another
        forms = [*(f"{title}{between}{text}" for between in (" ", ": ") if title), text] if text else []
        patterns = (r"\s+".join(map(re.escape, form.split())) for form in forms)  # a prompt may break lines elsewhere
        spans = ([match.span() for match in re.finditer(pattern, left)] for pattern in patterns)
        found = next(filter(None, spans), []) or _cut(left, text)
        if len(found) > len(numbers) or not found and len(text) > CUT and text[:CUT] in left:
            return []
        for (start, end), place in zip(found, numbers, strict=False):
            left = f"{left[:start]}{chr(0) * (end - start)}{left[end:]}"
            places.append((start, end, place))
    return sorted(places)


def _cut(query: str, text: str) -> list[tuple[int, int]]:
    """The document that the prompt ends or begins within, where it was cut; a prompt that is all of it is none."""
    begin, end = query.rfind(text[:CUT]), query.find(text[-CUT:]) + CUT
    ends = len(text) > CUT and begin > 0 and text.startswith(query[begin:])
    begins = len(text) > CUT and CUT <= end < len(query) and text.endswith(query[:end])
    return [(begin, len(query))] if ends else [(0, end)] if begins else []
