"""Prepared rows kept on disk, so that the same rows under the same settings are prepared once.

An entry is a folder `prepared/<key>` of the kit's cache folder with the rows as Arrow files, and the report as JSON.
Its key is a hash of everything that decides ids, labels or report: the content of the data files (not their names or
times, which an edit may leave as they were), the rows chosen, the texts of instruction and template, the settings,
the tokenizer, this kit's own code and the libraries' versions. An entry appears whole, by a rename. Several processes
that want the same rows at once take turns: the first prepares, the others read. Nothing is removed: the folder may be
deleted at any time.

Environment variables:
    RAGFIT_CACHE: the kit's cache folder (default: the user's cache folder of the platform).
    RAGFIT_CACHE_GB: 0 keeps no prepared rows.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.config.paths import cache_folder
from ragfit.data.prompt import Renderer
from ragfit.data.report import Report
from ragfit.data.rows import Source
from ragfit.draw.progress import say
from ragfit.errors import DataError, first_line
from ragfit.files import part_of

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig
    from pydantic import TypeAdapter
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# What decides how rows are prepared: this room. Read once: a file that is edited later is not the code that runs.
_SOURCES = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
_LIBRARIES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
Make = Callable[[Path], Report]  # writes the rows of the parts into a folder
Found = tuple["Dataset", "Dataset | None", Report]  # train, dev, report


# The key.


def key_of(cfg: "DictConfig", renderer: Renderer, parts: Sequence[tuple[Source, list[int]]]) -> str | None:
    """The key of prepared rows.

    Args:
        cfg: the configuration.
        renderer: with the tokenizer and the texts of instruction and template.
        parts: the source and the chosen rows of train and, where there is one, dev.

    Returns:
        A string that is safe as a file's name, or None where no rows are kept, or where something that decides them
        cannot be known.
    """
    if os.environ.get("RAGFIT_CACHE_GB") == "0" or (tokenizer := _tokenizer_digest(renderer.tokenizer)) is None:
        return None
    keys, model = [cfg.input_key, cfg.output_key], cfg.model
    what = {
        "code": _hash(b"\0".join(_SOURCES)),
        "versions": [platform.python_version(), *map(importlib.metadata.version, _LIBRARIES)],
        "rows": [[rows.digest(keys), _hash(json.dumps(numbers).encode())] for rows, numbers in parts],
        "keys": keys,
        "instruction": renderer.instruction,
        "template": renderer.template,
        "model": [renderer.in_prompt, renderer.marker, model.get("max_sequence_len"), model.get("over_length")],
        # What the template writes today, of its own and around the row's texts.
        "rendered": [renderer.head, renderer.middle, renderer.tail, renderer.generation, list(renderer.bos)],
        "stops": sorted(renderer.stops),
        "date": str(datetime.date.today()) if renderer.dated else None,
        "tokenizer": tokenizer,
    }
    return _hash(json.dumps(what, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A hash of all of a tokenizer that rendering, encoding and decoding use, or None where it cannot be known."""
    from transformers import PreTrainedTokenizerFast

    # A tokenizer in Python, or with code that came with a model, may do anything with a text.
    own_code = not type(tokenizer).__module__.startswith("transformers.")
    if own_code or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    backend = tokenizer.backend_tokenizer
    what = [
        type(tokenizer).__qualname__,
        tokenizer.chat_template,
        sorted(tokenizer.special_tokens_map.items()),
        tokenizer.all_special_tokens,
        sorted((number, repr(token)) for number, token in tokenizer.added_tokens_decoder.items()),
        backend.encode_special_tokens,
        # Before the added tokens stand truncation and padding, which are never used here.
        backend.to_str().partition('"added_tokens":')[2],
    ]
    return _hash(repr(what).encode("utf-8", "surrogatepass"))


# The entries.


