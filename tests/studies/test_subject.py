"""Shapes from files: what no config is, and the text part of what sees images as well."""

import json

import pytest

from sinkjax.errors import InputError
from sinkjax.models.hf_config import from_hf_config
from sinkjax.studies.subject import SHAPE, shape_config

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("content", ["[1]", "5", '"text"', "null", "{", "\udcff"])
def test_a_file_that_is_no_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    for name in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(InputError, match=r"no known shape, and .* cannot be read as JSON"):
            shape_config(f"{SHAPE}{name}")


@pytest.mark.parametrize("name", ["none", "a" * 300, "a\0b", ""])
def test_a_name_of_no_file_is_refused_with_the_shapes_there_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # which none of them names
    with pytest.raises(InputError, match=r"no known shape.*; known are llama-2-7b, "):
        shape_config(f"{SHAPE}{name}")


def test_the_shape_of_what_sees_images_is_its_text_parts(tmp_path):
    part = {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": None}
    whole = {"model_type": "mistral3", "text_config": part, "vision_config": {}, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert shape_config(f"{SHAPE}{tmp_path}") == from_hf_config({**part, "eos_token_id": 2})
