"""Flags made from the fields of a study's settings: name, default and help are said there alone."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from sinkjax.errors import InputError, Problem
from sinkjax.masks.paths import Path, parse_paths
from sinkjax.studies.study import Study


def define_flags(study: type[Study], values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every setting of a study, and those of running it."""
    hints = typing.get_type_hints(study)
    shared = {"flag_values": values, "module_name": study.__module__}  # whose help shows them
    for field in dataclasses.fields(study):
        _define(field, hints[field.name], shared)
    flags.DEFINE_string(
        "output_dir",
        f"results/{study.name}",
        "Folder for records and the report; the same command goes on from what is there.",
        **shared,
    )
    flags.DEFINE_bool("dry_run", False, "Print how much would be run, and stop.", **shared)


def read_study(study: type[Study], values: flags.FlagValues = flags.FLAGS) -> Study:
    """The study that the flags say.

    Raises:
      InputError: listing all flags whose text cannot be read.
    """
    hints, settings, problems = typing.get_type_hints(study), {}, []
    for field in dataclasses.fields(study):
        if values[field.name].using_default_value:
            continue
        try:
            settings[field.name] = _read(field, hints[field.name], values[field.name].value)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return study(**settings)


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
        return tuple(_number(field.name, text, kind) for text in value)
    return tuple(filter(None, value))  # `--judge_text=` is none


def _parsed(name: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except InputError as error:
        raise InputError(
            *(Problem(name, text, str(problem)) for problem in error.problems)
        ) from error
    except ValueError as error:
        raise InputError(Problem(name, text, str(error))) from error


def _number(name: str, text: str, kind: type) -> int | float:
    try:
        return kind(text)
    except ValueError as error:
        wanted = "whole number" if kind is int else "number"
        raise InputError(
            Problem(name, None, f"{text!r} is no {wanted}; give {wanted}s with commas between them")
        ) from error


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
