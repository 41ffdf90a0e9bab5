"""Runs the experiments' scripts: in this process, each with flags of its own, or in a new one."""

import contextlib
import importlib
import io
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from types import ModuleType

import pytest
import tokenized
from absl import flags

from sinkjax import InputError
from sinkjax.cli import flags as cli
from sinkjax.cli.main import Command, load_command

tokenized.remember()

ROOT = pathlib.Path(__file__).resolve().parents[2]

MASK = "--mask=L0: 2s(first) f 2s(first) f | L1: f 2w(1,4) f 2w(1,4)"
"""Flag of a mask for tiny models: as much is left of each key/value group."""
FEW = ("--choose_excerpts=3", "--judge_excerpts=3")
SMALL = {
    "predict": (
        *("--lengths=2,4,9", "--held_out_lengths=4", "--thresholds=0.5,0.6", "--num_prompts=20"),
        "--definitions=mean",
    ),
    "copies": (*FEW, "--lengths=8", "--shares=0.3", "--control_draws=1"),
    "frontier": (
        *(*FEW, "--lengths=8", "--paths=8:window(1,4)", "--shares=0.5", "--saved=formula"),
        "--control_draws=1",
    ),
}
"""Flags with which a study of a tiny model is as small as it can be."""


def load_script(name: str) -> ModuleType | Command:
    """A script, or a command by its script's name; the flags of those before it are forgotten."""
    by_module = flags.FLAGS.flags_by_module_dict().items()
    scripts = [own for module, own in by_module if module.startswith(("sinkjax", "benchmarks"))]
    for name_of_flag in {name for own in scripts for flag in own for name in _names(flag)}:
        delattr(flags.FLAGS, name_of_flag)
    flags.FLAGS.unparse_flags()
    folder, _, command = name.partition(".")
    if folder == "experiments":
        return load_command(command)
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def _names(flag: flags.Flag) -> set[str]:
    return {name for name in (flag.name, flag.short_name) if name in flags.FLAGS}


def as_flags(values: Mapping[str, object]) -> list[str]:
    """Settings by name, as a command takes them."""
    return [f"--{name}={value}" for name, value in values.items()]


def run_main(name: str, *arguments: str) -> None:
    """Calls the `main` of a script with these flags; its errors say what the script prints."""
    script = load_script(name)
    unknown = flags.FLAGS([name, *arguments])[1:]
    assert not unknown, unknown
    try:
        script.main()
    except InputError as error:
        renamed = getattr(script, "renamed", {})  # which no benchmark has
        raise InputError(*(cli.as_flag(of, renamed) for of in error.problems)) from error
    finally:
        flags.FLAGS.unparse_flags()


def refused(name: str, *arguments: str) -> str:
    """What a script says of arguments that hold no flag of its, in this process."""
    script, said = load_script(name), io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        cli._parse(script.renamed, list(cli._expanded([name, *arguments])))
    assert ended.value.code == 1
    return said.getvalue()


def start(name: str, *arguments: str, **options) -> subprocess.Popen:
    """Starts a script as a user does, from the checkout."""
    return subprocess.Popen(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(name: str, *arguments: str, **options) -> str:
    """Runs a script as a user does; what it printed, once it has ended well."""
    process = start(name, *arguments, **options)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out
