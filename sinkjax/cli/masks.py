"""Reads the masks and plans that flags name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import sinkjax
from sinkjax.errors import InputError, Problem, about
from sinkjax.masks.mask import SinkMask
from sinkjax.programs.dispatch import Plan
from sinkjax.studies.quality.candidate import Candidate

Fills = Mapping[SinkMask, np.ndarray]


def candidates(
    masks: Sequence[str],
    plans: Sequence[str],
    config: sinkjax.LlamaConfig,
    lengths: Sequence[int],
) -> list[Candidate]:
    """What --mask and --plan name, to be held against the baseline at each length.

    Args:
      masks, plans: the flags' values.
      config: of the model.
      lengths: T of all windows.

    Raises:
      InputError: where nothing is named, or as `read_masks` and `read_plan` do.
    """
    if not masks and not plans:
        raise InputError(Problem("mask", None, "name a mask's file, or a plan's with --plan"))
    named = [
        Candidate(name, dict.fromkeys(lengths, mask), fills)
        for name, (mask, fills) in read_masks(masks, config).items()
    ]
    for name in plans:
        plan, fills = read_plan(name)
        named.append(Candidate.of_plan(name, plan, lengths, fills))
    return named


def read_masks(
    values: Sequence[str], config: sinkjax.LlamaConfig
) -> dict[str, tuple[SinkMask, Fills]]:
    """The masks that the values of --mask name, each with its fills.

    Args:
      values: each is files with commas between them, or one mask's text form.
      config: of the model that they are for.

    Returns:
      by what the user wrote.

    Raises:
      InputError: listing all files that cannot be read, texts that are no mask, and masks for
        another model.
    """
    found: dict[str, tuple[SinkMask, Fills]] = {}
    problems = []
    for value in values:
        is_text = re.match(r"L0(-\d+)?: ", value)
        for name in [value] if is_text else value.split(","):
            try:
                with about("mask", name):
                    found[name] = _from_text(name, config) if is_text else _from_file(name, config)
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(*problems)
    return found


def read_plan(name: str) -> tuple[Plan, Fills]:
    """A plan's file, and the fills of the mask files that it names.

    Args:
      name: of a JSON file as `Plan.to_dict` makes them, in which each mask is its text form or the
        name of its file, counted from the plan's folder.

    Raises:
      InputError: for a file that cannot be read, or is no possible plan.
    """
    path = Path(name)
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            Problem("plan", name, f"it cannot be read ({error}); give a JSON file")
        ) from error
    fills: dict[SinkMask, np.ndarray] = {}
    with about("plan", name):
        if not isinstance(fields, dict):
            raise InputError('it holds no JSON object with "crossing" and "stages"')
        for stage in fields["stages"] if isinstance(fields.get("stages"), list) else ():
            if isinstance(stage, dict) and str(stage.get("mask")).endswith(".json"):
                saved = sinkjax.load_mask(path.parent / stage["mask"])
                stage["mask"] = str(saved.mask)
                fills |= {} if saved.fills is None else {saved.mask: saved.fills}
        return Plan.from_dict(fields), fills


def _from_text(text: str, config: sinkjax.LlamaConfig) -> tuple[SinkMask, Fills]:
    mask = SinkMask.from_text(text)
    mask.check(config)
    if any(path == sinkjax.Sink("mean") for layer in mask.heads for path in layer):
        raise InputError("s(mean) needs calibrated means, which only a mask's file has: give one")
    return mask, {}


def _from_file(name: str, config: sinkjax.LlamaConfig) -> tuple[SinkMask, Fills]:
    saved = sinkjax.load_mask(name)
    saved.check(config)
    return saved.mask, {} if saved.fills is None else {saved.mask: saved.fills}
