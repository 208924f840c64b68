"""What the rows of a data set hold for RAG: documents, and whether the answer stands in them."""

import re
import string
import unicodedata
from collections import Counter

from ragfit.draw.blocks import Bar, Block, Line, Note, Table
from ragfit.draw.view import View

DOCUMENT_KEYS = ("positive_passages", "documents", "passages", "contexts", "docs")
ANSWER_KEYS = ("short_answers", "answers")
LABELS = {"yes", "no", "maybe", "true", "false"}
WORDS = 10  # a longer answer is a sentence, which no document holds word for word
FIRST = 6  # row numbers listed


class RagView(View):
    """Documents per row, documents that repeat, and answers that stand in the documents, over all prepared rows.

    A row's documents are those numbered `[1]`, `[2]` … in its prompt as the model reads it (cut where it was cut), or
    else the list under one of `DOCUMENT_KEYS`. Its short answers are those under `short_answers` (each an answer or a
    list of its spellings), under `answers` (spellings of one answer), or its output. An answer is found where its words
    follow each other in a document, whatever their case and punctuation.

    Args:
        prepared: of `ragfit.prepare`.
    """

    title = "Documents and answers"

    def __init__(self, prepared):
        self.parts = {name: _Counts(prepared, name) for name in ("train", "dev") if getattr(prepared.report, name).kept}
        shared = set.intersection(*(set(part.texts) for part in self.parts.values())) if len(self.parts) > 1 else ()
        self.shared = len(shared)

    def _rows(self):
        parts = self.parts.values()
        yield "prepared rows", [f"{part.rows:,}" for part in parts]
        yield "answers looked for", [part.answers_from() for part in parts]
        if any(part.asked for part in parts):
            yield "rows with an answer in their documents", [_share(part.some, part.asked) for part in parts]
        if any(part.several for part in parts):
            yield "rows with all their answers there", [_share(part.all, part.asked) for part in parts]
        if any(part.without for part in parts):
            yield "rows with none there", [_numbers(part.without) for part in parts]
        yield "documents taken from", [part.documents_from() for part in parts]
        if not any(part.texts for part in parts):
            return
        yield "documents per row", [_spread(part.per_row) for part in parts]
        yield "words per document", [_spread(part.words) for part in parts]
        yield "rows that hold a document twice", [_numbers(part.twice) for part in parts]
        yield "different documents", [f"{len(part.texts):,} of {sum(part.texts.values()):,}" for part in parts]
        yield "documents in more than one row", [f"{sum(n > 1 for n in part.texts.values()):,}" for part in parts]
        if len(self.parts) > 1:
            yield "documents in both train and dev", [f"{self.shared:,}", ""]

    def blocks(self) -> list[Block]:
        rows = [[name, *map(_cell, values)] for name, values in self._rows()]
        labels = "Answers such as yes and no are labels: no document has to hold them, so they are not looked for."
        note = [Note(labels)] if any(part.labels for part in self.parts.values()) else []
        return [Table(["", *self.parts], rows, widths=("270px",)), *note]


class _Counts:
    """What one part's rows hold."""

    def __init__(self, prepared, part):
        report = getattr(prepared.report, part)
        self.rows, self.asked, self.some, self.all, self.labels, self.several = len(report.kept), 0, 0, 0, 0, False
        self.without, self.twice, self.per_row, self.words = [], [], [], []
        self.texts, self.keys, self.places = Counter(), Counter(), Counter()
        for number in report.kept:
            query, output, row = prepared.row(number, part)
            documents, place = documents_of(query, row)
            self.places[place] += 1
            self._count_documents(number, [words_of(text) for text in documents])
            answers, key = answers_of(row, output, prepared.cfg.output_key)
            self._count_answers(number, answers, key, documents or [query])

    def _count_documents(self, number, documents):
        if documents:
            self.per_row.append(len(documents))
            self.words += [text.count(" ") - 1 for text in documents]
        if len(set(documents)) < len(documents):
            self.twice.append(number)
        # A fingerprint of 8 bytes, not the text: a large data set has millions of documents.
        self.texts.update({hash(text) for text in documents})

    def _count_answers(self, number, answers, key, documents):
        if not answers:
            return
        if all(spelling.strip() in LABELS for spellings in answers for spelling in spellings):
            self.labels += 1
            return
        text = " ".join(map(words_of, documents))
        found = [any(spelling in text for spelling in spellings) for spellings in answers]
        self.keys[key] += 1
        self.asked += 1
        self.some += any(found)
        self.all += all(found)
        self.several |= len(found) > 1
        if not any(found):
            self.without.append(number)

    def answers_from(self):
        names = [f"{key} ({count:,} rows)" for key, count in self.keys.most_common()]
        names += [f"none: labels ({self.labels:,} rows)"] if self.labels else []
        left = self.rows - self.asked - self.labels
        return ", ".join(names + ([f"none: no short answer ({left:,} rows)"] if left else []))

    def documents_from(self):
        return ", ".join(f"{place} ({count:,} rows)" for place, count in self.places.most_common())


