"""Rows of the processed files: read, chosen, shuffled, limited, split.

A file is indexed once and a row is read when it is asked for, so that a look at the first row of a
large file does not wait for the rest, and the file is never held in memory.
"""

import array
import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import xxhash

from ragfit.config.paths import check_reachable, find_existing, find_file
from ragfit.config.values import short_repr
from ragfit.errors import DataError, first_line

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig

SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".parquet")
_BOM = b"\xef\xbb\xbf"  # the byte order mark that some editors write before UTF-8


class JsonlRows(Sequence):
    """The rows of a JSONL file (plain or gzipped), read on demand: `rows[i]` is a dict."""

    def __init__(self, path: Path):
        self.name = str(path)
        self._file = _open_plain(path)
        self._state, self._hash = self._stat(), xxhash.xxh3_128()
        # Offsets and line numbers of the lines that are not blank; 16 bytes a row.
        self._offsets, self._lines = array.array("Q"), array.array("Q")
        offset = 0
        for number, line in enumerate(self._file, 1):
            self._hash.update(line)
            if line.removeprefix(_BOM).strip():
                self._offsets.append(offset)
                self._lines.append(number)
            offset += len(line)
        self._end = offset

    def __len__(self) -> int:
        return len(self._offsets)

    def where(self, i: int) -> str:
        """The file and the line of a row, for messages."""
        return f"{self.name}, line {self._lines[i]}"

    def digest(self, keys: list[str]) -> str:
        """A hash of the whole content, as it was when the file was opened."""
        return self._hash.hexdigest()

    def unchanged(self) -> bool:
        """Whether nothing was written to the file since it was opened."""
        return self._stat() == self._state

    def _stat(self) -> tuple[int, int, int]:
        # The time of the last change of any kind cannot be set back, as the time of the last write can.
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        # pread leaves no file position behind, so forked workers can share the file.
        end = self._offsets[i + 1] if i + 1 < len(self) else self._end
        line = os.pread(self._file.fileno(), end - self._offsets[i], self._offsets[i])
        try:
            return _parse(line.rstrip())  # blank lines that follow belong to no row
        except DataError as error:
            if self.unchanged():
                raise DataError(self.where(i), error.problem, error.fix) from error
            problem = "the file was written to since it was opened, and this row is not what it was"
            raise DataError(self.where(i), problem, "Start again, and leave the file as it is meanwhile.") from error


def _open_plain(path: Path) -> BinaryIO:
    """A file's content as it is read; that of a gzipped file, which its first bytes tell, unpacked."""
    file = path.open("rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    try:
        plain = tempfile.TemporaryFile()  # noqa: SIM115  (read as long as the rows are)
        with gzip.open(file) as packed:
            shutil.copyfileobj(packed, plain)
        plain.seek(0)
        return plain
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, f"it is a damaged gzip file: {error}", "Write it again.") from error
    except OSError as error:
        problem = f"it cannot be unpacked into the temporary folder: {error.strerror}"
        raise DataError(path, problem, "Free room there, or set TMPDIR to another folder.") from error


