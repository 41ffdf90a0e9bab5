"""Flags made from settings: every field of every command has one, with default and help."""

import dataclasses
import importlib
import re
import sys
import typing

import pytest
from absl import flags
from masks import problems_of
from scripts import ROOT

from sinkjax import Sink, Window
from sinkjax.cli.commands import COMMANDS, STUDIES, TOOLS
from sinkjax.cli.settings import define_settings, read_settings
from sinkjax.studies.copies.study import Copies
from sinkjax.studies.frontier.study import Frontier
from sinkjax.studies.search.study import Search
from sinkjax.studies.sweep.study import Sweep

pytestmark = pytest.mark.quick


def settings_of(command):
    """The dataclass whose fields are a command's flags."""
    if command in STUDIES:
        module, name = f"sinkjax.studies.{command}.study", STUDIES[command]
    else:
        module, name = f"sinkjax.cli.{command}", TOOLS[command]
    return getattr(importlib.import_module(module), name)


def read(study, *arguments):
    values = flags.FlagValues()
    define_settings(study, flag_values=values)
    values(["script", *arguments])
    return read_settings(study, values)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_is_a_flag_with_its_default_and_a_sentence_of_help(name):
    study, values = settings_of(name), flags.FlagValues()
    define_settings(study, flag_values=values)
    values(["script"])
    fields = {field.name: field for field in dataclasses.fields(study)}
    assert set(values) == set(fields)
    for field in fields.values():
        help_text = field.metadata["help"]
        assert help_text in values[field.name].help
        assert help_text[0].isupper(), help_text
        assert help_text.endswith("."), help_text
    default = read_settings(study, values)
    for field in fields.values():
        assert getattr(default, field.name) == field.default
        assert field.default != sys.maxsize  # no limit is None


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_survive_being_written_as_flags(name):
    """What --help shows as a default is text that gives the default again."""
    study, values = settings_of(name), flags.FlagValues()
    define_settings(study, flag_values=values)
    values(["script"])
    written = {}
    for field in dataclasses.fields(study):
        value = values[field.name].value
        if value not in (None, [], True, False):
            parts = value if field.metadata["repeated"] else [value]
            texts = [",".join(part) if isinstance(part, list) else str(part) for part in parts]
            written[field.name] = [f"--{field.name}={text}" for text in texts]
    again = read(study, *(text for texts in written.values() for text in texts))
    for name in written:
        assert getattr(again, name) == getattr(study(), name), name


def test_values_have_the_type_of_their_field():
    copies = read(Copies, "--lengths=8,16", "--shares=0.1", "--seed=3", "--dtype=bfloat16")
    assert (copies.lengths, copies.shares, copies.seed) == ((8, 16), (0.1,), 3)
    assert copies.dtype == "bfloat16"
    search = read(Search, "--paths=s(mean),window(4,16)", "--judge_text=a,b.txt", "--judge_text=c")
    assert search.paths == (Sink("mean"), Window(4, 16))
    assert search.judge_text == ("a,b.txt", "c")  # a file's name may hold a comma
    assert read(Search, "--judge_text=").judge_text == ()
    frontier = read(Frontier, "--paths=8:w(1,4);24:sink(zero),w(2,8)")
    assert frontier.paths_at == {8: (Window(1, 4),), 24: (Sink("zero"), Window(2, 8))}
    sweep = read(Sweep, "--model=a,b", "--nostudy", "--thresholds=0.3,0.5")
    assert (sweep.model, sweep.study, sweep.thresholds) == (("a", "b"), False, (0.3, 0.5))


def test_all_flags_that_cannot_be_read_are_named_together():
    problems = problems_of(read, Copies, "--lengths=8,many", "--shares=half")
    assert len(problems) == 2
    assert any("lengths: 'many' is no whole number" in problem for problem in problems)
    assert any("shares: 'half' is no number" in problem for problem in problems)
    (problem,) = problems_of(read, Frontier, "--paths=window(4,8)")
    assert problem.startswith("paths=window(4,8): ")
    assert "begins with no length" in problem
    (problem,) = problems_of(read, Frontier, "--paths=8:w(4,8);24:s(zero);08:s(mean)")
    assert problem.endswith("length 8 is there twice; write its paths together")


def test_a_setting_has_one_spelling_in_all_commands_and_benchmarks():
    """`--lengths` also where one is taken, since others take several."""
    names = {field.name for name in COMMANDS for field in dataclasses.fields(settings_of(name))}
    for path in (ROOT / "benchmarks").glob("*.py"):
        names |= set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', path.read_text()))
    names -= {"prompt"}  # a text; --prompts is a file
    assert "xla_lengths" in names  # of a benchmark
    assert [name for name in sorted(names) if f"{name}s" in names] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_settings_that_were_renamed_are_settings_now_and_no_longer_by_the_old_name(name):
    study = settings_of(name)
    fields = typing.get_type_hints(study)
    for old, new in study.renamed.items():
        assert new in fields or " " in new  # or why it is gone
        assert old not in {field.name for field in dataclasses.fields(study)}


def test_a_study_is_in_the_folder_of_its_name():
    for name, class_name in STUDIES.items():
        module = importlib.import_module(f"sinkjax.studies.{name}.study")
        assert getattr(module, class_name).name == name