def documents_of(query, row):
    """(documents, where they were found): those numbered in the prompt, or a list of the row.

    >>> documents_of("Question: who?\\n\\nDocuments:\\n[1] Ada.\\n[2] Bob\\nand Eve.", {})
    (['Ada.', 'Bob\\nand Eve.'], 'the prompt')
    """
    starts, wanted = [], 1
    for match in re.finditer(r"^[ \t]*(?:Document |Passage )?\[(\d+)\]:?[ \t]?", query, re.MULTILINE):
        if int(match[1]) == wanted:  # a [7] at the start of a document's own line is no new document
            starts.append(match.span())
            wanted += 1
    if starts:
        ends = [*(start for start, _ in starts[1:]), len(query)]
        # A question or an instruction may follow the last document after an empty line.
        texts = [query[begin:end].strip() for (_, begin), end in zip(starts, ends, strict=True)]
        texts[-1] = re.split(r"\n\s*\n(?=(?:Question|Answer|Query|Instruction)\b)", texts[-1])[0].strip()
        return texts, "the prompt"
    for key in DOCUMENT_KEYS:
        if isinstance(row.get(key), list) and row[key]:
            return [_document_text(document) for document in row[key]], key
    return [], "nowhere"


def _document_text(document):
    if isinstance(document, dict):
        return " ".join(str(document[key]) for key in ("title", "text", "content", "contents") if document.get(key))
    return str(document)


def answers_of(row, output, output_key=""):
    """(answers, key): each answer is a list of its spellings as `words_of`; `([], "")` where none is short."""
    for key in ANSWER_KEYS:
        value = row.get(key)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not value:
            continue
        # Under short_answers each element is an answer; under answers, plain texts are spellings of one.
        groups = value if key == "short_answers" or any(isinstance(item, list) for item in value) else [value]
        answers = [_short(group if isinstance(group, list) else [group]) for group in groups]
        if answers := [spellings for spellings in answers if spellings]:
            return answers, key
    spellings = _short([output])
    return ([spellings], f"the output, {output_key}") if spellings else ([], "")


def _short(texts):
    spellings = [words_of(text) for text in texts if isinstance(text, str)]
    return [text for text in spellings if text.strip() and text.count(" ") - 1 <= WORDS]


_DROP = dict.fromkeys(map(ord, string.punctuation + "“”‘’´«»…–—"), " ")


def words_of(text):
    """A text's words in lower case, a space before, between and after them, without punctuation."""
    text = unicodedata.normalize("NFKC", re.sub(r"\[\d+\]", " ", text)).casefold()
    return f" {' '.join(text.translate(_DROP).split())} "


def _share(part, whole):
    """(text, share): drawn as a bar where there is a place for one."""
    if not whole:
        return "–"
    return f"{part:,} of {whole:,} ({part / whole:.0%})", part / whole


def _cell(value) -> Line:
    return (Bar(value[1]), value[0]) if isinstance(value, tuple) else value


def _numbers(numbers):
    if not numbers:
        return "0"
    first = ", ".join(map(str, numbers[:FIRST])) + (", …" if len(numbers) > FIRST else "")
    return f"{len(numbers):,} (rows {first})"


def _spread(values):
    if not values:
        return "–"
    values = sorted(values)
    low, high = f"{values[0]:,}", f"{values[-1]:,}"
    return low if low == high else f"{low} to {high}, median {values[len(values) // 2]:,}"
