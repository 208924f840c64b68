"""The configuration: a YAML file and overrides become one resolved `DictConfig`.

Three parts: `model` (how the model is loaded), `train` (TRL's `SFTConfig`), and data keys at the top level. A key that
is none of these is an error, names of earlier library versions are translated, and a value has the type its field
declares. Importing this module imports no torch: the libraries' fields are read off their sources.
"""

import contextlib
import difflib
import math
import os
import re
import tempfile
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ragfit.config.legacy import translate_names
from ragfit.config.overrides import literal, normalize_overrides
from ragfit.config.paths import CONFIGS, find_existing, find_file, user_path
from ragfit.config.save import FROM_ENVIRONMENT, environment_texts, leaves, unresolved
from ragfit.config.schema import (
    BOUNDS,
    DATA_KEYS,
    PROMPT_KEYS,
    RENAMED,
    STRICT,
    KeyProblem,
    annotation_of,
    check_bounds,
    coerce,
    get,
    is_dotted,
    kinds,
    known_keys,
    nested,
    parent_and_name,
    short_repr,
    unknown_key,
)
from ragfit.errors import ConfigError, first_line

MOST_VALUES = 10_000  # in a YAML file, aliases counted as often as they repeat something
OUTPUT_DIR = "./trained_models"  # where train.output_dir is empty


def find_config(config) -> Path:
    """The YAML file of a configuration's name (`paper/training-asqa`) or path."""
    text = os.fspath(config)
    stem = re.sub(r"\.ya?ml$", "", text)
    if stem != text and find_existing(text, "config"):
        return find_file(text, "config")
    folders = list(dict.fromkeys((Path.cwd() / "configs", CONFIGS)))
    for folder in folders:
        if stem and user_path(folder / f"{stem}.yaml", "config").is_file():
            return folder / f"{stem}.yaml"
    names = sorted({p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml")})
    near = difflib.get_close_matches(stem, names, 1, 0.5) or [n for n in names if n.endswith(f"/{stem}")]
    raise ConfigError(
        f"config: there is no configuration {short_repr(text)} in {' or '.join(map(str, folders))}. "
        + (f"Did you mean {near[0]}? " if near else "")
        + f"Give a path ending in .yaml or one of: {', '.join(names) or '(none found)'}."
    )


def load_config(config="training", overrides=()):
    """The resolved configuration of a YAML file and overrides.

    Args:
        config: a name under `configs/` of the working directory or the project ("paper/training-asqa"), or a path.
        overrides: Hydra overrides, such as `["data_file=x.jsonl", "model.lora.r=8"]`; they win over the file.

    Returns:
        An `omegaconf.DictConfig` with `model`, `train`, every data key, and `translated`: which keys of earlier
        versions became what.

    Raises:
        ConfigError: no such file, YAML that cannot be read, an unknown key, or a value of the wrong type.
    """
    path = find_config(config)
    cfg = read_config(path)
    overrides = normalize_overrides([overrides] if isinstance(overrides, str) else overrides, cfg)
    return finish(_compose(path, overrides) if overrides else cfg, path)


def read_config(config):
    """The configuration as its YAML file says it, composed without overrides, neither translated nor checked."""
    path = find_config(config)
    _written(path)
    return OmegaConf.create(nested(OmegaConf.to_container(_compose(path, []))))


def _written(path) -> dict[str, tuple[int, yaml.Node]]:
    """Line and value of each dotted key of a YAML file; syntax errors, duplicate keys and empty files are errors."""
    found, dotted, sizes = {}, [], {}

    def size(node):
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # until it is known: of a node that holds itself
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            parts = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    def walk(node, prefix):
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in found and key.value != "<<":
                problem = f"{name} is there twice (line {found[name][0]})"
                raise ConfigError(f"{path}, line {line}: {problem}. Remove one of them.")
            found[name] = line, value
            dotted.extend([name] * is_dotted(prefix.rstrip("."), key.value))
            if isinstance(value, yaml.MappingNode) and key.value != "<<":
                walk(value, f"{name}.")

    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
        if root and size(root) > MOST_VALUES:
            problem = f"holds more than {MOST_VALUES:,} values, with its aliases (*name) written out"
            raise ConfigError(f"{path} {problem}. Write what is needed, without aliases.")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise ConfigError(f"{path}, line {line}: this is no YAML: {error.problem}. Correct that line.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Save it as UTF-8 text.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply. Begin it like configs/training.yaml.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the path of a YAML file.") from error
    if root is None:
        raise ConfigError(f"{path} is empty. Write the keys model and train there; configs/training.yaml has them all.")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} is no mapping of keys to values. Begin it like configs/training.yaml.")
    walk(root, "")
    for name in dotted:
        above = [
            part for part in found if name.startswith(f"{part}.") and not isinstance(found[part][1], yaml.MappingNode)
        ]
        if "defaults" in found or above:
            other = (
                f"{above[0]} (line {found[above[0]][0]}) holds no keys"
                if above
                else "a list of defaults may say otherwise"
            )
            raise ConfigError(
                f"{path}, line {found[name][0]}: {name} is set, but {other}. Write it as a key below {name.rpartition('.')[0]}:."
            )
    return found


@contextlib.contextmanager
def _temporary_folder():
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    except OSError as error:
        problem = f"The temporary folder cannot be written: {error.strerror}"
        raise ConfigError(f"{problem}. Free room there, or set TMPDIR to another folder.") from error


def _compose(path, overrides):
    with _temporary_folder() as folder:
        text = path.read_text(encoding="utf-8-sig")
        if re.search(r"^defaults\s*:", text, re.MULTILINE):
            folder, name = path.resolve().parent, path.name
        else:
            # Hydra takes `template=x` for the choice of a group where a folder `template/` lies beside the file.
            name = "config.yaml"
            Path(folder, name).write_text(text, encoding="utf-8")
        running = GlobalHydra.instance().hydra  # of @hydra.main
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(folder), version_base=None):
                return compose(name, list(overrides))
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            reason = str(error if str(error) else error.__cause__).replace(str(folder), str(path.parent))
            reason = " ".join(reason.split())
            raise ConfigError(f"{path}: {reason.rstrip('.')}. Correct the file or the override.") from error
        finally:
            GlobalHydra.instance().hydra = running


