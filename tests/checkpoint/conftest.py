"""A tiny Llama to be written to GGUF files, and a writer for one."""

import gguf
import hf
import pytest
from gguf_files import SHAPE


@pytest.fixture(scope="module")
def model():
    return hf.make_llama(**SHAPE)


@pytest.fixture
def writer(tmp_path):
    return gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
