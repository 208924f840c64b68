"""The configuration: a YAML file and overrides become one resolved `DictConfig`.

Three parts: `model` (how the model is loaded), `train` (TRL's `SFTConfig`), and data keys at the top level. A key that
is none of these is an error, names of earlier library versions are translated, and a value has the type its field
declares. Importing this module imports no torch: the libraries' fields are read off their sources.
"""

import copy
import difflib
import json
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

from ragfit.errors import ConfigError, first_line
from ragfit.keys import (
    BOUNDS,
    DATA_KEYS,
    HF_TRAIN,
    PROMPT_KEYS,
    REMOVED,
    RENAMED,
    STRICT,
    Wrong,
    annotation_of,
    at,
    check_bounds,
    coerce,
    get,
    is_hf_train,
    kinds,
    known_keys,
    unknown_key,
)
from ragfit.overrides import literal, normalize_overrides
from ragfit.secrets import FROM_ENVIRONMENT, MASK, environment_keys, from_environment, is_secret_name, without_secrets

PROJECT_ROOT = Path(__file__).resolve().parent.parent
OUTPUT_DIR = "./trained_models"  # where train.output_dir is empty


# --- Paths ------------------------------------------------------------------------------------------------------------


def find_existing(value) -> Path | None:
    """`value` as a path, looked up from the working directory, then the project's root; None where neither has it."""
    if not value:
        return None
    path = Path(value).expanduser()
    return next((place for place in (path, PROJECT_ROOT / path) if place.exists()), None)


def find_path(value, what) -> Path:
    """As `find_existing`, with a `ConfigError` naming the key `what` and both places where there is no such path."""
    found = find_existing(value)
    if found is None:
        path = Path(value or "").expanduser()
        places = " or ".join(dict.fromkeys(str(place / path) for place in (Path.cwd(), PROJECT_ROOT)))
        raise ConfigError(f"{what}: there is no {str(value)!r} at {places}. Set {what} to a path that exists.")
    return found


def find_model(name, key="model.model_name_or_path") -> Path | None:
    """The folder of a model or an adapter, or None for a name on the hub.

    Raises:
        ConfigError: a file, or what can only be a path and does not exist.
    """
    found = find_existing(name)
    if found is not None and not found.is_dir():
        raise ConfigError(f"{key}: {name} is a file. Give the folder with the model's files, or a name on the hub.")
    text = str(name)
    if found is None and (text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1 or "\\" in text):
        find_path(name, key)  # raises, naming the places looked at
    return found