def finish(cfg, source=None):
    """Translate names of earlier versions, give values their types, refuse unknown keys, fill in missing data keys.

    Args:
        cfg: a composed configuration, of `load_config` or of `@hydra.main`; it may already be finished.
        source: the YAML file it came from, for the messages.
    """
    try:
        tree = OmegaConf.to_container(cfg, resolve=False)
        cfg = OmegaConf.create(nested(tree) if isinstance(tree, dict) else {})
        notes = cfg.pop("translated", None) or {}
        if OmegaConf.is_dict(notes):  # they are told, and nothing that they say is followed
            notes = {key: notes[key] for key in notes if not OmegaConf.is_interpolation(notes, key)}
        tree, read = OmegaConf.to_container(cfg, resolve=True), environment_texts(cfg)
        tree |= {"model": tree.get("model", {}), "train": tree.get("train") or {}}
        for part in {
            "model",
            "train",
        } & read.keys():  # what is saved could not tell its keys from those that were added
            raise KeyProblem(
                part,
                f"{part} is {read[part]}, all of it from the environment",
                f"Write keys under {part}:, and ${{oc.env:…}} as their values.",
            )
        for part, value in (("model", tree["model"]), ("train", tree["train"]), ("translated", notes)):
            if not isinstance(value, dict):
                found = "empty" if value is None else repr(value)
                raise KeyProblem(
                    part, f"{part} is {found}, not keys and values", f"Write keys under {part}:, indented."
                )
        if source:
            _as_written(tree, _written(Path(source)))
        hf_train = translate_names(tree, notes)
        _check_keys(tree, hf_train)
        missing = next((key for key, value in leaves(tree) if value == "???"), None)
        if missing:
            raise KeyProblem(missing, f"{missing} is ???, a value still to be given", f"Set {missing}.")
        prompt = {f"model.{key}" for key in PROMPT_KEYS}
        for key in known_keys():
            if hf_train or not key.startswith("model.") or key in prompt:
                _coerce_key(tree, key)
        _check_values(tree, hf_train)
        for key, text in read.items():
            if key in notes:  # the value it was moved with
                notes[key] = f"{text} -> {str(notes[key]).partition(' -> ')[2]}"
            notes[RENAMED.get(key, key)] = text + FROM_ENVIRONMENT
    except OmegaConfBaseException as error:
        reason = first_line(error)
        where = source or "The configuration"
        raise ConfigError(f"{where} cannot be resolved: {reason}. Correct the ${{…}}.") from error
    except KeyProblem as wrong:
        raise ConfigError(f"{wrong.problem}{_where(source, wrong)}. {wrong.advice}") from None
    data = {key: tree.get(key) for key in DATA_KEYS}
    return OmegaConf.create(literal({"model": tree["model"], "train": tree["train"], **data, "translated": notes}))


def _where(source, wrong):
    if source is None:
        return ""
    lines, names = _written(Path(source)), [wrong.key, *(old for old, new in RENAMED.items() if new == wrong.key)]
    if wrong.value is not None:
        cfg = read_config(source)
        if all(OmegaConf.select(cfg, name) != wrong.value for name in names):
            return f" (an override of {source})"
    line = next((lines[name][0] for name in (*names, wrong.key.rpartition(".")[0]) if name in lines), None)
    return f" ({source}, line {line})" if line else f" ({source})"


