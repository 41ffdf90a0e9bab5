"""The command `sinkjax`, and how scripts begin and end."""

import re
import subprocess
import sys

import pytest
from scripts import ROOT, start

import sinkjax
from sinkjax import shipped
from sinkjax.cli.main import COMMANDS, main

_WITHOUT_PYTORCH = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from sinkjax.cli import flags

def main():
    import transformers
    print(transformers.utils.is_torch_available())

flags.run(main)
"""


def sinkjax_says(monkeypatch, capsys, *arguments: str):
    """The status, stdout and stderr of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["sinkjax", *arguments])
    return main(), *capsys.readouterr()


def test_every_command_is_a_script_of_experiments():
    assert set(COMMANDS) == {path.stem for path in (ROOT / "experiments").glob("*.py")}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--helpshort"]])
def test_help_lists_every_command_in_a_line(arguments, monkeypatch, capsys):
    status, out, err = sinkjax_says(monkeypatch, capsys, *arguments)
    assert (status, err) == (0, "")
    assert tuple(re.findall(r"^  (\w+) +\S.*[.?]$", out, re.MULTILINE)) == COMMANDS


def test_the_version_is_the_packages(monkeypatch, capsys):
    says = sinkjax_says(monkeypatch, capsys, "--version")
    assert says == (0, f"sinkjax {sinkjax.__version__}\n", "")


def test_an_unknown_command_is_refused_with_those_there_are(monkeypatch, capsys):
    status, out, err = sinkjax_says(monkeypatch, capsys, "swep", "--help")
    assert (status, out) == (1, "")
    assert err.startswith("error: swep ")
    assert err.count("\n") == 1
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize(
    ("script", "flag"), [("sweep", "--help"), ("convert", "-h"), ("mask", "--helpshort")]
)
def test_help_of_a_script_is_no_failure(script, flag):
    process = start(f"experiments.{script}", flag)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert f"python -m experiments.{script} --" in out
    assert "\n  --model" in out


def test_a_flag_file_that_is_not_there_is_refused_with_those_that_ship():
    process = start("experiments.sweep", "--flagfile", "quick.flags")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: --flagfile=quick.flags: ")
    assert err.count("\n") == 1
    assert all(name in err for name in shipped.names("", ".flags"))


@pytest.mark.parametrize("in_file", [False, True], ids=["argument", "file"])
@pytest.mark.parametrize(
    ("script", "old", "new"),
    [("mask", "path=s(first)", "paths"), ("mask", "groups", "units"), ("gates", "path=f", "paths")],
)
def test_an_old_flag_is_refused_with_its_name_of_today(script, old, new, in_file, tmp_path):
    file = tmp_path / "old.flags"
    file.write_text(f"--{old}\n")
    argument = f"--flagfile={file}" if in_file else f"--{old}"
    process = start(f"experiments.{script}", argument)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err == f"error: --{old.split('=')[0]} is called --{new} now; --help shows all flags\n"


def test_a_missing_pytorch_is_no_news_to_a_scripts_user():
    """Models are JAX's: transformers is there for tokenizers alone."""
    command = [sys.executable, "-c", _WITHOUT_PYTORCH]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "False\n", "")
