"""Where documents stand that are marked in a prompt (`[1] …`, `Document 1: …`, `<doc>…</doc>`): all, or none."""

import re
from collections.abc import Mapping

from ragfit.data.words import question_of

Span = tuple[int, int, int, int]  # a document's number, where its header starts, where its text starts and ends

_NAME = r"(?i:document|doc|passage|source|context|article|snippet|evidence)"
# What documents, questions and answers are called elsewhere: other words with numbers (Step 1, 例1) are no documents.
_OTHER_NAME = (
    r"(?i:text|reference|excerpt|paragraph|chunk|abstract|result|dokument|quelle|texte|documento|fuente|fonte|texto|"
    r"testo|tài liệu|документ|источник|отрывок|фрагмент|текст|[参參]考|(?:[参參]考)?(?:文[档檔件章書献獻]|[资資材]料)|"
    r"段落|片段|[来來]源|上下文|記事|ドキュメント|문서|자료|(?:ال)?(?:مستند|وثيقة|مصدر|نص)|מסמך|מקור|दस्तावेज़|स्रोत|เอกสาร)"
)
_QUESTION = r"(?i:question|query|q|frage|pregunta|domanda|вопрос|[问問質][题題問]?|질문|(?:ال)?سؤال|שאלה|प्रश्न|คำถาม)"
_ANSWER = (
    r"(?i:answer|instruction|user question|a|antwort|respuesta|risposta|ответ|"
    r"答案?|回答|답변?|(?:ال)?(?:إجابة|جواب)|תשובה|उत्तर|คำตอบ)"
)
_ID = r"\b[^>\n]*?\b(?:id|index|number)=[\"']?(?P<n>\d+)[^>\n]*"
_TAGS = re.compile(rf"^[ \t]*<(?P<tag>{_NAME}){_ID}>\s*", re.MULTILINE)
_BRACKETS = re.compile(r"^[ \t]*[\[【](?P<n>\d+)[\]】][:：]?[ \t]?", re.MULTILINE)
# Document [1] …, [Document 1] …, Document 1: …, Document 1 (Title: …): …, and on a line of its own, be it a heading.
_HEADER = (
    r"^[ \t]*(?:#+ |\*\*)?[\[【]?{} ?[\[【]?#?(?P<n>\d+)"
    r"(?:[\]】][:：]?[ \t]?|\*?\*? ?[:：]\*?\*?[ \t]?|\*?\*?[ \t]*(?=[(（]|\r?\n|$))"
)
_FORMS = (_BRACKETS, *(re.compile(_HEADER.format(name), re.MULTILINE) for name in (_NAME, _OTHER_NAME)), _TAGS)
_ASKS = rf"(?:(?:Question|Answer|Query|Instruction)\b|(?:{_QUESTION}|{_ANSWER})\** ?[:：])"
_AFTER_THE_LAST = re.compile(rf"\n[ \t\r]*\n(?=[#* \t]*{_ASKS})")
_NEXT_LINE_ASKS = re.compile(rf"\n(?=[#* \t]*{_QUESTION}\** ?[:：])")
_ASKED_BEFORE = re.compile(rf"^[#* \t]*{_ASKS}", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")


def numbered_documents(query: str, row: Mapping) -> list[Span]:
    """The documents that are marked in a prompt, numbered from 1 or 0 in any order; [] where they can't be told."""
    found = [matches for form in _FORMS if (matches := list(form.finditer(query)))]
    if not found:
        return _tagged(query)
    matches = min(found, key=lambda one: one[0].start())  # a form within a document begins after the document's own
    numbers = sorted(int(match["n"]) for match in matches)
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        return []
    if "[" in matches[0][0] and len(matches) == 1 and f"[{numbers[0] + 1}]" in query[matches[0].end() :]:
        return []  # on one line with the next one, or is it a citation?
    stops = [*(match.start() for match in matches[1:]), len(query)]
    texts, last = [(match.end(), stop) for match, stop in zip(matches, stops, strict=True)], matches[-1]
    closing = f"</{last['tag']}>" if last.re is _TAGS else ""
    end = query.find(closing, last.end()) + len(closing) if closing else 0
    stops[-1] = end if end > last.end() else _end_of_the_last(query, row, texts)
    if stops[-1] is None:
        return []
    pairs = ((match, len(query[:stop].rstrip())) for match, stop in zip(matches, stops, strict=True))
    return [(int(match["n"]), match.start(), match.end(), max(stop, match.end())) for match, stop in pairs]


def _tagged(query: str) -> list[Span]:
    """Documents in tags without numbers, as RAFT writes them, numbered by their places."""
    found = list(re.finditer(rf"<(?P<tag>{_NAME})>(?:(?!</?{_NAME}>).)*</(?P=tag)>", query, re.DOTALL))
    if len(re.findall(rf"</?{_NAME}>", query)) != 2 * len(found):
        return []  # one is not closed, or stands in another
    return [(n, one.start(), one.end("tag") + 1, one.end()) for n, one in enumerate(found, 1)]


def _end_of_the_last(query: str, row: Mapping, texts: list[tuple[int, int]]) -> int | None:
    """Where the last document ends: before the question, an empty line, or with the prompt. None: it can't be told."""
    (begin, end), before = texts[-1], query[: texts[0][0]]
    others = [query[left:right].rstrip() for left, right in texts[:-1]]
    asked = question_of(row, "").strip()
    asked_before = asked in before if asked else _ASKED_BEFORE.search(before)
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
