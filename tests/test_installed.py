"""The project as pip installs it, from a wheel and in place, in an environment of its own."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from scripts import ROOT

import sinkjax

MASK = "smollm2-135m-512"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")


def output(*command, **options) -> str:
    """What a command prints to stdout, once it has ended well."""
    ran = subprocess.run(command, capture_output=True, text=True, **options)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("sinkjax", "configs", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    output(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, checkout)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(folder, *what):
    """The programs of a new environment with the project and this environment's other packages."""
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    pip = [*PIP, "--python", folder / "bin" / "python", "install", "--ignore-installed"]
    output(*pip, *OFFLINE, *what, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def from_wheel(wheel, tmp_path_factory):
    return installed(tmp_path_factory.mktemp("from_wheel"), wheel)


@pytest.fixture(scope="module")
def editable(checkout, tmp_path_factory):
    return installed(tmp_path_factory.mktemp("editable"), "--editable", checkout)


@pytest.fixture(autouse=True)
def _without_this_checkout(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)


def test_a_wheel_holds_the_package_and_what_it_ships_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "sinkjax",
        f"sinkjax-{sinkjax.__version__}.dist-info",
    }
    ours = {
        path.relative_to(ROOT).as_posix()
        for folder in ("sinkjax", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    wanted = {name if name.startswith("sinkjax/") else f"sinkjax/{name}" for name in ours}
    assert {name for name in names if name.startswith("sinkjax/")} == wanted


@pytest.mark.parametrize("how", ["from_wheel", "editable"])
def test_the_command_runs_a_study_from_any_folder(how, request, checkout, tiny, tmp_path):
    programs = request.getfixturevalue(how)
    command = programs / "sinkjax"
    assert output(command, "--version", cwd=tmp_path) == f"sinkjax {sinkjax.__version__}\n"
    code = "import sinkjax; print(sinkjax.__file__); print(sinkjax.load_mask(NAME).digest)"
    code = code.replace("NAME", repr(MASK))
    file, digest = output(programs / "python", "-c", code, cwd=tmp_path).split()
    assert file.startswith(str(checkout if how == "editable" else programs.parent))
    assert digest == sinkjax.load_mask(MASK).digest
    few = [f"--model={tiny}", "--lengths=4", "--num_prompts=2", "--output_dir=out"]
    output(command, "sweep", "--flagfile=quickstart.flags", *few, cwd=tmp_path)
    records = (tmp_path / "out" / "records.jsonl").read_text()
    assert f'"sinkjax":"{sinkjax.__version__}"' in records
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_an_editable_install_runs_the_scripts_of_its_checkout(editable, checkout, tiny):
    few = [f"--model={tiny}", "--lengths=4", "--num_prompts=2", "--dry_run"]
    script = ["-m", "experiments.sweep", "--flagfile=configs/quickstart.flags"]
    assert "TFLOP" in output(editable / "python", *script, *few, cwd=checkout)
