"""Tiny models that several test files compile, each compiled once."""

import hf
import pytest

import sinkjax


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random Llama and transformers' reading of the same weights."""
    folder = tmp_path_factory.mktemp("tiny")
    oracle = hf.save_llama(folder)
    return sinkjax.load(folder), oracle
