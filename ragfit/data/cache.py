"""Prepared rows kept on disk, so that the same rows under the same settings are prepared once.

An entry is a folder `prepared/KEY` of the kit's cache folder: rows as Arrow files, and the report as JSON. It appears
whole, by a rename. Nothing is removed: the folder may be deleted at any time. `RAGFIT_CACHE_GB=0` keeps nothing.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from datasets import Dataset
from filelock import FileLock
from omegaconf import DictConfig
from pydantic import TypeAdapter

from ragfit.config.load import resolved
from ragfit.config.paths import cache_folder
from ragfit.data.prompt import Renderer
from ragfit.data.report import Report
from ragfit.data.rows import Source
from ragfit.files import part_of

# What decides how rows are prepared: this room. Read once: a file that is edited later is not the code that runs.
_SOURCES = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
_LIBRARIES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
Found = tuple[Dataset, Dataset | None, Report]  # train, dev (None where no row is left for it), report


def key_of(cfg: DictConfig, renderer: Renderer, sources: Mapping[str, Source]) -> str | None:
    """A hash of all that decides the prepared rows; None where none are kept, or where it cannot be known."""
    tokenizer, model, own_dev = renderer.tokenizer, resolved(cfg, "model"), isinstance(cfg.dev_split, str)
    # A tokenizer with code that came with a model may do anything with a text.
    if os.environ.get("RAGFIT_CACHE_GB") == "0" or not type(tokenizer).__module__.startswith("transformers."):
        return None
    backend = tokenizer.backend_tokenizer  # whose text begins with truncation and padding, which are not used here
    what = [
        *(*_SOURCES, platform.python_version(), *map(importlib.metadata.version, _LIBRARIES)),
        *(sorted(sources), *(source.digest() for source in sources.values()), None if own_dev else cfg.dev_split),
        *map(cfg.get, ("input_key", "output_key", "shuffle", "limit")),
        *map(model.get, ("max_sequence_len", "over_length")),
        *(renderer.instruction, renderer.template, renderer.in_prompt, renderer.chat_template_kwargs, renderer.marker),
        *(renderer.head, renderer.middle, renderer.tail, renderer.generation, renderer.bos, sorted(renderer.stops)),
        *(backend.to_str().partition('"added_tokens":')[2], backend.encode_special_tokens, tokenizer.chat_template),
        *(tokenizer.special_tokens_map, tokenizer.all_special_tokens, repr(tokenizer.added_tokens_decoder)),
    ]
    return hashlib.blake2b(json.dumps(what, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def get_or_prepare(key: str | None, make: Callable[[Path], Report]) -> Found:
    """The rows of a key of `key_of`; `make` writes them into a folder where they are new. None keeps nothing."""
    if key is None:
        with tempfile.TemporaryDirectory(prefix="ragfit-") as folder:
            return _rows_in(Path(folder, "rows"), make, in_memory=True)
    entry = cache_folder() / "prepared" / key
    entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # its rows are the user's data as token ids
    with FileLock(entry.with_suffix(".lock")):  # of several processes the first prepares while the others wait
        return _rows_in(entry, make)


def _rows_in(entry: Path, make: Callable[[Path], Report], in_memory: bool = False) -> Found:
    if not (cached := entry.is_dir()):
        with part_of(entry) as folder:
            (folder / "report.json").write_bytes(TypeAdapter(Report).dump_json(make(folder)))
            folder.replace(entry)
    report = TypeAdapter(Report).validate_json((entry / "report.json").read_bytes())
    files = [entry / f"{name}.arrow" if report.part(name).kept else None for name in ("train", "dev")]
    train, dev = (Dataset.from_file(str(file), in_memory=in_memory) if file else None for file in files)
    report.cached = cached
    return train, dev, report


def report_as_plain(report: Report) -> dict:
    return TypeAdapter(Report).dump_python(report, mode="json")
