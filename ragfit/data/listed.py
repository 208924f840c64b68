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
BETWEEN = (" ", ": ", "\n", ":\n")  # a title and its text
HEADER = 200  # characters; what stands longer before a document is no header
CUT = 20  # characters that must be left of a document that was cut with the prompt


def listed_documents(row: Mapping) -> Iterator[tuple[str, list[object]]]:
    """(key, documents) of each of the row's lists: as a list, as a mapping of lists, or as one text.

    >>> list(listed_documents({"context": {"title": ["Ada"], "sentences": [["She wrote.", " It ran."]]}}))
    [('context', [['Ada', ['She wrote.', ' It ran.']]])]
    >>> list(listed_documents({"context": {"title": [["a", "b"]], "sentences": [["One.", "Two."]]}}))  # RAFT's
    [('context', [['a', 'One.'], ['b', 'Two.']])]
    """
    for key in DOCUMENT_KEYS:
        value = row.get(key)
        if isinstance(value, Mapping):
            texts = next((value[name] for name in TEXTS if isinstance(value.get(name), list)), None)
            titles = value.get("title")
            if texts is None:
                value = [value]
            elif isinstance(titles, list) and len(titles) == len(texts):
                if all(isinstance(one, list) for one in (*titles, *texts)):
                    titles, texts = sum(titles, []), sum(texts, [])
                value = [list(pair) for pair in zip(titles, texts, strict=False)]
            else:
                value = texts
        value = [value] if isinstance(value, str) and value.strip() else value
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            value = value[0] if all(isinstance(one, str) for one in value[0]) else value  # a list of a list of texts
        if isinstance(value, list) and value:
            yield key, value


def title_and_text(document: object) -> tuple[str, str]:
    """Those of a document: a text, a mapping, or a title and a text (or its sentences) as HotpotQA has them.

    The text is "" where none is found.
    """
    if isinstance(document, Mapping):
        text = next((document[key] for key in TEXTS if document.get(key)), "")
        title = str(document.get("title") or "").strip()
        return (title, _joined(text)) if not isinstance(text, Mapping) else title_and_text({"title": title, **text})
    if isinstance(document, list) and len(document) == 2 and isinstance(document[0], str):
        return document[0].strip(), _joined(document[1])
    return "", _joined(document)


def _joined(text: object) -> str:
    texts = text if isinstance(text, list) else [text]
    return "".join(texts).strip() if all(isinstance(one, str) for one in texts) else ""


def listed_in(query: str, documents: Sequence[object]) -> list[Span]:
    """Those of a row's own documents that stand in its prompt word for word; [] where their places can't be told.

    The header of each is what stands between it and the document before; the first one's is as many lines as the
    second's has. Their numbers are those in the headers where each header has one, else the places in the list.
    """
    places = _places(query, documents)
    headers = [query[end:left].lstrip() for (_, end, _), (left, _, _) in zip(places, places[1:], strict=False)]
    if not places or any(len(header) > HEADER or header.startswith("</") for header in headers):
        return []  # a document that the row does not list stands between two others, or tags close them
    lines = query[: places[0][0]].splitlines(keepends=True)
    first = "".join(lines[-len(headers[0].splitlines()) :]) if headers and headers[0] else ""
    headers.insert(0, first if len(first) <= HEADER else "")
    numbers = {int(found[0]) for header in headers if (found := re.search(r"\d+", header))}
    numbered = len(numbers) == len(headers) and max(numbers) <= len(documents)
    return [
        (int(re.search(r"\d+", header)[0]) if numbered else place, left - len(header), left, end)
        for (left, end, place), header in zip(places, headers, strict=True)
    ]


def _places(query: str, documents: Sequence[object]) -> list[tuple[int, int, int]]:
    """(start, end, place in the list from 1) of the documents, in the prompt's order.

    [] where one stands there more often than in the list.
    """
    listed: dict[tuple[str, str], list[int]] = {}
    for place, pair in enumerate(map(title_and_text, documents), 1):
        listed.setdefault(pair, []).append(place)
    places, left = [], query
    for (title, text), numbers in sorted(listed.items(), key=lambda one: -len(one[0][1])):  # one may hold another
        if not text:
            continue
        found: list[tuple[int, int]] = []
        for form in [*(f"{title}{between}{text}" for between in BETWEEN if title), text]:
            pattern = r"\s+".join(map(re.escape, form.split()))  # a prompt may break lines elsewhere
            found = found or [match.span() for match in re.finditer(pattern, left)]
        if len(found) > len(numbers):
            return []
        found = found or _cut(left, text)
        if not found and len(text) > CUT and text[:CUT] in left:
            return []  # it stands there in other words, and what cannot be read whole is not read in part
        for (start, end), place in zip(found, numbers, strict=False):
            left = f"{left[:start]}{chr(0) * (end - start)}{left[end:]}"
            places.append((start, end, place))
    return sorted(places)


def _cut(query: str, text: str) -> list[tuple[int, int]]:
    """The document that the prompt ends or begins within, where it was cut; a prompt that is all of it is none."""
    if len(text) > CUT:
        begin, end = query.rfind(text[:CUT]), query.find(text[-CUT:]) + CUT
        if begin > 0 and text.startswith(query[begin:]):
            return [(begin, len(query))]
        if CUT <= end < len(query) and text.endswith(query[:end]):
            return [(0, end)]
    return []
