"""The questions of grounding, asked of one model: what it makes of a row under other documents."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.data.documents import SUPPORT_KEYS, Document, Passages, citations, find_documents, renumber, supporting
from ragfit.data.report import Prepared
from ragfit.errors import DataError
from ragfit.evaluation.answered import Answers
from ragfit.evaluation.generate import answer_settings
from ragfit.evaluation.metrics import Gold, gold_of, scores
from ragfit.evaluation.reading import Reading, read

if TYPE_CHECKING:
    from trl import SFTTrainer

DISTRACTORS = (0, 1, 2, 4, 8)
PLACES = 10
SHORT = 10  # words of an answer, up to which its F1 says something
FEWER = 6  # distractors and places are read on every sixth of the rows: each costs several times the rest


@dataclass(frozen=True)
class Row:
    """A row taken apart.

    Attributes:
        number: its number in its file.
        supports: the numbers of the documents that support its answer.
    """

    number: int
    where: str
    query: str
    output: str
    source: Mapping
    passages: Passages
    supports: frozenset[int]

    def without(self, document: Document) -> str:
        """The prompt without a document."""
        return self.passages.prompt([one for one in self.passages.documents if one is not document])

    def with_only(self, documents: Sequence[Document]) -> str:
        return self.passages.prompt(documents)

    def among(self, documents: Sequence[Document]) -> tuple[str, str]:
        """(prompt, answer) with documents in a new order, its own and others', numbered anew."""
        fresh = self.passages.numbered([one.text for one in documents])
        own = {id(one): new.number for one, new in zip(documents, fresh, strict=True)}
        numbers = {one.number: own[id(one)] for one in self.passages.documents if id(one) in own}
        return self.passages.prompt(fresh), renumber(self.output, numbers)

    @property
    def supporting(self) -> list[Document]:
        return [one for one in self.passages.documents if one.number in self.supports]


def taken_apart(prepared: Prepared, part: str, rows: int | None) -> tuple[list[Row], list[int]]:
    """The first prepared rows of a part, and the numbers of those whose documents cannot be found.

    Raises:
        DataError: a row counts its supporting documents from 0 where they are numbered from 1.
    """
    found, unread = [], []
    for number in prepared.report.part(part).kept[:rows]:
        query, output, source = prepared.row(number, part)
        passages = find_documents(query, source)
        if passages is None:
            unread.append(number)
            continue
        supports = supporting(passages, source, output, prepared.cfg.output_key)
        where = prepared.sources[part].where(number)
        key = next((key for key in SUPPORT_KEYS if isinstance(source.get(key), list)), None)
        if key and passages.documents[0].number and any(one == 0 and one is not False for one in source[key]):
            fix = "Add 1 to each number in all rows: [1] is the first document."
            raise DataError(where, f"{key} names document 0, but the documents are numbered from 1", fix)
        found.append(Row(number, where, query, output, source, passages, supports))
    return found, unread


def measure(trainer: "SFTTrainer", name: str, rows: Sequence[Row], parts: Sequence[str], seed: int) -> list[dict]:
    """What one model makes of each row: plain values, in nats where they are losses.

    Args:
        name: which model the trainer's is at present: base or tuned.
    """
    measured = [_under_its_documents(trainer, row, parts) for row in rows]
    answers: list[tuple[str, Callable[[str], None]]] = []  # prompts, and what their answers are for
    if "citations" in parts:
        for row, one in zip(rows, measured, strict=True):
            if citations(row.output):
                answers.append((row.query, partial(one.__setitem__, "answer")))
    chosen = [i for i, row in enumerate(rows) if row.supports][::FEWER]
    for i in chosen:
        draw = random.Random(f"{seed} {rows[i].number}")
        others = _others(rows, i, draw)
        if "distractors" in parts:
            measured[i]["distractors"], prompts = _with_distractors(trainer, rows[i], others, draw)
            if len(rows[i].output.split()) <= SHORT:
                gold = gold_of(rows[i].source, trainer.prepared.cfg.output_key, rows[i].where)
                for variant, prompt in zip(measured[i]["distractors"], prompts, strict=True):
                    answers.append((prompt, partial(_score, variant, gold)))
        if "position" in parts and len(others) >= PLACES - 1:
            measured[i]["position"] = _at_each_place(trainer, rows[i], others)
    # All at once, so that those of one length are answered together.
    for (_, take), answer in zip(answers, _generated(trainer, name, [prompt for prompt, _ in answers]), strict=True):
        take(answer)
    return measured


