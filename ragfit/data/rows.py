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
from collections.abc import Sequence
from pathlib import Path

import xxhash

from ragfit.config.values import short_repr
from ragfit.errors import DataError, first_line

SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".parquet")


class JsonlRows(Sequence):
    """The rows of a JSONL file (plain or gzipped), read on demand.

    `rows[i]` is a dict; `rows.where(i)` names the file and the line for messages.
    """

    def __init__(self, path):
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")
            if self._file.read(2) == b"\x1f\x8b":
                self._file = self._unzipped()
            self._file.seek(0)
            # Offsets and line numbers of the lines that are not blank; 16 bytes a row.
            self._offsets, self._lines = array.array("Q"), array.array("Q")
            self._state, self._hash = self._stat(), xxhash.xxh3_128()
            offset = 0
            for number, line in enumerate(self._file, 1):
                self._hash.update(line)
                if line.removeprefix(b"\xef\xbb\xbf").strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
            self._end = offset
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read: {error.strerror or error}. Check the file and its permissions."
            ) from error

    def _unzipped(self):
        try:
            plain = tempfile.TemporaryFile()
            with gzip.open(self.path, "rb") as packed:
                shutil.copyfileobj(packed, plain)
            plain.flush()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.path} is a damaged gzip file: {error}. Write it again.") from error
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be unpacked into the temporary folder: {error.strerror}. "
                "Free room there, or set TMPDIR to another folder."
            ) from error
        return plain

    def __len__(self):
        return len(self._offsets)

    def where(self, i):
        return f"{self.path}, line {self._lines[i]}"

    def digest(self, keys):
        """A hash of the whole content, as it was when the file was opened."""
        return self._hash.hexdigest()

    def unchanged(self):
        """Whether nothing was written to the file since it was opened."""
        return self._stat() == self._state

    def _stat(self):
        # The time of the last change of any kind, which nobody sets back as they can the time of the last write.
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            return self._row(i)
        except DataError as error:
            if self.unchanged():
                raise
            problem = "the file was written to since it was opened, and this row is not what it was"
            raise DataError(
                f"{self.where(i)}: {problem}. Start again, and leave the file as it is meanwhile."
            ) from error

    def _row(self, i):
        # pread leaves no file position behind, so forked workers can share the file.
        end = self._offsets[i + 1] if i + 1 < len(self) else self._end
        # Blank lines that follow belong to no row.
        raw = os.pread(self._file.fileno(), end - self._offsets[i], self._offsets[i]).rstrip()
        try:
            row = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.where(i)}: byte {error.start + 1} of the line is not UTF-8. Save the file as UTF-8."
            ) from error
        except json.JSONDecodeError as error:
            hint = (
                " This looks like one JSON array; write one object a line instead." if raw.lstrip()[:1] == b"[" else ""
            )
            raise DataError(
                f"{self.where(i)}: not JSON ({error.msg}, column {error.colno}). "
                f"Each line must be one JSON object.{hint}"
            ) from error
        except _Twice as error:
            raise DataError(
                f"{self.where(i)}: the key {short_repr(error.args[0])} is there twice. Keep one of them."
            ) from error
        except ValueError as error:  # a number of thousands of digits
            raise DataError(
                f"{self.where(i)}: a number of more than 4,300 digits. Write such a number as text."
            ) from error
        except RecursionError as error:
            raise DataError(f"{self.where(i)}: nested too deeply. Each line must be one flat JSON object.") from error
        if not isinstance(row, dict):
            array = " This looks like one JSON array; write one object a line instead." if isinstance(row, list) else ""
            raise DataError(
                f"{self.where(i)}: a JSON {_kind(row)}, not an object. "
                f'Each line must be an object such as {{"prompt": …, "answers": …}}.{array}'
            )
        return row


class _Twice(Exception):
    """A JSON object with the same key twice, of which Python would keep the last without a word."""


