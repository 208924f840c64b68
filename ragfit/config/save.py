"""The configuration as it is saved, sent and compared: unresolved, and without secrets."""

import copy

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ragfit.config.overrides import literal
from ragfit.config.schema import KeyProblem, annotation_of, coerce, kinds
from ragfit.files import write_whole
from ragfit.secrets import masked

FROM_ENVIRONMENT = " -> what the environment holds"


def _nodes(cfg, prefix=""):
    """`(dotted key, node, name)` of all that is in a configuration, `node[name]` its value: a name may have dots itself."""
    for name in range(len(cfg)) if OmegaConf.is_list(cfg) else list(cfg):
        yield f"{prefix}{name}", cfg, name
        if (
            not OmegaConf.is_interpolation(cfg, name)
            and not OmegaConf.is_missing(cfg, name)
            and OmegaConf.is_config(cfg[name])
        ):
            yield from _nodes(cfg[name], f"{prefix}{name}.")


def _value(node, name):
    value = node[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def environment_texts(cfg) -> dict[str, str]:
    """`{key: text}` of a composed configuration's values that come from the environment, directly or through other keys."""
    found, asked = {}, []

    def env(*names):
        asked.append(names)
        return oc.env(*names)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        for key, node, name in _nodes(cfg):
            asked.clear()
            if OmegaConf.is_interpolation(node, name):
                _value(node, name)
            if asked:
                found[key] = OmegaConf.to_container(node, resolve=False)[name]
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    return found


def unresolved(cfg) -> dict:
    """A finished configuration as plain values, with what came from the environment as it was written: `${oc.env:…}`."""
    written = copy.deepcopy(cfg)
    places = {key: (node, name) for key, node, name in _nodes(written) if not key.startswith("translated.")}
    for key, note in (cfg.get("translated") or {}).items():
        if not str(note).endswith(FROM_ENVIRONMENT):
            continue
        del written.translated[key]
        node, name = places.get(key, (None, None))
        if node is None or (value := _value(node, name)) is None:
            continue
        node[name] = note.removesuffix(FROM_ENVIRONMENT)
        try:
            same = coerce(_value(node, name), kinds(annotation_of(key) or "Any"), key) == value
        except OmegaConfBaseException:  # the environment does not hold it any more
            same = True
        except KeyProblem:
            same = False
        if not same:  # it has been set or translated since
            node[name] = literal(value)
    return OmegaConf.to_container(written, resolve=False)


def without_secrets(cfg) -> dict:
    """The configuration that may leave the process, for tracker, checkpoint and hub.

    It is `unresolved`, keys that hold a secret (`train.hub_token`) are left out, and texts in the form of a token masked.
    """
    return masked(unresolved(cfg))


def to_yaml(cfg) -> str:
    """`without_secrets` as YAML, with what was translated as comments at the top; `load_config` reads it back."""
    tree = without_secrets(cfg)
    notes = (f"# {key}: {' '.join(str(note).split())}\n" for key, note in (tree.get("translated") or {}).items())
    return "".join(notes) + OmegaConf.to_yaml(OmegaConf.create(tree))


def save_config(cfg, path):
    """Write `to_yaml(cfg)`, which holds no secret, to `path` in UTF-8: the whole file or none."""
    write_whole(path, to_yaml(cfg))


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
