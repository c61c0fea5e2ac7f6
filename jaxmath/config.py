"""A YAML file plus dotted overrides → frozen dataclasses, or a one-line `ConfigError`.

The dataclasses live beside the code they configure; this module only reads, merges, checks types
and builds. A mapping may name another file in two ways:

    model: models/qwen2.5-7b.yaml            # a whole section stands in a file of its own
    extends: prime.yaml                      # start from that file, then apply the keys beside it

Paths are relative to the file that names them. Overrides (`rl.num_responses=8`) come last, and
their values are YAML, so `optimizer.clip_norm=null` and `stages=[a, b]` do what they say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
Tree = dict[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be used: names file, field, reason and cure in one line."""


def load(cls: type[T], path: str | pathlib.Path | None, overrides: Sequence[str] = ()) -> T:
    """Builds `cls`, a frozen dataclass, from a YAML file (None: defaults alone) and overrides.

    Raises:
      ConfigError: unreadable file, unknown field, wrong type, or a rule of `__post_init__` broken.
    """
    sources: dict[str, str] = {"": str(path) if path is not None else cls.__name__}
    tree = _expand(cls, _read(pathlib.Path(path)), pathlib.Path(path), "", sources) if path else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected the form section.field=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"override {override!r}: the value is not YAML ({reason})") from None
        _set(cls, tree, key, value, override, sources)
    return _build(cls, tree, "", sources)


def to_dict(config: Any) -> Any:
    """The same values as plain dicts, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def from_dict(cls: type[T], tree: Tree, source: str = "saved config") -> T:
    """The inverse of `to_dict`."""
    return _build(cls, tree, "", {"": source})


def dump(config: Any) -> str:
    """YAML text that `load` turns back into an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a config or any JSON-like value; equal values have equal fingerprints."""
    text = json.dumps(to_dict(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- files ------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key written twice, of which PyYAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor`, which the parent class expands
        names = [key for key, _ in node.value if key.tag != merge]
        keys = [self.construct_object(key, deep=True) for key in names]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} is written twice; keep one", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read(path: pathlib.Path, named_by: str = "") -> Tree:
    """The mapping in a file; `named_by` ("file: field: ") says who asked for it, in an error."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(
            f"{named_by}{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML ({reason}); correct it there") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected a mapping (field: value) at the top, got {type(tree).__name__}"
        )
    return tree


def _expand(
    cls: type, tree: Tree, file: pathlib.Path, path: str, sources: dict[str, str], depth: int = 0
) -> Tree:
    """Replaces `extends` and the sections that name a file by what those files hold.

    Notes in `sources` which file each field came from.
    """
    if depth > 8:
        raise ConfigError(f"{file}: files name each other more than 8 deep; break the circle")
    hints = typing.get_type_hints(cls)
    tree = dict(tree)
    base = tree.pop("extends", None)
    out: Tree = {}
    if base is not None:
        base_file = file.parent / str(base)
        base_tree = _read(base_file, f"{file}: {path + '.' if path else ''}extends: ")
        out = _expand(cls, base_tree, base_file, path, sources, depth + 1)
    for key, value in tree.items():
        section = _dataclass_of(hints.get(key))
        where = f"{path}.{key}" if path else str(key)
        if section is not None and isinstance(value, str):
            section_file = file.parent / value
            section_tree = _read(section_file, f"{file}: {where}: ")
            _credit(where, str(section_file), sources)
            out[key] = _expand(section, section_tree, section_file, where, sources, depth + 1)
            continue
        sources[where] = str(file)
        if section is not None and isinstance(value, dict):
            value = _expand(section, value, file, where, sources, depth + 1)
            out[key] = _merge(out[key], value) if isinstance(out.get(key), dict) else value
        else:
            out[key] = value
    return out


def _credit(path: str, source: str, sources: dict[str, str]) -> None:
    """Notes that a whole section now comes from `source`, whatever its fields came from before."""
    for field in [field for field in sources if field.startswith(f"{path}.")]:
        del sources[field]
    sources[path] = source