def _once(pairs):
    row, seen = dict(pairs), set()
    if len(row) < len(pairs):
        raise _Twice(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return row


class TableRows(Sequence):
    """The rows of a `datasets.Dataset` (a Parquet file or a data set's name)."""

    def __init__(self, dataset, name):
        self._dataset, self._name = dataset, name

    def __len__(self):
        return len(self._dataset)

    def where(self, i):
        return f"{self._name}, row {i}"

    def digest(self, keys):
        """A hash of the columns that are used, whatever file or hub they came from."""
        import pyarrow as pa

        hasher = xxhash.xxh3_128()
        sink = pa.PythonFile(_Writer(hasher), "w")
        dataset = self._dataset.select_columns([key for key in keys if key in self._dataset.column_names])
        for begin in range(0, len(dataset), 1000):
            table = dataset.with_format("arrow")[begin : begin + 1000]
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
        return hasher.hexdigest()

    def unchanged(self):
        return True  # a copy in the cache of `datasets`, which is never written again

    def __getitem__(self, i):
        return self._dataset[int(i)]


class _Writer:
    """A file that hashes what is written to it."""

    closed = False

    def __init__(self, hasher):
        self._hasher, self._written = hasher, 0

    def write(self, data):
        self._hasher.update(data)
        self._written += len(data)
        return len(data)

    def tell(self):
        return self._written

    def flush(self):
        pass

    def close(self):
        pass


def open_rows(path, name=None):
    """Open a data file, or a data set on the hub where no such file exists.

    Args:
        path: the file as found on disk, or None.
        name: what the configuration says: `org/name`, or `org/name:split` (`train` by default).

    Raises:
        DataError: the file cannot be read, has another format, or the data set cannot be loaded.
    """
    if path is None:
        return _open_named(name)
    path = Path(path)
    if path.name.endswith(".parquet"):
        from datasets import Dataset
        from pyarrow.parquet import read_metadata

        try:
            # `datasets` fails on a table without rows.
            return TableRows(
                Dataset.from_parquet(str(path)) if read_metadata(path).num_rows else Dataset.from_dict({}), path
            )
        except Exception as error:  # pyarrow raises many kinds for a file that is not Parquet
            raise DataError(f"{path} is not a readable Parquet file: {first_line(error)}. Write it again.") from error
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path} has no known format. Use one of {', '.join(SUFFIXES)}.")
    return JsonlRows(path)


def _open_named(name):
    from datasets import load_dataset

    from ragfit.config.paths import check_reachable

    folder, _, split = str(name).partition(":")
    check_reachable(folder, "data_file", "dataset")
    try:
        return TableRows(load_dataset(folder, split=split or "train"), name)
    except Exception as error:  # the hub's, the network's and the builder's errors have no common class
        raise DataError(
            f"There is no file {name}, and no data set of that name could be loaded: {first_line(error)}. "
            "Check data_file, or the network if it names a data set."
        ) from error


def choose(count, shuffle=None, limit=None):
    """The positions of the rows to use, in the order to use them.

    Args:
        count: the number of rows there are.
        shuffle: a seed, or None to keep the file's order. The order is that of `datasets.Dataset.shuffle`.
        limit: the number of rows to keep, taken after shuffling, or None for all.
    """
    import numpy as np

    order = np.arange(count) if shuffle is None else np.random.default_rng(shuffle).permutation(count)
    return order[:limit].tolist()


def split(positions, share, seed=None):
    """Take a development set out of the chosen rows.

    Both parts keep the order of `positions`. The drawn rows depend on the seed alone, so that the same
    configuration always gives the same split.

    Args:
        share: a share between 0 and 1, or a number of rows.

    Returns:
        (train, dev): two lists of positions.
    """
    import numpy as np

    count = round(share * len(positions)) if share < 1 else int(share)
    count = max(count, 1)
    if count >= len(positions):
        raise DataError(
            f"dev_split={share} takes {count} of {len(positions)} rows and leaves none to train on. "
            "Lower dev_split, raise limit, or name a separate file."
        )
    drawn = set(np.random.default_rng(42 if seed is None else seed).permutation(len(positions))[:count].tolist())
    train = [p for i, p in enumerate(positions) if i not in drawn]
    return train, [p for i, p in enumerate(positions) if i in drawn]


def text_of(row, key, where, config_key):
    """The text under `key`: a string, or the first element of a list (of lists); empty or null gives "".

    Raises:
        DataError: the key is missing, or holds something else.
    """
    if key not in row:
        keys = ", ".join(map(short_repr, list(row)[:20])) + (f", … ({len(row):,} keys)" if len(row) > 20 else "")
        raise DataError(
            f"{where}: there is no key {key!r}; the row has {keys or 'no keys'}. Set {config_key} to one of them."
        )
    value = row[key]
    while isinstance(value, (list, tuple)):
        value = value[0] if len(value) else ""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {key!r} holds {'an' if isinstance(value, dict) else 'a'} {_kind(value)}, not text. "
            f"Set {config_key} to a key with text, or a list whose first element is text."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {key!r} holds half a character (a lone surrogate) at {error.start}. Mend or remove the row."
        ) from error
    return value


def read_text(path, config_key):
    """A small text file (an instruction, a template), as it is but for a byte order mark.

    Raises:
        DataError: unreadable, not UTF-8, or empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} ({config_key}) is not UTF-8 at byte {error.start}. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} ({config_key}) cannot be read: {error.strerror}. Check the path.") from error
    if not text.strip():
        raise DataError(f"{path} ({config_key}) is empty. Write the text there, or leave {config_key} empty.")
    return text


def _kind(value):
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
