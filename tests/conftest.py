"""Shared fixtures, and the strictest settings that JAX has, for every test.

Eight CPU devices, so that sharding is real; no implicit promotion of dtypes or ranks. Compilers for
devices that are not here are installed, and JAX is not to look for these devices.

Most of the tests' time is compiling, for models so small that they gain nothing by it. So LLVM
optimizes nothing, which halves the time and leaves the HLO as it is; a program is one module to it,
not up to 32 of them, which takes a third less again; loops are written by XLA's older emitters
where JAX is older than 0.11, which takes half of the rest and less; and what one of pytest's
processes has compiled, or one that it started, no other compiles again. Tests of the real model
have none of this but the one module, nor has what is marked `default_compilation`, since it is
about compiling, speed, or the numbers of optimized code. What a test starts compiles as it does.

A file's tests, which share fixtures and what they compile, go to one of the processes, and what
they compiled is freed after them, or before where a process has grown large. So do all tests whose
names say `real_model`, first of all: it and transformers' reading of it take half a gigabyte each,
and twenty seconds to load. Either is dropped where the next test has no use for it, and where both
are there, their weights, once they are seen to be equal to the bit, are there once.

PyTorch has one thread: pytest runs a process a core, and two threads that wait for each other on
one core take three times as long.
"""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = " ".join(
    [*os.environ.get("XLA_FLAGS", "").split(), "--xla_cpu_parallel_codegen_split_count=1"]
)

import ctypes
import gc
import json
import pathlib
import resource
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from xdist.scheduler import LoadScopeScheduling

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _configure(name: str, value: str | float | bool) -> None:
    """Here, and in the processes that a test starts."""
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


_configure("jax_traceback_in_locations_limit", 0)  # lines of code, which take a tenth of lowering

if "PYTEST_XDIST_WORKER" not in os.environ:  # else from the process that started this one
    _compiled = tempfile.TemporaryDirectory(prefix="sinkjax-compiled-")
    _configure("jax_compilation_cache_dir", _compiled.name)
    _configure("jax_persistent_cache_min_compile_time_secs", 0.0)

_XLA_FLAGS = os.environ["XLA_FLAGS"]
_HAS_OLDER_EMITTERS = jax.__version_info__ < (0, 11)
_overrides: dict[str, bool] = {}  # for the test that runs

if _HAS_OLDER_EMITTERS:
    from jax._src import compiler  # no public setting of JAX 0.10 reaches every compilation
    from jaxlib import xla_client

    xla_client.CompileOptions()  # this process reads XLA_FLAGS here, and never again

    _compile_options = compiler.get_compile_options

    def _with_overrides(*arguments, env_options_overrides=None, **more):
        own = {**_overrides, **(env_options_overrides or {})}
        return _compile_options(*arguments, env_options_overrides=own, **more)

    compiler.get_compile_options = _with_overrides


REAL_MODEL = "_real_model"


class Scheduler(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return REAL_MODEL if REAL_MODEL in nodeid else nodeid.split("::")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "fetch the registry's larger models, of which tests run only where they are cached"
    parser.addoption("--large_models", action="store_true", help=help)


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> Scheduler:
    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return Scheduler(config, log)


REAL_MODELS = ("smollm2", "hf_smollm2_later", "hf_smollm2")


def uses_real_model(item: pytest.Item) -> bool:
    return not set(REAL_MODELS).isdisjoint(item.fixturenames)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert not uses_real_model(item) or REAL_MODEL in item.name, item.nodeid
    # The real model alone, then what transformers' comes after, then that, then both, and last what
    # holds neither: a process grows by what was imported and compiled. Small files are the last of
    # all, so that all processes end at about the same time.
    quick = {item.nodeid for item in items if item.get_closest_marker("quick")}

    def order(item: pytest.Item) -> tuple[bool, ...]:
        ours, later, theirs = (name in item.fixturenames for name in REAL_MODELS)
        neither = not uses_real_model(item)
        return REAL_MODEL not in item.name, neither, theirs, later, ours, item.nodeid in quick

    items.sort(key=order)
    gc.collect()
    gc.freeze()  # all that was imported: else it is looked through again and again


def free() -> None:
    """Frees what was compiled, and gives back what the C library keeps for later."""
    global _kept
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    _kept = _resident()


@pytest.fixture(scope="session")
def free_memory():
    """`free`, for what needs much memory for something else than what was compiled before it.

    As everything does that measures how fast the machine reads: half a gigabyte.
    """
    return free


@pytest.fixture(scope="module", autouse=True)
def _free_after_a_file():
    """Else a process grows by gigabytes."""
    yield
    free()


# Bytes: a test may take some hundreds of megabytes more, a laptop has eight gigabytes. A process
# that keeps nearly as much (one that had the real model) is not freed after every test.
LARGE, GROWN = 1.7e9, 0.3e9

_kept = 0  # bytes, after the last `free`
_real_models: dict[str, Any] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None):
    yield
    for name in set(_real_models).difference(nextitem.fixturenames if nextitem else ()):
        del _real_models[name]
    if REAL_MODEL in item.name or _resident() > max(LARGE, _kept + GROWN):
        free()