def _score(variant: dict, gold: Gold, answer: str) -> None:
    variant["f1"] = scores(answer, gold).f1


def _under_its_documents(trainer: "SFTTrainer", row: Row, parts: Sequence[str]) -> dict:
    """Parts 1 and 2: the loss with all documents, without each, with the supporting ones alone, with none."""
    documents = row.passages.documents
    drop = len(documents) if "drop" in parts or "citations" in parts else 0
    texts = [(row.query, row.output), *((row.without(one), row.output) for one in documents[:drop])]
    if "without" in parts:
        texts += [(row.with_only([]), row.output), (row.with_only(row.supporting), row.output)]
    all_, *rest = read(trainer, texts)
    found = {"all": sum(all_.of("answer")), "citations": sum(all_.of("citation"))}
    if drop:
        dropped = rest[:drop]
        found["rise"] = {
            one.number: sum(r.of("answer")) - found["all"] for one, r in zip(documents, dropped, strict=True)
        }
        found["tokens"] = _tokens(all_, dropped, documents)
    if "without" in parts:
        found["none"] = sum(rest[drop].of("answer"))
        found["supporting"] = sum(rest[drop + 1].of("answer")) if row.supports else None
    return found


def _tokens(all_: Reading, dropped: Sequence[Reading], documents: Sequence[Document]) -> list[dict]:
    """For each token of the answer its text, its loss, and how much it rises without each document."""
    places = [place for place, kind in enumerate(all_.kinds) if kind == "answer"]
    return [
        {
            "text": all_.tokens[place],
            "loss": all_.losses[place],
            "rise": {
                one.number: r.of("answer")[n] - all_.losses[place] for one, r in zip(documents, dropped, strict=True)
            },
        }
        for n, place in enumerate(places)
    ]


def _others(rows: Sequence[Row], i: int, draw: random.Random) -> list[Document]:
    """Documents of other rows, in a drawn order, none of which is one of the row's own."""
    own = {one.text for one in rows[i].passages.documents}
    texts = {one.text: one for k, row in enumerate(rows) if k != i for one in row.passages.documents}
    others = [one for text, one in texts.items() if text not in own]
    draw.shuffle(others)
    return others


def _with_distractors(
    trainer: "SFTTrainer", row: Row, others: Sequence[Document], draw: random.Random
) -> tuple[list[dict], list[str]]:
    """Part 3: the loss with the supporting documents among more and more others, each added to those before it.

    Returns:
        What is measured of each variant, and its prompt.
    """
    mixed, counts, texts = list(row.supporting), [], []
    for count in DISTRACTORS:
        if count > len(others):
            break
        for one in others[max(0, len(mixed) - len(row.supporting)) : count]:
            mixed.insert(draw.randint(0, len(mixed)), one)
        counts.append(count)
        texts.append(row.among(mixed))
    losses = [sum(reading.of("answer")) for reading in read(trainer, texts)]
    return [{"others": count, "loss": loss} for count, loss in zip(counts, losses, strict=True)], [q for q, _ in texts]


def _at_each_place(trainer: "SFTTrainer", row: Row, others: Sequence[Document]) -> list[float]:
    """Part 4: the loss with the first supporting document at each place among nine others."""
    document, nine = row.supporting[0], list(others[: PLACES - 1])
    texts = [row.among([*nine[:place], document, *nine[place:]]) for place in range(PLACES)]
    # All have their beginning in common with the last one, so it is read first.
    readings = read(trainer, texts[::-1])[::-1]
    return [sum(reading.of("answer")) for reading in readings]


def _generated(trainer: "SFTTrainer", name: str, queries: Sequence[str]) -> list[str]:
    """The model's answers; those that an evaluation of the run has saved are taken from there."""
    prepared = trainer.prepared
    part = "dev" if prepared.dev is not None else "train"
    answers = Answers(trainer, answer_settings(trainer, part), Path(trainer.args.output_dir))
    prompts = [prepared.renderer.render(query, "").prompt for query in queries]
    return [answer for answer, _ in answers.to(prompts, name)]