def _parse(line: bytes) -> dict:
    """The row of a line, or a `DataError` that says what is wrong with it."""
    fix = 'Each line must be one JSON object such as {"prompt": …, "answers": …}.'
    if line.removeprefix(_BOM).lstrip().startswith(b"["):
        fix += " This looks like one JSON array; write one object a line instead."
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_each_key_once)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError("", f"byte {error.start + 1} of the line is not UTF-8", "Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError("", f"not JSON ({error.msg}, column {error.colno})", fix) from error
    except (RecursionError, ValueError) as error:  # nested very deeply, or a number of thousands of digits
        raise DataError("", f"not JSON that can be read ({first_line(error)})", fix) from error
    if not isinstance(row, dict):
        raise DataError("", f"a JSON {_kind(row)}, not an object", fix)
    return row


def _each_key_once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object, of whose equal keys Python would keep the last without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise DataError("", f"the key {short_repr(twice)} is there twice", "Keep one of them.")
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

    def digest(self, keys: list[str]) -> str:
        """A hash of the columns that are used, whatever file or hub they came from."""
        import pyarrow as pa

        hasher = xxhash.xxh3_128()
        columns = self._dataset.select_columns([key for key in keys if key in self._dataset.column_names])
        for table in columns.with_format("arrow").iter(1000):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            hasher.update(sink.getvalue())
        return hasher.hexdigest()

    def unchanged(self) -> bool:
        """True: the rows are a copy in the cache of `datasets`, which is never written again."""
        return True

    def __getitem__(self, i: int) -> dict:
        return self._dataset[int(i)]


Source = JsonlRows | TableRows


def open_rows(name: str | Path, key: str = "data_file") -> Source:
    """Open the data file that a key names, or the data set on the hub where no such file exists.

    Args:
        name: a path, or a data set as `org/name` or `org/name:split` (`train` by default).

    Raises:
        ConfigError: there is no such file.
        DataError: the file is damaged or has another format, or the data set cannot be loaded.
    """
    text = str(name)
    is_path = text.endswith(SUFFIXES) or text.startswith((".", "/", "~")) or "/" not in text
    if not is_path and find_existing(name, key) is None:
        return TableRows(_load_from_hub(text, key), text)
    path = find_file(name, key)
    if path.name.endswith(".parquet"):
        return TableRows(_load_parquet(path), str(path))
    if not path.name.endswith(SUFFIXES):
        raise DataError(path, "its format is not known", f"Use one of {', '.join(SUFFIXES)}.")
    return JsonlRows(path)


def _load_parquet(path: Path) -> "Dataset":
    from datasets import Dataset
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException, parquet

    try:  # `datasets` fails on a table without rows
        return Dataset.from_parquet(str(path)) if parquet.read_metadata(path).num_rows else Dataset.from_dict({})
    except (OSError, ValueError, ArrowException, DatasetsError) as error:
        problem = "it is not a readable Parquet file: " + first_line(error.__cause__ or error)
        raise DataError(path, problem, "Write it again.") from error


def _load_from_hub(name: str, key: str) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repository, _, split = name.partition(":")
    check_reachable(repository, key, "dataset")
    try:
        return load_dataset(repository, split=split or "train")
    except (OSError, ValueError, DatasetsError) as error:
        problem = f"there is no file {name}, and no data set of that name could be loaded: {first_line(error)}"
        raise DataError(key, problem, f"Check {key}, or the network if it names a data set.") from error


def choose(count: int, shuffle: int | None = None, limit: int | None = None) -> list[int]:
    """The positions of the rows to use, in the order to use them.

    Args:
        shuffle: a seed, or None to keep the file's order. The order is that of `datasets.Dataset.shuffle`.
        limit: the number of rows to keep, taken after shuffling, or None for all.
    """
    import numpy as np

    order = np.arange(count) if shuffle is None else np.random.default_rng(shuffle).permutation(count)
    return order[:limit].tolist()


def split(positions: list[int], share: float, seed: int | None = None) -> tuple[list[int], list[int]]:
    """Take a development set out of the chosen rows: (train, dev), each in the order of `positions`.

    Args:
        share: a share between 0 and 1, or a number of rows.
        seed: what alone decides which rows are drawn.
    """
    import numpy as np

    count = max(round(share * len(positions)) if share < 1 else int(share), 1)
    if count >= len(positions):
        problem = f"{share} takes {count} of {len(positions)} rows and leaves none to train on"
        raise DataError("dev_split", problem, "Lower dev_split, raise limit, or name a separate file.")
    drawn = set(np.random.default_rng(42 if seed is None else seed).permutation(len(positions))[:count].tolist())
    train = [p for i, p in enumerate(positions) if i not in drawn]
    return train, [p for i, p in enumerate(positions) if i in drawn]


def text_of(row: dict, key: str, where: str, config_key: str) -> str:
    """The text under `key`: a string, or the first element of a list (of lists); empty or null gives "".

    Raises:
        DataError: the key is missing, or holds something else.
    """
    if key not in row:
        keys = ", ".join(map(short_repr, list(row)[:20])) + (f", … ({len(row):,} keys)" if len(row) > 20 else "")
        problem = f"there is no key {key!r}; the row has {keys or 'no keys'}"
        raise DataError(where, problem, f"Set {config_key} to one of them.")
    value = row[key]
    while isinstance(value, (list, tuple)):
        value = value[0] if len(value) else ""
    if value is None:
        return ""
    if not isinstance(value, str):
        problem = f"{key!r} holds {'an' if isinstance(value, dict) else 'a'} {_kind(value)}, not text"
        fix = f"Set {config_key} to a key with text, or a list whose first element is text."
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
        DataError: it is not UTF-8, or empty.
    """
    path = find_file(name, key)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} ({key})", f"not UTF-8 at byte {error.start}", "Save it as UTF-8.") from error
    if not text.strip():
        raise DataError(f"{path} ({key})", "the file is empty", f"Write the text there, or leave {key} empty.")
    return text


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