def find_config(config) -> Path:
    """The YAML file of a configuration's name (`paper/training-asqa`) or path."""
    text = os.fspath(config)
    stem = re.sub(r"\.ya?ml$", "", text)
    if stem != text and (path := find_existing(text)):
        return path
    folders = list(dict.fromkeys((Path.cwd() / "configs", PROJECT_ROOT / "configs")))
    for folder in folders:
        if stem and (folder / f"{stem}.yaml").is_file():
            return folder / f"{stem}.yaml"
    names = sorted({p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml")})
    near = difflib.get_close_matches(stem, names, 1, 0.5) or [n for n in names if n.endswith(f"/{stem}")]
    raise ConfigError(
        f"config: there is no configuration {text!r} in {' or '.join(map(str, folders))}. "
        + (f"Did you mean {near[0]}? " if near else "")
        + f"Give a path ending in .yaml or one of: {', '.join(names) or '(none found)'}."
    )


# --- Loading ----------------------------------------------------------------------------------------------------------


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
    _lines(path)
    return _compose(path, [])


def _lines(path) -> dict[str, int]:
    """The line of each dotted key of a YAML file; syntax errors, duplicate keys and empty files are errors."""
    lines = {}

    def walk(node, prefix):
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if lines.setdefault(name, line) != line and key.value != "<<":
                problem = f"{name} is there twice (line {lines[name]})"
                raise ConfigError(f"{path}, line {line}: {problem}. Remove one of them.")
            if isinstance(value, yaml.MappingNode) and value.start_mark.index > key.start_mark.index:  # no alias
                walk(value, f"{name}.")

    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise ConfigError(f"{path}, line {line}: this is no YAML: {error.problem}. Correct that line.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Save it as UTF-8 text.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the path of a YAML file.") from error
    if root is None:
        raise ConfigError(f"{path} is empty. Write the keys model and train there; configs/training.yaml has them all.")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} is no mapping of keys to values. Begin it like configs/training.yaml.")
    walk(root, "")
    return lines


def _compose(path, overrides):
    with tempfile.TemporaryDirectory() as folder:
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
            given = f" with {' '.join(overrides)}" if overrides else ""
            raise ConfigError(f"{path}{given}: {reason.rstrip('.')}. Correct the file or the override.") from error
        finally:
            GlobalHydra.instance().hydra = running


# --- From a composed to a resolved configuration ----------------------------------------------------------------------


def finish(cfg, source=None):
    """Translate names of earlier versions, give values their types, refuse unknown keys, fill in missing data keys.

    Args:
        cfg: a composed configuration, of `load_config` or of `@hydra.main`; it may already be finished.
        source: the YAML file it came from, for the messages.
    """
    try:
        tree = OmegaConf.to_container(cfg, resolve=True)
        tree = tree if isinstance(tree, dict) else {}
        notes = tree.pop("translated", None) or {}
        tree |= {"model": tree.get("model", {}), "train": tree.get("train") or {}}
        read = environment_keys(dict(_leaves(OmegaConf.to_container(cfg, resolve=False)))) if OmegaConf.is_config(cfg) else {}
        for part, value in (("model", tree["model"]), ("train", tree["train"]), ("translated", notes)):
            if not isinstance(value, dict):
                found = "empty" if value is None else repr(value)
                raise Wrong(part, f"{part} is {found}, not keys and values", f"Write keys under {part}:, indented.")
        hf_train = _translate(tree, notes)
        _check_keys(tree, hf_train)
        missing = next((key for key, value in _leaves(tree) if value == "???"), None)
        if missing:
            raise Wrong(missing, f"{missing} is ???, a value still to be given", f"Set {missing}.")
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
    except Wrong as wrong:
        raise ConfigError(f"{wrong.problem}{_where(source, wrong)}. {wrong.advice}") from None
    data = {key: tree.get(key) for key in DATA_KEYS}
    return OmegaConf.create(literal({"model": tree["model"], "train": tree["train"], **data, "translated": notes}))


def _where(source, wrong):
    if source is None:
        return ""
    lines, names = _lines(Path(source)), [wrong.key, *(old for old, new in RENAMED.items() if new == wrong.key)]
    if wrong.value is not None:
        cfg = read_config(source)
        if all(OmegaConf.select(cfg, name) != wrong.value for name in names):
            return f" (an override of {source})"
    line = next((lines[name] for name in (*names, wrong.key.rpartition(".")[0]) if name in lines), None)
    return f" ({source}, line {line})" if line else f" ({source})"


def _translate(tree, notes) -> bool:
    """Move renamed keys in place, noting what became of them; whether the model is this kit's `HFTrain`."""

    def note(key, old, new):
        old = MASK if is_secret_name(key.rpartition(".")[2]) else old
        plain = isinstance(old, str) and old.isprintable()
        notes[key] = f"{old if plain else json.dumps(old, default=str)} -> {new}"

    target = tree["model"].get("_target_") or HF_TRAIN
    if str(target).startswith("ragfoundry."):
        note("model._target_", target, target := target.replace("ragfoundry", "ragfit", 1))
    tree["model"] = {"_target_": target} | tree["model"] | {"_target_": target}
    for key in ("instruction", "template"):
        value = tree.get(key)
        if isinstance(value, str) and re.match(r"(\./)?ragfoundry/", value) and not find_existing(value):
            note(key, value, value.replace("ragfoundry/", "ragfit/", 1))
            tree[key] = value.replace("ragfoundry/", "ragfit/", 1)
    for old in (*RENAMED, *sorted(REMOVED)):
        mapping, name = at(tree, old)
        if (old.startswith("model.") and not is_hf_train(target)) or (value := mapping.pop(name, None)) is None:
            continue
        if old in REMOVED:
            note(old, value, "dropped, there is no such setting any more")
            continue
        moved, (place, new_name) = value, at(tree, new := RENAMED[old])
        if old == "train.group_by_length":
            if not coerce(value, kinds("bool"), old):
                note(old, value, "dropped, it is the default")
                continue
            moved = "group_by_length"
        if place.get(new_name) in (None, 0, moved):
            place[new_name] = moved
            note(old, value, new if moved == value else f"{new}: {moved}")
        elif new == "model.max_sequence_len":
            note(old, value, f"dropped, {new} is {place[new_name]}")
        else:
            problem = f"{old} is {value!r} and {new}, its present name, is {place[new_name]!r}"
            raise Wrong(old, problem, f"Leave {old} empty.")
    train, report = tree["train"], tree["train"].get("report_to", "none")
    wandb = coerce(tree.get("use_wandb"), kinds(DATA_KEYS["use_wandb"]), "use_wandb")
    if report in (None, "", "none", [], ["none"]):
        train["report_to"] = "wandb" if wandb else "none"
        if report != train["report_to"]:
            note("train.report_to", report, train["report_to"])
    return is_hf_train(target)


def _check_keys(tree, hf_train):
    def walk(mapping, prefix):
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if annotation_of(name, not hf_train) is None:
                raise Wrong(name, f"{name} is an unknown key", unknown_key(name))
            if name in STRICT and isinstance(value, dict):
                walk(value, f"{name}.")

    walk(tree, "")


def _coerce_key(tree, key):
    mapping, name = at(tree, key)
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
    tree["train"]["output_dir"] = os.path.expanduser(tree["train"].get("output_dir") or OUTPUT_DIR)
    if tree.get("shuffle") is True or tree.get("shuffle") is False:
        tree["shuffle"] = 42 if tree["shuffle"] else None
    model, share = tree["model"], tree.get("dev_split")
    for key in BOUNDS:
        if not hf_train and key.startswith("model.lora."):
            continue
        check_bounds(key, get(tree, key), kinds(known_keys()[key]))
    if tree["train"].get("num_train_epochs") == 0 and (tree["train"].get("max_steps") or 0) <= 0:
        problem = "train.num_train_epochs is 0, so nothing would be trained"
        raise Wrong("train.num_train_epochs", problem, "Set a number above 0, or train.max_steps.", 0)
    if tree["train"].get("resume_from_checkpoint"):  # which transformers only hands on to scripts
        wrong = tree["train"]["resume_from_checkpoint"]
        raise Wrong("train.resume_from_checkpoint", "train.resume_from_checkpoint is set, which nothing reads", "Set resume_checkpoint.", wrong)
    if tree["train"].get("push_to_hub"):
        problem = "train.push_to_hub is set, but checkpoints are not pushed while training"
        raise Wrong("train.push_to_hub", problem, "Remove it, and set hfhub_tag to push the adapter at the end.", True)
    if isinstance(share, int | float) and not (0 < share < 1 or isinstance(share, int) and share >= 1):
        advice = "Set a share between 0 and 1, a number of rows, or the path of a data file."
        raise Wrong("dev_split", f"dev_split is {share}", advice, share)
    if hf_train and not model.get("model_name_or_path"):
        raise Wrong("model", "model.model_name_or_path is not set", "Set a model's name on the hub, or its folder.")
    if hf_train and model.get("load_in_4bit") and model.get("load_in_8bit"):
        problem = "model.load_in_4bit and model.load_in_8bit are both true"
        raise Wrong("model.load_in_4bit", problem, "Set one to false.")


# --- Showing and saving -----------------------------------------------------------------------------------------------


def differences(cfg, config) -> list[tuple]:
    """What a resolved configuration has other than its YAML file: `(key, value in the file, value)`.

    Keys that are empty on one side and absent on the other are no difference.
    """
    before = dict(_leaves(OmegaConf.to_container(read_config(config), resolve=False)))
    after = dict(_leaves(OmegaConf.to_container(cfg, resolve=True))) | from_environment(cfg)
    keys = [key for key in dict.fromkeys((*after, *before)) if not key.startswith("translated")]
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def to_yaml(cfg) -> str:
    """The configuration as YAML, with what was translated as comments at the top; `load_config` reads it back.

    What came from the environment is written as the `${oc.env:…}` that it was.
    """
    notes = [f"# {key}: {' '.join(str(note).split())}\n" for key, note in (cfg.get("translated") or {}).items()]
    shown = copy.deepcopy(cfg)
    for key, text in from_environment(cfg).items():
        if OmegaConf.select(shown, key) is not None:
            OmegaConf.update(shown, key, text, force_add=True)
        shown.translated.pop(key)  # reading the file says it again
    return "".join(notes) + OmegaConf.to_yaml(shown, resolve=False)


def save_config(cfg, path):
    """Write `to_yaml(cfg)` to `path` in UTF-8: the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(to_yaml(cfg), encoding="utf-8")
    temporary.replace(path)


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
