"""The documents: links, anchors, the files that they name and the commands that they print."""

import re
import subprocess
import sys

import pytest
from absl import flags
from scripts import ROOT, load_script

from sinkjax import InputError, shipped
from sinkjax.cli.commands import STUDIES, TOOLS
from sinkjax.cli.flags import _expanded
from sinkjax.cli.settings import read_settings
from sinkjax.errors import problems_of
from sinkjax.models.shapes import SHAPES
from sinkjax.studies.candidates import read_masks, read_plan

pytestmark = pytest.mark.quick

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "configs/texts/README.md"]
NAMED = r"`((?:benchmarks|configs|docs|examples|experiments|sinkjax|tests)/[\w./-]+\.\w+)`"
COMMAND = r"(?:python -m (?:experiments|benchmarks)\.|sinkjax )[a-z]+ --"
USERS = r"[A-Z]+\b|hf://|results/"  # masks and texts that are none of this checkout's
ABSENT = ("wikitext-2-valid.txt", "tinyshakespeare.txt")  # texts that findings are of

SHELL = r"""
say() { printf '%s\1' "$@" $'\2'; }
python() { case $1 in -m) say "${@:2}" ;; -c) "$PYTHON" "$@" ;; esac; }
sinkjax() { say "experiments.$1" "${@:2}"; }
seq() { /usr/bin/seq "$@"; }
taskset() { "${@:3}"; }
sbatch() { eval "$2"; }
python3() { :; }
pip() { :; }
"""
"""What a shell runs in place of programs, of which it finds none: Python says what it is given."""


def prose(page):
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.M)
    return [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


def commands(page):
    """The commands that a page prints, each as a shell divides it."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S)
    shells = [text for kind, text in blocks if kind != "python" and re.search(COMMAND, text)]
    spans = [" ".join(span.split()) for span in re.findall("`([^`]+)`", prose(page))]
    inline = [re.search(f'(?:^|[ "])({COMMAND}[^"]*)', span) for span in spans]
    for text in [*shells, *(found[1] for found in inline if found and "..." not in found[1])]:
        run = subprocess.run(
            ["/bin/bash", "-c", SHELL + text.replace(". .venv/bin/activate", ":")],
            cwd=ROOT,
            env={"PATH": "", "PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )
        assert "/bin/bash: " not in run.stderr, run.stderr  # what it does not understand or find
        for said in run.stdout.split("\2\1")[:-1]:
            name, *arguments = said.split("\1")[:-1]
            if name.startswith(("experiments.", "benchmarks.")):
                yield name, arguments


def several(settings, *names):
    """The values of settings that may have one, several or none, or not be there."""
    for value in (getattr(settings, name, None) for name in names):
        yield from value if isinstance(value, tuple) else filter(None, [value])


def problems(name, arguments):
    """What is wrong with a command's flags, and with the masks, plans and texts that they name."""
    script, command = load_script(name), name.partition(".")[2]
    try:
        if unknown := flags.FLAGS(list(_expanded([name, *arguments])))[1:]:
            return unknown
        if name.startswith("benchmarks."):
            return []
        settings = read_settings(getattr(script.module, {**STUDIES, **TOOLS}[command]))
    except (flags.Error, InputError) as error:
        return [error]
    finally:
        flags.FLAGS.unparse_flags()
    wrong = list(settings.problems()) if command in STUDIES else []
    wrong = [problem for problem in wrong if problem.field != "results"]  # of a sweep that was run
    for text in several(settings, "text", "choose_text", "judge_text"):
        known = text in ABSENT or re.match(USERS, text)
        if not known and not shipped.find(text, "texts", ".txt").is_file():
            wrong.append(f"no text is called {text}")
    model = next(several(settings, "model"), "").removeprefix("shape:")
    if model in SHAPES:
        length = next(several(settings, "lengths"), None)
        masks = [m for m in several(settings, "mask", "prune") if not re.match(USERS, m)]
        wrong += problems_of(lambda: read_masks(masks, SHAPES[model], length))
        for plan in several(settings, "plan"):
            wrong += problems_of(lambda plan=plan: read_plan(plan, SHAPES[model]))
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchors(target).count(anchor) != 1):
            wrong.append(link)
    named = [name for name in re.findall(NAMED, prose(page)) if "NAME" not in name]
    wrong += [name for name in named if not (ROOT / name).exists()]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_printed_commands_have_flags_and_values_that_are_there(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = {
        " ".join([name, *arguments]): list(map(str, listed))
        for name, arguments in commands(page)
        if (listed := problems(name, arguments))
    }
    assert wrong == {}


def test_the_pages_are_those_that_link_to_each_other():
    assert len(PAGES) > 12
    linked = sum(len(re.findall(r"\]\([^)]*#", prose(page))) for page in PAGES)
    assert linked > 50
    assert sum(1 for page in PAGES for _ in commands(page)) > 100


def test_the_recipes_name_code_that_is_there():
    named = set(re.findall(r"`(\w*[A-Z_]\w*)`", prose(ROOT / "CONTRIBUTING.md"))) - {"NAME"}
    files = (ROOT / "sinkjax").rglob("*.py")
    code = {word for file in files for word in re.findall(r"\w+", file.read_text())}
    assert len(named) > 12
    assert sorted(named - code) == []