def _as_written(tree, written):
    """Give text its letters back, where YAML read a number: the revision `0123456` (octal, to YAML) or `12e4567`."""
    for key, (_, node) in written.items():
        mapping, name = parent_and_name(tree, key)
        number = isinstance(mapping.get(name), int | float) and not isinstance(mapping[name], bool)
        if number and kinds(annotation_of(key) or "Any") <= {"str", "null"} and "${" not in node.value:
            mapping[name] = node.value


def _check_keys(tree, hf_train):
    for key, value in leaves(tree):
        if key.endswith("._target_") and key != "model._target_":
            problem = f"{key} is {value!r}, but values are plain: no class or function is called to make them"
            raise KeyProblem(key, problem, f"Remove {key}, and write the keys of {key.rpartition('.')[0]} alone.")

    def walk(mapping, prefix):
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if annotation_of(name, not hf_train) is None:
                raise KeyProblem(name, f"{name} is an unknown key", unknown_key(name))
            if name in STRICT and isinstance(value, dict):
                walk(value, f"{name}.")

    walk(tree, "")


def _coerce_key(tree, key):
    mapping, name = parent_and_name(tree, key)
    if name not in mapping:
        return
    accepted = kinds(known_keys()[key])
    if mapping[name] is None and not accepted & {"null", "any"}:
        del mapping[name]  # `key:` left empty means that it is not set
    elif mapping[name] is False and name.endswith("_strategy"):
        mapping[name] = "no"  # YAML reads `no` as false
    else:
        mapping[name] = coerce(mapping[name], accepted, key)


def _check_values(tree, hf_train):
    if tree.get("shuffle") is True or tree.get("shuffle") is False:
        tree["shuffle"] = 42 if tree["shuffle"] else None
    model, share = tree["model"], tree.get("dev_split")
    for key in BOUNDS:
        if not hf_train and key.startswith("model.lora."):
            continue
        check_bounds(key, get(tree, key), kinds(known_keys()[key]))
    if tree["train"].get("num_train_epochs") == 0 and (tree["train"].get("max_steps") or 0) <= 0:
        problem = "train.num_train_epochs is 0, so nothing would be trained"
        raise KeyProblem("train.num_train_epochs", problem, "Set a number above 0, or train.max_steps.", 0)
    output_dir = tree["train"].get("output_dir") or OUTPUT_DIR
    home = user_path(output_dir, "train.output_dir")
    # Here and for all who ask later: transformers alone would see the home folder in it.
    tree["train"]["output_dir"] = str(home) if output_dir.startswith("~") else output_dir
    if tree.get("input_key") and tree["input_key"] == tree.get("output_key"):
        problem = f"output_key is {short_repr(tree['output_key'])}, as input_key is, so the model would learn to repeat its prompt"
        raise KeyProblem(
            "output_key", problem, "Set output_key to the key of a row with the text to learn.", tree["output_key"]
        )
    if tree["train"].get("resume_from_checkpoint"):  # which transformers only hands on to scripts
        wrong = tree["train"]["resume_from_checkpoint"]
        raise KeyProblem(
            "train.resume_from_checkpoint",
            "train.resume_from_checkpoint is set, which nothing reads",
            "Set resume_checkpoint.",
            wrong,
        )
    if tree["train"].get("push_to_hub"):
        problem = "train.push_to_hub is set, but checkpoints are not pushed while training"
        raise KeyProblem(
            "train.push_to_hub", problem, "Remove it, and set hfhub_tag to push the adapter at the end.", True
        )
    if isinstance(share, int | float) and not (0 < share < 1 or isinstance(share, int) and share >= 1):
        advice = "Set a share between 0 and 1, a number of rows, or the path of a data file."
        raise KeyProblem("dev_split", f"dev_split is {share}", advice, share)
    if hf_train and not model.get("model_name_or_path"):
        raise KeyProblem(
            "model", "model.model_name_or_path is not set", "Set a model's name on the hub, or its folder."
        )
    if hf_train and model.get("load_in_4bit") and model.get("load_in_8bit"):
        problem = "model.load_in_4bit and model.load_in_8bit are both true"
        raise KeyProblem("model.load_in_4bit", problem, "Set one to false.")


def differences(cfg, config) -> list[tuple]:
    """What a resolved configuration has other than its YAML file: `(key, value in the file, value)`.

    Keys that are empty on one side and absent on the other are no difference.
    """
    before = dict(leaves(OmegaConf.to_container(read_config(config), resolve=False)))
    after = dict(leaves(unresolved(cfg)))
    keys = [key for key in dict.fromkeys((*after, *before)) if not key.startswith("translated")]
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]
