"""Prepared rows kept on disk, so that the same rows under the same settings are prepared once.

An entry is a folder `prepared/<key>` of the kit's cache folder with the rows as Arrow files, and the report as JSON.
Its key is a hash of everything that decides ids, labels or report: the content of the data files (not their names or
times, which an edit may leave as they were), the rows chosen, the texts of instruction and template, the settings,
the tokenizer, this kit's own code and the libraries' versions. An entry appears whole, by a rename, and is checked
when it is read. Several processes that want the same rows at once take turns: the first prepares, the others read.

Environment variables:
    RAGFIT_CACHE: the kit's cache folder (default: the user's cache folder of the platform).
    RAGFIT_CACHE_GB: the room that prepared rows may take there (default 20); the longest unused go first.
        0 keeps nothing.
"""

import atexit
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import xxhash

from ragfit.config.paths import cache_folder
from ragfit.data.findings import Finding
from ragfit.data.report import Cut, Part, Report
from ragfit.draw.progress import say
from ragfit.errors import ConfigError, DataError

log = logging.getLogger(__name__)

# What decides how rows are prepared: this room. Read when the modules are: a file edited later is not the code that runs.
_SOURCES = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
_LIBRARIES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
_WEEK = 7 * 24 * 3600


# The key.


def key_of(cfg, renderer, parts):
    """The key of prepared rows.

    Args:
        cfg: the configuration.
        renderer: the `Renderer`, with the tokenizer and the texts of instruction and template.
        parts: [(rows, numbers)], the source and the chosen rows of train and, where there is one, dev.

    Returns:
        A string that is safe as a file's name, or None where something that decides the rows cannot be known.
    """
    import numpy as np

    tokenizer = _tokenizer_digest(renderer.tokenizer)
    if tokenizer is None:
        return None
    keys = [cfg.input_key, cfg.output_key]
    digests = {id(rows): rows.digest(keys) for rows, _ in parts}
    what = {
        "code": hashlib.blake2b(b"\0".join(_SOURCES)).hexdigest(),
        "versions": [platform.python_version(), *map(_version, _LIBRARIES)],
        "rows": [
            [digests[id(rows)], hashlib.blake2b(np.array(numbers, "<i8").tobytes()).hexdigest()] for rows, numbers in parts
        ],
        "keys": keys,
        "instruction": renderer.instruction,
        "template": renderer.template,
        "model": [
            renderer.in_prompt, renderer.marker, cfg.model.get("max_sequence_len"), cfg.model.get("over_length") or "drop",
        ],
        # What the template writes today, of its own and around the row's texts.
        "rendered": [renderer.head, renderer.middle, renderer.tail, renderer.generation, list(renderer.bos)],
        "stops": sorted(renderer.stops),
        "date": str(datetime.date.today()) if renderer.dated else None,
        "tokenizer": tokenizer,
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def _version(name):
    return importlib.metadata.version(name)


def _tokenizer_digest(tokenizer):
    """A hash of all of a tokenizer that rendering, encoding and decoding use, or None where it cannot be known."""
    hasher = hashlib.blake2b()

    def add(value):
        hasher.update(repr(value).encode("utf-8", "surrogatepass") + b"\0")

    try:
        for cls in type(tokenizer).__mro__:
            add((cls.__module__, cls.__qualname__))
            if (
                cls is not object and cls.__module__.partition(".")[0] != "transformers"
            ):  # the user's or the model's own
                add(inspect.getsource(cls))
        add(tokenizer.chat_template)
        add(sorted(tokenizer.special_tokens_map.items()))
        add(tokenizer.all_special_tokens)
        add(sorted((number, repr(token)) for number, token in tokenizer.added_tokens_decoder.items()))
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                for path in sorted(Path(folder).rglob("*")):
                    if path.is_file():
                        add((path.name, path.read_bytes()))
        else:
            add(backend.encode_special_tokens)
            # Before the added tokens stand truncation and padding, which are never used here.
            add(backend.to_str().partition('"added_tokens":')[2])
    except Exception as error:  # a tokenizer of somebody's own may lack anything
        log.info("These rows are not cached, because their tokenizer cannot be told from another: %s", error)
        return None
    return hasher.hexdigest()


# The entries.


def get_or_prepare(make_key, make, rows=(), keep=True):
    """The rows of a key, prepared where they are not in the cache.

    Args:
        make_key: a function that gives their key, as `key_of` does, or None for rows that cannot be cached.
        make: `make(folder)` writes `train.arrow` and, where there is a dev set, `dev.arrow`, and returns a `Report`.
        rows: the sources; what was made of a file that changed meanwhile is not kept.
        keep: whether to keep the rows for later runs. Where a launcher has started several processes
            (`WORLD_SIZE`), they share them even so, until they end.

    Returns:
        (train, dev, Report): two `datasets.Dataset`; dev is None where no row is left for it.
    """
    limit = _limit()
    keep = keep and limit > 0
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    key = make_key() if keep or several else None
    root = _root() if key is not None else None
    if root is None:
        return _uncached(make)
    if not keep:
        key = _launch(key)
    found = _read(root / key)
    if found is None:
        try:
            found = _make(root, key, make, rows)
        except OSError as error:
            log.warning(
                "Prepared rows cannot be kept in %s: %s. Free room there, or set RAGFIT_CACHE to another folder.",
                root,
                error,
            )
            return _uncached(make)
        if found is None:
            return _uncached(make)
        if not keep and not found[2].cached:
            atexit.register(shutil.rmtree, root / key, ignore_errors=True)
        _prune(root, key, limit)
    return found


def _limit():
    given = os.environ.get("RAGFIT_CACHE_GB") or "20"
    try:
        return float(given) * 1e9
    except ValueError:
        raise ConfigError(
            f"RAGFIT_CACHE_GB is {given!r}, not a number. Set it to gigabytes, such as 20, or 0."
        ) from None


def _launch(key):
    """A key that only the processes of one launcher share."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    launch = [key, os.getppid(), *map(os.environ.get, names)]
    return f"once-{hashlib.blake2b(json.dumps(launch).encode(), digest_size=16).hexdigest()}"


def _uncached(make):
    """Rows in a temporary folder that goes with the training set."""
    import weakref

    folder = Path(tempfile.mkdtemp(prefix="ragfit-"))
    try:
        report = make(folder)
        train, dev = _open(folder, report)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise DataError(
                f"Prepared rows cannot be written to {folder}: {error}. Free room there, or set TMPDIR to another folder."
            ) from error
        raise
    weakref.finalize(train, shutil.rmtree, folder, ignore_errors=True)
    return train, dev, report


def _root():
    """The folder of all entries, which only its owner may look into: they hold the user's data as token ids."""
    root = cache_folder() / "prepared"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        stat = root.stat()
        if hasattr(os, "geteuid") and stat.st_uid != os.geteuid():
            raise PermissionError("it belongs to another user")
        if stat.st_mode & 0o077:
            root.chmod(0o700)
    except OSError as error:
        log.warning(
            "Prepared rows are not kept, because %s cannot be used: %s. Set RAGFIT_CACHE to a folder of yours.",
            root,
            error,
        )
        return None
    return root


def _make(root, key, make, rows):
    """Make an entry, or read what another process has made meanwhile; None where a data file changed."""
    from filelock import FileLock, Timeout

    # One of a fixed number of locks, so that they need no cleaning up.
    lock = FileLock(root / f"{key[-3:]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if int(os.environ.get("LOCAL_RANK") or 0) == 0:
            say("Another process is preparing these rows; waiting for it.")
        lock.acquire()
    try:
        found = _read(root / key)
        if found is not None:
            return found
        for dead in root.glob(f"tmp-{key}-*"):  # a killed process's: the living hold the lock
            shutil.rmtree(dead, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"tmp-{key}-", dir=root))
        try:
            report = make(folder)
            if not all(source.unchanged() for source in rows):
                log.warning(
                    "The data file was written to while its rows were prepared; they are not kept for later runs."
                )
                return None
            _write_report(folder, report)
            _remove(root / key)
            os.replace(folder, root / key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        train, dev = _open(root / key, report)
        return train, dev, report
    finally:
        lock.release()


def _open(folder, report):
    from datasets import Dataset

    sets = []
    for name in ("train", "dev"):
        kept = len(report.part(name).kept)
        sets.append(Dataset.from_file(str(folder / f"{name}.arrow")) if kept else None)
        if kept and len(sets[-1]) != kept:
            raise ValueError(f"{name}.arrow has {len(sets[-1])} rows, not {kept}")
    return sets


def _write_report(folder, report):
    files = {path.name: _file_digest(path) for path in folder.glob("*.arrow")}
    body = json.dumps({"files": files, "report": report_as_plain(report)}).encode()
    (folder / "report.json").write_bytes(xxhash.xxh3_128_hexdigest(body).encode() + b"\n" + body)


def _read(folder):
    """An entry as `fetch` returns it, or None where there is none, or a damaged one."""
    if not folder.is_dir():
        return None
    try:
        digest, _, body = (folder / "report.json").read_bytes().partition(b"\n")
        if digest != xxhash.xxh3_128_hexdigest(body).encode():
            raise ValueError("report.json is not as it was written")
        stored = json.loads(body)
        for name, expected in stored["files"].items():
            if _file_digest(folder / name) != expected:
                raise ValueError(f"{name} is not as it was written")
        report = _from_plain(stored["report"])
        train, dev = _open(folder, report)
        os.utime(folder)  # used today
    except Exception as error:  # whatever a damaged file makes its reader raise
        if folder.is_dir():  # else another process has just removed it
            log.warning("The prepared rows in %s are damaged (%s); they are prepared again.", folder, error)
        return None
    return train, dev, report


def _file_digest(path):
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def _remove(folder):
    """Remove an entry so that nobody sees half of it. Who has its files open keeps them."""
    if folder.is_dir():
        gone = tempfile.mkdtemp(prefix="tmp-gone-", dir=folder.parent)
        with contextlib.suppress(OSError):
            os.replace(folder, Path(gone, folder.name))
        shutil.rmtree(gone, ignore_errors=True)


def _prune(root, key, limit):
    """Remove what killed processes left, and the longest unused entries beyond the limit; never `key`."""
    entries = []
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # another process prunes too
            if not folder.is_dir():
                continue
            used = folder.stat().st_mtime
            if folder.name.startswith(("tmp-", "once-")):
                if used < time.time() - _WEEK:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            entries.append((used, sum(path.stat().st_size for path in folder.iterdir()), folder))
    if not limit:
        return  # nothing is kept by this run, which says nothing about what others keep
    for used, size, folder in sorted(entries, reverse=True):
        limit -= size
        if limit < 0 and folder.name != key:
            _remove(folder)


# The report as plain values, for JSON. Never a pickle: reading one runs what is in it.


def report_as_plain(report) -> dict:
    """A `Report` as dicts and lists, `cut` as [[number, start, stop, length]]."""
    stored = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    for name in ("train", "dev"):
        part = dataclasses.asdict(stored[name])
        stored[name] = part | {"cut": [[number, *dataclasses.astuple(cut)] for number, cut in stored[name].cut.items()]}
    stored["findings"] = [dataclasses.asdict(finding) for finding in report.findings]
    return stored


def _from_plain(stored):
    parts = {}
    for name in ("train", "dev"):
        part = Part(**stored[name])
        part.cut = {number: Cut(*cut) for number, *cut in part.cut}
        part.lengths = [tuple(pair) for pair in part.lengths]
        parts[name] = part
    findings = [
        Finding(**finding | {"rows": tuple((part, number) for part, number in finding["rows"])})
        for finding in stored["findings"]
    ]
    counters = {name: Counter(stored[name]) for name in ("first_labels", "last_labels", "boundary")}
    return Report(**stored | parts | counters | {"findings": findings, "cached": True})
