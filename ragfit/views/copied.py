"""What the explorer gives to copy: changed settings as a notebook's parameters and as a command."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ragfit.config.notebook import Chosen, split_overrides
from ragfit.config.overrides import override
from ragfit.config.paths import PROJECT_ROOT
from ragfit.config.schema import PROMPT_KEYS
from ragfit.views.row import Settings

Files = Mapping[tuple[str, str], str]  # the file of each edited text, by its name and the text


def changed_keys(base: Settings, now: Settings, files: Files) -> tuple[dict[str, object], list[str]]:
    """The keys that differ with their values, a text being named by its file, and the texts that are in no file yet."""
    before, changes, missing = asdict(base), {}, []
    for name, value in asdict(now).items():
        if value == before[name]:
            continue
        if name in PROMPT_KEYS:
            changes[f"model.{name}"] = value
        elif not value.strip():
            changes |= {name: None} if before[name].strip() else {}
        elif (name, value) in files:
            changes[name] = files[name, value]
        else:
            missing.append(name)
    return changes, missing


def write_text(name: str, text: str) -> Path:
    """Write an edited text into a file of the working directory, never over another text."""
    path, count = Path.cwd() / f"edited-{name}.txt", 1
    while path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        count += 1
        path = path.with_name(f"edited-{name}-{count}.txt")
    path.write_text(text, encoding="utf-8", newline="")
    return path


def for_cell(changes: Mapping[str, object], chosen: Chosen | None = None) -> str:
    """Lines for the parameters cell of train.ipynb."""
    given = _overrides(changes, chosen)
    lines = [f"config = {chosen.config!r}"] if chosen else []
    return "\n".join([*lines, *([f"overrides = {given!r}"] if given else [])])


def for_shell(changes: Mapping[str, object], chosen: Chosen | None = None) -> str:
    """The same as a papermill command, for the notebook's working directory."""
    # The overrides may name files relative to this folder, so the command is one for this folder.
    notebook, here = PROJECT_ROOT / "notebooks" / "train.ipynb", Path.cwd()
    shown = str(notebook.relative_to(here)) if notebook.is_relative_to(here) else "notebooks/train.ipynb"
    words = ["papermill", shown, "out.ipynb"]
    words += ["-p", "config", chosen.config] if chosen else []
    marker = changes.get("model.completion_start")
    if marker and "\\" not in marker:  # backslash and n reads better in a command, and means the same
        changes = {**changes, "model.completion_start": marker.replace("\n", "\\n").replace("\t", "\\t")}
    given = _overrides(changes, chosen)
    words += ["-p", "overrides", given if isinstance(given, str) else repr(given)] if given else []
    return " ".join(map(_quoted, words))


def _overrides(changes: Mapping[str, object], chosen: Chosen | None) -> str | list[str]:
    """The Hydra overrides of the notebook's own parameters and of what was changed: one text where that is clear."""
    before = chosen.overrides if chosen else ()
    before = [text for text in before if re.match(r"[~+]*([\w.]*)", text)[1] not in changes]
    overrides = [*before, *(override(key, value) for key, value in changes.items())]
    joined = " ".join(overrides)
    return joined if split_overrides(joined) == overrides else overrides


def _quoted(word: str) -> str:
    """A word for a shell, in double quotes where they are enough: Hydra's own are single."""
    if re.fullmatch(r"[\w./-]+", word):
        return word
    return shlex.quote(word) if re.search(r'[$`"!]|\\[\\\n]|\\$', word) else f'"{word}"'


def typed(text: str) -> str:
    r"""What a text field means: `\n`, `\t`, `\r`, `\\`, `\xa0` and `\u00a0` are the characters they name.

    >>> typed(r"assistant\n") == "assistant\n"
    True
    """
    escapes = r"\\(?:[ntr\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})"
    return re.sub(escapes, lambda match: match[0].encode().decode("unicode_escape"), text)


def spell(text: str) -> str:
    """The inverse of `typed`: a text as it stands in a field of one line, every character seen."""
    text = text.replace("\\", r"\\")
    odd = (char for char in set(text) if not char.isprintable() and ord(char) <= 0xFFFF)
    return text.translate({ord(char): char.encode("unicode_escape").decode() for char in odd})
