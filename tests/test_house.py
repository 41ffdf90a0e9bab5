"""The house, read from its files: nothing imports upwards, nothing in circles, tests mirror it."""

import ast
import collections
import graphlib
import re

import pytest
from scripts import ROOT

pytestmark = pytest.mark.quick

FLOORS = """
    errors files environment shipped interrupts
    hub
    distributed
    masks
    attention
    models
    checkpoint specialize testing
    programs
    accounts
    instruments
    report
    studies
    sinkjax
    cli
"""
"""From below: a folder imports from lower floors alone. `sinkjax` has the public names."""

LINES = [line.split() for line in FLOORS.strip().splitlines()]

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "sinkjax").rglob("*.py"))
}


def imports_of(tree: ast.Module) -> list[str]:
    """What a file imports, also in functions and for type checkers only."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in FILES else node.module for name in whole]
    return names


TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}
IMPORTS = {module: imports_of(tree) for module, tree in TREES.items()}
OWN = {module: {name for name in names if name in FILES} for module, names in IMPORTS.items()}


def top(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def folder(module: str) -> str:
    """A question of the studies is a folder of its own; what all questions share is another."""
    path = FILES[module]
    own = path.parent if path.parent != ROOT / "sinkjax" else path
    return own.relative_to(ROOT).as_posix()


def folders() -> dict[str, set[str]]:
    graph = collections.defaultdict(set)
    for module, names in OWN.items():
        graph[folder(module)] |= {folder(name) for name in names} - {folder(module)}
    return graph


@pytest.mark.parametrize("graph", [OWN, folders()], ids=["files", "folders"])
def test_no_imports_go_in_a_circle(graph):
    graphlib.TopologicalSorter(graph).prepare()  # raises, and names the circle


def test_nothing_imports_upwards():
    floors = {name: n for n, names in enumerate(LINES) for name in names}
    assert {top(module) for module in FILES} == floors.keys()  # a new one is given its floor
    wrong = [
        f"{module} imports {name}"
        for module, names in OWN.items()
        for name in names
        if top(name) != top(module) and floors[top(name)] >= floors[top(module)]
    ]
    # The version, which stands where builds look for it.
    assert wrong == ["sinkjax.environment imports sinkjax"]


def test_the_map_of_folders_goes_down_the_floors():
    text = (ROOT / "docs/architecture.md").read_text().replace("__init__", "sinkjax")
    shown = re.findall(r"^\| `sinkjax/(\w+)", text, re.M)
    floors = [next(n for n, line in enumerate(LINES) if name in line) for name in shown]
    assert floors == sorted(floors, reverse=True)
    assert {top(module) for module in FILES if module.count(".") > 1} < {*shown}


def test_no_two_classes_have_a_name():
    nodes = (node for tree in TREES.values() for node in tree.body)
    names = collections.Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def test_only_scripts_read_flags_and_write_to_the_terminal():
    wrong = [
        f"{module}: {name}"
        for module, names in IMPORTS.items()
        for name in names
        if name.split(".")[0] in {"absl", "rich", "tqdm"}
    ]
    wrong += [
        f"{module}:{node.lineno}: print"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    bar = "sinkjax.instruments.harness: tqdm"  # lm-eval's own, which its callers turn off
    assert [line for line in wrong if top(line) != "cli" and line != bar] == []


def test_the_oracle_shares_no_attention_with_what_it_checks():
    assert [name for name in IMPORTS["sinkjax.testing.oracle"] if ".attention" in name] == []


def test_tests_lie_as_the_library_does():
    """tests/FOLDER/test_FILE.py, or test_FILE_MORE.py where a file has several."""
    mirrored = [f"sinkjax/{name}" for name in FLOORS.split()] + ["benchmarks", "experiments"]
    known = {path.relative_to(ROOT) for name in mirrored for path in (ROOT / name).rglob("*.py")}
    files = {f"{path.parent}/test_{path.stem}".removeprefix("sinkjax/") for path in known}
    files |= {f"cli/test_{path.stem}" for path in known if path.parts[0] == "experiments"}
    tests = [path for path in (ROOT / "tests").rglob("*/test_*.py")]
    wrong = []
    for path in tests:
        name = path.relative_to(ROOT / "tests").with_suffix("").as_posix()
        if not any(name == file or name.startswith(f"{file}_") for file in files):
            wrong.append(name)
    assert len(tests) > 40
    assert wrong == []


def test_every_package_has_quick_tests():
    packages = {top(module) for module in FILES if module.count(".") > 1}
    texts = {
        name: "".join(path.read_text() for path in (ROOT / "tests" / name).rglob("test_*.py"))
        for name in packages
    }
    assert [name for name, text in texts.items() if "mark.quick" not in text] == []
