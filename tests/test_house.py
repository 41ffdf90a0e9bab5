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
for _package in [module for module, names in IMPORTS.items() if "pkgutil" in names]:
    OWN[_package] |= {name for name in FILES if name.rpartition(".")[0] == _package}


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


def place_of(module: str) -> str:
    """Where the tests of a library file lie, without the ending."""
    path = FILES[module].relative_to(ROOT / "sinkjax")
    return path.with_name(f"test_{path.stem}").as_posix()


TESTS = {
    path.relative_to(ROOT / "tests").with_suffix("").as_posix(): path
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
}

WHOLE = """
    arguments docs examples fuzz house import installed settings types
"""
"""Tests of the project from its outside, at the top of tests/, which no one file has."""

ELSEWHERE = {"sinkjax.studies.retrieval.keeping": "studies/search/test_study"}
"""What is a part of files in other folders alone, and where these are tested."""


def is_of(test: str, place: str) -> bool:
    """Whether a test file is another's place's, or one of several of it."""
    return test == place or test.startswith(f"{place}_")


def test_tests_lie_as_the_library_does():
    """tests/FOLDER/test_FILE.py, or test_FILE_MORE.py where a file has several."""
    places = {place_of(module) for module, path in FILES.items() if path.name != "__init__.py"}
    places |= {f"cli/test_{path.stem}" for path in (ROOT / "experiments").glob("*.py")}
    places |= {f"benchmarks/test_{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")}
    places |= {f"test_{name}" for name in WHOLE.split()}
    wrong = [test for test in TESTS if not any(is_of(test, place) for place in places)]
    assert len(TESTS) > 100
    assert wrong == []


def test_the_library_is_tested_where_it_lies():
    """A file has tests at its place, or is imported by tests beside it, or by such a file there.

    That is, what has no tests by its name is a part of a file of its own folder that has.
    """
    beside = collections.defaultdict(set)
    for path in TESTS.values():
        names = imports_of(ast.parse(path.read_text()))
        beside[path.parent.relative_to(ROOT / "tests")] |= {name for name in names if name in FILES}
    folders = {module: path.parent.relative_to(ROOT / "sinkjax") for module, path in FILES.items()}
    tested = [
        module
        for module in FILES
        if module in beside[folders[module]] or any(is_of(test, place_of(module)) for test in TESTS)
    ]
    for module in tested:  # which grows
        tested += [
            name for name in OWN[module] if folders[name] == folders[module] and name not in tested
        ]
    packages = {module for module, path in FILES.items() if path.name == "__init__.py"}
    assert sorted(FILES.keys() - packages - {*tested}) == sorted(ELSEWHERE)
    for module, test in ELSEWHERE.items():
        assert test in TESTS
        assert any(module in OWN[of] for of in FILES if place_of(of) == test)


def test_every_package_has_quick_tests():
    packages = {top(module) for module in FILES if module.count(".") > 1}
    texts = {
        name: "".join(path.read_text() for path in (ROOT / "tests" / name).rglob("test_*.py"))
        for name in packages
    }
    assert [name for name, text in texts.items() if "mark.quick" not in text] == []
