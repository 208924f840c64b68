"""Rows of the processed files: indexed in one scan, read when they are asked for, chosen, shuffled, limited, split."""

import array
import gzip
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from ragfit.config.keys import short_repr
from ragfit.config.paths import find_existing, find_file
from ragfit.draw.text import listed
from ragfit.errors import DataError, first_line

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig

SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".parquet")


class JsonlRows(Sequence):
    """The rows of a JSONL file (plain, or gzipped and then held in memory), read on demand: `rows[i]` is a dict."""

    def __init__(self, path: Path, by: str = ""):
        self.by, self.path, self._file = by, path, path.open("rb")
        if self._file.peek(2)[:2] == b"\x1f\x8b":
            try:
                self._file = io.BytesIO(gzip.decompress(self._file.read()))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(path, f"it is a damaged gzip file: {error}", "Write it again.") from error
        # Offsets, lengths and line numbers of the lines that are not blank.
        self._places, self._hash, offset = array.array("Q"), xxhash.xxh3_128(), 0
        for number, line in enumerate(self._file, 1):
            self._hash.update(line)
            if not line.isspace():
                self._places.extend((offset, len(line), number))
            offset += len(line)

    def __len__(self) -> int:
        return len(self._places) // 3

    def __getitem__(self, i: int) -> dict:
        self._file.seek(self._places[3 * i])
        line = self._file.read(self._places[3 * i + 1])
        try:
            row = json.loads(line.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError(f"it is a JSON {type(row).__name__}, not an object")
            json.dumps(row, ensure_ascii=False).encode()  # no tokenizer takes half a character (a lone surrogate)
        except (RecursionError, ValueError) as error:  # among them bytes that are not UTF-8
            fix = 'Save the file as UTF-8, with one JSON object a line: {"prompt": …, "answers": …} (no JSON array).'
            raise DataError(self.where(i, self.by), f"no row can be read: {first_line(error)}", fix) from error
        return row

    def where(self, i: int, by: str = "") -> str:
        return f"{self.path}{by}, line {self._places[3 * i + 2]}"

    def digest(self) -> str:
        return self._hash.hexdigest()  # of the content as it was when the file was opened


class TableRows(Sequence):
    """The rows of a `datasets.Dataset` (a Parquet file or a data set's name)."""

    def __init__(self, dataset: "Dataset", name: str | Path, by: str = ""):
        self._dataset, self.name, self.by = dataset, name, by

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> dict:
        return self._dataset[int(i)]

    def where(self, i: int, by: str = "") -> str:
        return f"{self.name}{by}, row {i}"

    def digest(self) -> str:
        content = xxhash.xxh3_128()
        for batch in self._dataset.iter(1000):
            content.update(repr(batch).encode())
        return content.hexdigest()


Source = JsonlRows | TableRows


def open_rows(name: str | Path, key: str = "data_file", named_in: str = "") -> Source:
    """Open the file that a key names, or else the data set on the hub: `org/name`, `org/name:[configuration:]split`.

    What cannot be loaded from the hub or from Parquet is an error of `datasets`, which lists what there is. `named_in`
    is the configuration that has named the file in the user's place, for the messages.
    """
    text, by = str(name), f" (named in {named_in})" * bool(named_in)
    if "/" in text and text[0] not in "./~" and not text.endswith(SUFFIXES) and not find_existing(name):
        from datasets import load_dataset

        repository, *configuration, split = text.split(":") if ":" in text else (text, "train")
        rows = TableRows(load_dataset(repository, *configuration, split=split), text, by)
    elif (path := find_file(name, key + by)).suffix == ".parquet":
        from datasets import Dataset

        rows = TableRows(Dataset.from_parquet(str(path)), path, by)
    else:
        rows = JsonlRows(path, by)
    if not len(rows):
        raise DataError(text + by, "the file has no rows", f"Check {key}.")
    return rows


def choose(count: int, shuffle: int | None = None, limit: int | None = None) -> list[int]:
    """The positions of the rows to use: shuffled by a seed as `datasets.Dataset.shuffle` does, then limited."""
    order = np.arange(count) if shuffle is None else np.random.default_rng(shuffle).permutation(count)
    return order[:limit].tolist()


def split(
    positions: list[int], share: float, seed: int | None = None, questions: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Take dev rows out of the chosen ones, by a seed alone: (train, dev), each in the order of `positions`.

    `share` is a share below 1 or a number of rows. Rows of one question stand on one side, so fewer may be taken.
    """
    rows = len(positions)
    count = max(round(share * rows) if share < 1 else int(share), 1)
    same, drawn = defaultdict(list), set()
    for i in np.random.default_rng(42 if seed is None else seed).permutation(rows).tolist():
        same[questions[i] if questions else i].append(i)
    for alike in same.values():
        if len(drawn) + len(alike) <= count:
            drawn.update(alike)
    drawn = drawn or set(min(same.values(), key=len))  # each question has more rows than are wanted
    if count >= rows or len(drawn) == rows:
        problem = f"{share} takes {max(count, len(drawn))} of {rows} rows and leaves none to train on"
        raise DataError("dev_split", problem, "Lower dev_split, raise limit, or name a separate file.")
    return [p for i, p in enumerate(positions) if i not in drawn], [p for i, p in enumerate(positions) if i in drawn]


def text_of(row: dict, key: str, where: str, config_key: str) -> str:
    """The text under `key`, which a `config_key` names; beside `input_key` also the first text of a list (of lists).

    Empty and null are "". A missing key and anything else are a DataError.
    """
    if key not in row:
        problem = f"there is no key {key!r}; the row has {listed([*map(short_repr, row)], 20) or 'no keys'}"
        raise DataError(where, problem, f"Set {config_key} to one of them.")
    value, takes_lists = row[key], config_key != "input_key"
    while takes_lists and isinstance(value, (list, tuple)):
        value = value[0] if len(value) else ""
    if not isinstance(value, str | None):
        fix = f"Set {config_key} to a key with text{', or a list whose first element is text' * takes_lists}."
        raise DataError(where, f"{key!r} holds a value of type {type(value).__name__}, not text", fix)
    return value or ""


def texts_of(rows: Source, number: int, cfg: "DictConfig") -> tuple[str, str, dict]:
    """(query, output, row) of a row by its number in its file."""
    row, keys = rows[number], ("input_key", "output_key")
    return *(text_of(row, cfg[key], rows.where(number, rows.by), key) for key in keys), row