def _merge(base: Tree, change: Tree) -> Tree:
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def _set(
    cls: type, tree: Tree, key: str, value: Any, override: str, sources: dict[str, str]
) -> None:
    parts, node, section, where = key.split("."), tree, cls, ""
    for part in parts[:-1]:
        where = f"{where}.{part}" if where else part
        section = _dataclass_of(typing.get_type_hints(section).get(part)) if section else None
        if not isinstance(node.get(part), dict):
            node[part] = {}
            _credit(where, f"override {override!r}", sources)
        node = node[part]
    _credit(key, f"override {override!r}", sources)
    hint = typing.get_type_hints(section).get(parts[-1]) if section else None
    inner = _dataclass_of(hint)
    if inner is not None and isinstance(value, str):  # model=configs/models/qwen2.5-7b.yaml
        file = pathlib.Path(value)
        value = _expand(inner, _read(file, f"override {override!r}: "), file, key, sources)
    node[parts[-1]] = value


def _dataclass_of(hint: Any) -> type | None:
    if dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        found = [a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)]
        return found[0] if found else None
    return None


# --- types ------------------------------------------------------------------------------------


def _source(path: str, sources: dict[str, str]) -> str:
    parts = path.partition("[")[0].split(".") if path else []
    for length in range(len(parts), -1, -1):
        if (found := sources.get(".".join(parts[:length]))) is not None:
            return found
    return "config"


def _fail(path: str, reason: str, sources: dict[str, str]) -> ConfigError:
    return ConfigError(f"{_source(path, sources)}: {path + ': ' if path else ''}{reason}")


def _build(cls: type[T], tree: Tree, path: str, sources: dict[str, str]) -> T:
    hints = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    names = [f.name for f in fields]
    for key in tree:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            prefix = f"{path}." if path else ""
            cure = f"did you mean {prefix + near[0]!r}?" if near else f"fields: {', '.join(names)}"
            raise _fail(f"{prefix}{key}", f"{cls.__name__} has no such field; {cure}", sources)
    for field in fields:
        required = field.default is dataclasses.MISSING
        required &= field.default_factory is dataclasses.MISSING
        if required and field.name not in tree:
            where = f"{path}.{field.name}" if path else field.name
            raise _fail(where, f"{cls.__name__} needs this field; add it", sources)
    values = {
        key: _coerce(hints[key], value, f"{path}.{key}" if path else key, sources)
        for key, value in tree.items()
    }
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise _fail(path, " ".join(str(error).split()), sources) from None


def _coerce(hint: Any, value: Any, path: str, sources: dict[str, str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return _build(hint, value, path, sources)
        raise _fail(path, f"expected a mapping ({hint.__name__}), got {value!r}", sources)
    if origin is typing.Literal:
        if value in args:
            return value
        raise _fail(path, f"got {value!r}, expected one of {', '.join(map(str, args))}", sources)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(args, value, path, sources)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _fail(path, f"expected a list, got {value!r}", sources)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise _fail(path, f"expected {len(kinds)} values, got {len(value)}", sources)
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_coerce(kind, item, f"{path}[{i}]", sources) for i, (kind, item) in pairs)
    if origin is dict:
        if not isinstance(value, dict):
            raise _fail(path, f"expected a mapping, got {value!r}", sources)
        return {str(k): _coerce(args[1], v, f"{path}.{k}", sources) for k, v in value.items()}
    return _coerce_scalar(hint, value, path, sources)


def _coerce_union(args: tuple, value: Any, path: str, sources: dict[str, str]) -> Any:
    if value is None and type(None) in args:
        return None
    kinds = [a for a in args if a is not type(None)]
    if len(kinds) == 1:
        return _coerce(kinds[0], value, path, sources)
    for kind in kinds:
        try:
            return _coerce(kind, value, path, sources)
        except ConfigError:
            continue
    wanted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise _fail(path, f"expected {wanted}, got {value!r}", sources)


def _coerce_scalar(hint: Any, value: Any, path: str, sources: dict[str, str]) -> Any:
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            number = float(value)  # PyYAML reads 3e-6, without a dot, as a string
            if not math.isnan(number):  # NaN passes every check of the form `x <= 0`
                return number
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (hint is int and whole) or (hint in (str, bool) and isinstance(value, hint)):
        return value
    expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise _fail(path, f"expected {expected.get(hint, hint)}, got {value!r}", sources)