def _resident() -> int:
    """Bytes of this process in memory."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Settings of a test, which are also those of the fixtures that it is the first to ask for."""
    marker = item.get_closest_marker("default_compilation")  # (False), of a test in such a file
    quick = not uses_real_model(item) and (marker is None or marker.args == (False,))
    _configure("jax_disable_most_optimizations", quick)
    _overrides.clear()
    os.environ["XLA_FLAGS"] = _XLA_FLAGS
    if quick and _HAS_OLDER_EMITTERS:
        _overrides["xla_cpu_use_fusion_emitters"] = False
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    if quick != jax.config.jax_enable_compilation_cache:
        _configure("jax_enable_compilation_cache", quick)
        compilation_cache.reset_cache()  # else JAX goes on with what it found at first
    return (yield)


@pytest.fixture(scope="session")
def smollm2_gguf() -> pathlib.Path:
    """The real model's file, fetched once a machine into the cache folder."""
    from sinkjax.checkpoint import registry

    return registry.fetch("smollm2-135m")


@pytest.fixture
def smollm2(smollm2_gguf):
    """The real model, float32."""
    import sinkjax

    if "smollm2" not in _real_models:
        _real_models["smollm2"] = sinkjax.load(smollm2_gguf)
        _share_weights()
    return _real_models["smollm2"]


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf):
    import sinkjax

    return sinkjax.load_tokenizer(smollm2_gguf)


@pytest.fixture
def figures_are_blank(monkeypatch):
    """For tests that hold records, or pages to each other: drawing is most of a page's time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    monkeypatch.setattr(FigureCanvasAgg, "draw", FigureCanvasAgg.get_renderer)


@pytest.fixture(scope="session")
def small_tokenizer(smollm2_tokenizer):
    """The real model's, with the first 4,096 of its tokens: logits are what small models cost."""
    import tokenizers

    content = json.loads(smollm2_tokenizer.backend_tokenizer.to_str())
    known = {token: n for token, n in content["model"]["vocab"].items() if n < 4096}
    merges = [pair for pair in content["model"]["merges"] if "".join(pair) in known]
    content["model"] |= {"vocab": known, "merges": merges}
    return type(smollm2_tokenizer)(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(content)),
        chat_template=smollm2_tokenizer.chat_template,
        **smollm2_tokenizer.special_tokens_map,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, small_tokenizer):
    """A folder with a random Llama of two layers, and a small tokenizer."""
    import hf

    folder = tmp_path_factory.mktemp("tiny")
    return hf.save_small(folder, small_tokenizer, max_position_embeddings=128)


@pytest.fixture(scope="session")
def roomy(tmp_path_factory, small_tokenizer):
    """A random Llama of two layers with room for questions, and a small tokenizer beside it."""
    import hf

    folder = tmp_path_factory.mktemp("roomy")
    return hf.save_small(folder, small_tokenizer, max_position_embeddings=1024)


@pytest.fixture
def hf_smollm2(smollm2_gguf):
    """transformers' reading of the same file: the oracle. Eager attention, float32."""
    import transformers
    from hf import torch

    dtype = torch.float32  # first, since it skips the test where there is no PyTorch
    if "hf_smollm2" not in _real_models:
        _real_models["hf_smollm2"] = transformers.AutoModelForCausalLM.from_pretrained(
            smollm2_gguf.parent,
            gguf_file=smollm2_gguf.name,
            attn_implementation="eager",
            dtype=dtype,
        ).eval()
        _share_weights()
    return _real_models["hf_smollm2"]


@pytest.fixture
def hf_smollm2_later(request):
    """A function that gives `hf_smollm2`, for a test that needs the memory for something else."""
    from hf import torch

    assert torch.float32  # first, as above
    return lambda: request.getfixturevalue("hf_smollm2")


def _share_weights() -> None:
    """Has transformers' real model read ours' weights, where both are there."""
    if _real_models.keys() == {"smollm2", "hf_smollm2"}:
        import hf

        hf.share_weights(_real_models["hf_smollm2"], _real_models["smollm2"])
        free()