def get_or_prepare(key: str | None, make: Make, sources: Sequence[Source]) -> Found:
    """The rows of a key, prepared where they are not in the cache.

    Args:
        key: of `key_of`, or None to prepare them anew and keep nothing.
        make: `make(folder)` writes `train.arrow` and, where there is a dev set, `dev.arrow`, and returns the report.
        sources: what was made of a file that changed meanwhile is not kept.

    Returns:
        (train, dev, report); dev is None where no row is left for it.
    """
    if key is not None:
        try:
            if prepared := _read_or_prepare(_root() / key, make, sources):
                return prepared
        except OSError as error:
            advice = "Free room there, or set RAGFIT_CACHE to a folder of yours."
            log.warning("Prepared rows cannot be kept in %s: %s. %s", cache_folder(), error, advice)
    return _prepare_for_now(make)


def _root() -> Path:
    """The folder of all entries, which only its owner may look into: they hold the user's data as token ids."""
    root = cache_folder() / "prepared"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.name != "nt" and root.stat().st_uid != os.geteuid():
        raise PermissionError(f"{root} belongs to another user")
    root.chmod(0o700)
    return root


def _read_or_prepare(entry: Path, make: Make, sources: Sequence[Source]) -> Found | None:
    """What an entry holds, made where it is not there; None where a data file changed meanwhile."""
    from filelock import FileLock, Timeout

    lock = FileLock(entry.with_suffix(".lock"))
    try:
        held = lock.acquire(timeout=1)
    except Timeout:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say("Another process is preparing these rows; waiting for it.")
        held = lock.acquire()
    with held:
        try:
            if entry.is_dir():
                train, dev, report = _open(entry)
                report.cached = True
                return train, dev, report
        except (OSError, ValueError) as error:
            said = "The prepared rows in %s are damaged (%s); they are prepared again."
            log.warning(said, entry, first_line(error))
        return _prepare_entry(entry, make, sources)


def _prepare_entry(entry: Path, make: Make, sources: Sequence[Source]) -> Found | None:
    for left in entry.parent.glob(f"{entry.name}.part-*"):  # by a process that was killed: the living hold the lock
        shutil.rmtree(left, ignore_errors=True)
    with part_of(entry) as folder:
        _make(make, folder)
        if not all(source.unchanged() for source in sources):
            log.warning("The data file was written to while its rows were prepared; they are not kept for later runs.")
            return None
        shutil.rmtree(entry, ignore_errors=True)  # damaged, or it would have been read
        folder.replace(entry)
    return _open(entry)


def _prepare_for_now(make: Make) -> Found:
    """Rows in a temporary folder that goes with the training set."""
    temporary = tempfile.TemporaryDirectory(prefix="ragfit-")
    try:
        _make(make, Path(temporary.name))
    except OSError as error:
        fix = "Free room there, or set TMPDIR to another folder."
        raise DataError(temporary.name, f"prepared rows cannot be written there: {error}", fix) from error
    train, dev, report = _open(Path(temporary.name))
    weakref.finalize(train, temporary.cleanup)
    return train, dev, report


# An entry's files.


def _make(make: Make, folder: Path) -> None:
    (folder / "report.json").write_bytes(_report_type().dump_json(make(folder)))


def _open(folder: Path) -> Found:
    """(train, dev, report) of a folder; train and dev as `datasets.Dataset`, or None where there are none."""
    from datasets import Dataset

    report = _report_type().validate_json((folder / "report.json").read_bytes())
    parts = []
    for name in ("train", "dev"):
        kept = len(report.part(name).kept)
        parts.append(Dataset.from_file(str(folder / f"{name}.arrow")) if kept else None)
        if kept and len(parts[-1]) != kept:
            raise ValueError(f"{name}.arrow has {len(parts[-1])} rows, not {kept}")
    return (*parts, report)


@functools.cache
def _report_type() -> "TypeAdapter[Report]":
    """A `Report` to and from JSON. Never a pickle: reading one runs what is in it."""
    from pydantic import TypeAdapter

    return TypeAdapter(Report)


def report_as_plain(report: Report) -> dict:
    """A `Report` as dicts and lists."""
    return _report_type().dump_python(report, mode="json")
