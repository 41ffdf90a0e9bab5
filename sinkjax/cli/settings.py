"""Flags made from the fields of settings: name, default and help are said there alone."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from absl import flags

from sinkjax.errors import InputError, about, each
from sinkjax.masks.paths import Path, parse_paths

Settings = TypeVar("Settings")
Number = TypeVar("Number", int, float)

flags.disclaim_key_flags()  # so that --help of a script shows what is defined here for it


def define_settings(settings: type, **shared: Any) -> None:
    """Defines a flag for every field of a dataclass.

    Args:
      settings: the dataclass, whose fields are made by `setting`.
      shared: what all its flags have, such as `module_name`, of the module whose help shows them;
        by default the calling one.
    """
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        _define(field, hints[field.name], shared)


def read_settings(settings: type[Settings], values: flags.FlagValues = flags.FLAGS) -> Settings:
    """The dataclass as the flags say.

    Raises:
      InputError: listing all flags whose text cannot be read.
    """
    hints = typing.get_type_hints(settings)
    fields = {field.name: field for field in dataclasses.fields(settings)}
    given = [name for name in fields if not values[name].using_default_value]
    read = each(given, lambda name: _read(fields[name], hints[name], values[name].value))
    return settings(**dict(zip(given, read, strict=True)))


def numbers(name: str, texts: Iterable[str], kind: type[Number]) -> tuple[Number, ...]:
    """The values of a flag that is a list of numbers.

    Raises:
      InputError: listing all texts that are no number of the kind.
    """

    def number(text: str) -> Number:
        try:
            return kind(text)
        except ValueError as error:
            wanted = "whole number" if kind is int else "number"
            raise InputError(
                f"{text!r} is no {wanted}; give {wanted}s with commas between them"
            ) from error

    with about(name):
        return tuple(each(texts, number))


def _define(field: dataclasses.Field, hint: Any, shared: Mapping[str, Any]) -> None:
    name, default, how = field.name, field.default, field.metadata
    kind, many = _kind(hint)
    shared = {**shared, "help": how["help"]}
    if how["parse"] is not None or kind is Path:
        text = None if default is None else _shown(default)
        flags.DEFINE_string(name, text, **shared)
    elif typing.get_origin(kind) is typing.Literal and not many:
        flags.DEFINE_enum(name, default, typing.get_args(kind), **shared)
    elif how["repeated"]:
        flags.DEFINE_multi_string(name, list(default), **shared)
    elif many:
        flags.DEFINE_list(name, list(map(str, default)), **shared)
    else:
        define = {
            bool: flags.DEFINE_bool,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
        }.get(kind, flags.DEFINE_string)
        define(name, default, **shared)


def _read(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    """A setting's value from its flag's."""
    parse = field.metadata["parse"]
    kind, many = _kind(hint)
    if parse is None and kind is Path:
        parse = parse_paths if many else None
    if parse is not None:
        return None if value is None else _parsed(field.name, value, parse)
    if not many or value is None:
        return value
    if kind in (int, float):
        return numbers(field.name, value, kind)
    return tuple(filter(None, value))  # `--judge_text=` is none


def _parsed(name: str, text: str, parse: Callable[[str], Any]) -> Any:
    with about(name, text):
        try:
            return parse(text)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error)) from error


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there are several; a text, where one may stand for it."""
    if hint in (Path, tuple[Path, ...]):
        return Path, hint != Path
    parts = [hint]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if str in parts:
        return str, False
    (part, *_) = parts
    if typing.get_origin(part) is tuple:
        return _kind(typing.get_args(part)[0])[0], True
    return part, False


def _shown(default: Any) -> str:
    """A default as a flag's text: lists with commas, and by length with semicolons."""
    if isinstance(default, tuple) and default and isinstance(default[0], tuple):
        return ";".join(f"{length}:{_shown(paths)}" for length, paths in default)
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default)
