"""What importing the library does to the process that imports it: nothing."""

import json
import subprocess
import sys

_IMPORT_ALL = """
import importlib, json, logging, os, pkgutil, sys
import jax
from absl import flags
import flax, matplotlib, numpy, optax, orbax.checkpoint  # define flags and settings of their own

def state():
    return {
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "environment": dict(os.environ),
        "logging": [logging.root.level, list(map(repr, logging.root.handlers))],
        "matplotlib": repr(dict(matplotlib.rcParams)),
        "numpy": [numpy.geterr(), repr(numpy.get_printoptions())],
    }

def has_backend():
    try:
        jax.config.update("jax_num_cpu_devices", 5)
    except RuntimeError:  # refused once a backend is there
        return True
    return False

before = state()
import sinkjax
names = [module.name for module in pkgutil.walk_packages(sinkjax.__path__, "sinkjax.")]
names.remove("sinkjax.instruments.harness")  # needs an extra
from sinkjax.cli.main import COMMANDS
scripts = {f"sinkjax.cli.{name}" for name in COMMANDS}  # define flags when they run
names = [name for name in names if name not in scripts]
for name in names:
    importlib.import_module(name)
after = state()
print(json.dumps({
    "changed": {key: [before[key], after[key]] for key in before if before[key] != after[key]},
    "backend": has_backend(),
    "flags": [name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("sinkjax")],
    "parsed": flags.FLAGS.is_parsed(),
    "modules": len(names),
}))
"""


def test_importing_every_module_touches_nothing():
    """No backend is started, no flag read or defined, no setting changed, of JAX or of others."""
    ran = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, "--no_such_flag"],
        capture_output=True,
        text=True,
        check=True,
    )
    effects = json.loads(ran.stdout)
    assert effects.pop("modules") > 40
    assert effects == {"changed": {}, "backend": False, "flags": [], "parsed": False}


_ADDED = """
import json, sys
import jax, flax.nnx
before = set(sys.modules)
import sinkjax
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_sinkjax_imports_little_beside_jax_and_flax():
    """Orbax, TensorStore, transformers, the Hub's client and Pallas wait until they are needed."""
    ran = subprocess.run([sys.executable, "-c", _ADDED], capture_output=True, text=True, check=True)
    added = json.loads(ran.stdout)
    packages = {name.split(".")[0] for name in added} - sys.stdlib_module_names
    assert packages <= {"sinkjax", "safetensors", "jax", "jaxlib", "jaxtyping", "wadler_lindig"}
    assert not [name for name in added if "pallas" in name.split(".")]
    assert not [name for name in added if name.startswith(("sinkjax.report", "sinkjax.studies"))]
