"""Rows of the processed files: read, chosen, shuffled, limited, split.

A file is indexed once and a row is read when it is asked for, so that a look at the first row of a
large file does not wait for the rest, and the file is never held in memory.
"""

import array
import contextlib
import gzip
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from ragfit.config.keys import short_repr
from ragfit.config.paths import find_existing, find_file
from ragfit.draw.text import listed
from ragfit.errors import DataError, RagfitError, first_line

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig

SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".parquet")
_BOM = b"\xef\xbb\xbf"  # the byte order mark that some editors write before UTF-8


class JsonlRows(Sequence):
    """The rows of a JSONL file (plain, or gzipped and then held in memory), read on demand: `rows[i]` is a dict."""

    def __init__(self, path: Path):
        self.name = str(path)
        self._file = path.open("rb")
        if self._file.peek(2)[:2] == b"\x1f\x8b":
            try:
                self._file = io.BytesIO(gzip.decompress(self._file.read()))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(path, f"it is a damaged gzip file: {error}", "Write it again.") from error
        # Offsets, lengths and line numbers of the lines that are not blank.
        self._places, self._hash, offset = array.array("Q"), xxhash.xxh3_128(), 0
        for number, line in enumerate(self._file, 1):
            self._hash.update(line)
            if line.removeprefix(_BOM).strip():
                self._places.extend((offset, len(line), number))
            offset += len(line)

    def __len__(self) -> int:
        return len(self._places) // 3

    def where(self, i: int) -> str:
        """The file and the line of a row, for messages."""
        return f"{self.name}, line {self._places[3 * i + 2]}"

    def digest(self) -> str:
        """A hash of the whole content, as it was when the file was opened."""
        return self._hash.hexdigest()

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        self._file.seek(self._places[3 * i])
        line, where = self._file.read(self._places[3 * i + 1]), self.where(i)
        fix = 'Save the file as UTF-8, with one JSON object a line such as {"prompt": …, "answers": …} (no JSON array).'
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (RecursionError, ValueError) as error:  # among them bytes that are not UTF-8
            raise DataError(where, f"not JSON that can be read: {first_line(error)}", fix) from error
        if not isinstance(row, dict):
            raise DataError(where, f"a JSON {type(row).__name__}, not an object", fix)
        return row


class TableRows(Sequence):
    """The rows of a `datasets.Dataset` (a Parquet file or a data set's name)."""

    def __init__(self, dataset: "Dataset", name: str):
        self._dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self._dataset)

    def where(self, i: int) -> str:
        """The file and the row's number, for messages."""
        return f"{self.name}, row {i}"

    def digest(self) -> str:
        """A hash of all columns, whatever file or hub they came from."""
        import pyarrow as pa

        hasher = xxhash.xxh3_128()
        for table in self._dataset.with_format("arrow").iter(1000):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            hasher.update(sink.getvalue())
        return hasher.hexdigest()

    def __getitem__(self, i: int) -> dict:
        return self._dataset[int(i)]


Source = JsonlRows | TableRows


def open_rows(name: str | Path, key: str = "data_file") -> Source:
    """Open the data file that a key names, or the data set on the hub where no such file exists.

    Args:
        name: a path, or a data set as `org/name`, `org/name:split` or `org/name:configuration:split` (the split is
            `train` where none is named).

    Raises:
        ConfigError: there is no such file.
        DataError: the file is damaged, empty or of another format. A data set or Parquet file that cannot be loaded is
            an error of `datasets`, which lists the configurations and splits that there are.
    """
    text = str(name)
    is_path = text.endswith(SUFFIXES) or text.startswith((".", "/", "~")) or "/" not in text
    if not is_path and find_existing(name) is None:
        from datasets import load_dataset

        repository, *configuration, split = text.split(":") if ":" in text else (text, "train")
        rows = TableRows(load_dataset(repository, *configuration, split=split or "train"), text)
    else:
        path = find_file(name, key)
        if not path.name.endswith(SUFFIXES):
            raise DataError(path, "its format is not known", f"Use one of {', '.join(SUFFIXES)}.")
        if path.suffix == ".parquet":
            from datasets import Dataset

            rows = TableRows(Dataset.from_parquet(str(path)), str(path))
        else:
            rows = JsonlRows(path)
    if not len(rows):
        raise DataError(name, "the file has no rows", f"Check {key}.")
    return rows


@contextlib.contextmanager
def saying_who_named(cfg: "DictConfig") -> Iterator[None]:
    """Say of an error in a file that the user has not named, since the configuration does, where its name came from."""
    try:
        yield
    except RagfitError as error:
        for key, source in vars(cfg).get("named_in", {}).items():
            name = str(cfg.get(key) or "")
            if name and error.where.startswith((key, name, str(find_existing(name) or name))):
                error.fix += f" {key} comes from the configuration {source}; name your own with {key}=…"
        raise


def choose(count: int, shuffle: int | None = None, limit: int | None = None) -> list[int]:
    """The positions of the rows to use, in the order to use them.

    Args:
        shuffle: a seed, or None to keep the file's order. The order is that of `datasets.Dataset.shuffle`.
        limit: the number of rows to keep, taken after shuffling, or None for all.
    """
    import numpy as np

    order = np.arange(count) if shuffle is None else np.random.default_rng(shuffle).permutation(count)
    return order[:limit].tolist()


def split(
    positions: list[int], share: float, seed: int | None = None, questions: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Take a development set out of the chosen rows: (train, dev), each in the order of `positions`.

    Args:
        share: a share between 0 and 1, or a number of rows; where questions repeat, up to so many are taken.
        seed: what alone decides which rows are drawn.
        questions: the question of each row; those of one question stand on one side. None where each has its own.

    Raises:
        DataError: none is left to train on.
    """
    import numpy as np

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
    """The text under `key`; under an `output_key` also the first text of a list (of lists). Empty or null gives "".

    Raises:
        DataError: the key is missing, or holds something else.
    """
    if key not in row:
        problem = f"there is no key {key!r}; the row has {listed([*map(short_repr, row)], 20) or 'no keys'}"
        raise DataError(where, problem, f"Set {config_key} to one of them.")
    value, takes_lists = row[key], config_key != "input_key"
    while takes_lists and isinstance(value, (list, tuple)):
        value = value[0] if len(value) else ""
    if value is None:
        return ""
    if not isinstance(value, str):
        fix = f"Set {config_key} to a key with text{', or a list whose first element is text' * takes_lists}."
        problem = f"{key!r} holds {'an' if type(value) is int else 'a'} {type(value).__name__}, not text"
        raise DataError(where, problem, fix)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{key!r} holds half a character (a lone surrogate) at {error.start}"
        raise DataError(where, problem, "Correct or remove the row.") from error
    return value


def texts_of(rows: Source, number: int, cfg: "DictConfig") -> tuple[str, str, dict]:
    """(query, output, row) of a row by its number in its file."""
    row, where = rows[number], rows.where(number)
    return text_of(row, cfg.input_key, where, "input_key"), text_of(row, cfg.output_key, where, "output_key"), row


def read_text(name: str | Path, key: str) -> str:
    """A small text file (an instruction, a template), as it is but for a byte order mark.

    Raises:
        ConfigError: there is no such file.
        UnicodeDecodeError: it is not UTF-8.
    """
    return find_file(name, key).read_text(encoding="utf-8-sig")
