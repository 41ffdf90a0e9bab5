"""Checkpoints that see images as well: their text part, against transformers reading the whole."""

import json

import hf
import numpy as np
import pytest
import safetensors.numpy
import tiny
import transformers
from families import KINDS

import sinkjax
from sinkjax import InputError
from sinkjax.checkpoint.folder import CONFIG, WEIGHTS
from sinkjax.checkpoint.text_part import text_config

torch = pytest.importorskip("torch", reason="the oracle")

VISION = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
WHOLES = {
    "gemma3": ("gemma3", "siglip_vision_model"),
    "mistral3": ("mistral_windows", "pixtral"),
}
"""Of each the kind of its text, and the `model_type` of what sees images."""


@pytest.fixture(params=WHOLES)
def whole(request, tmp_path):
    """A folder, and what transformers makes of it."""
    return tmp_path, save_whole(tmp_path, request.param, tied=request.param == "gemma3")


def save_whole(folder, name: str, *, tied: bool):
    """Writes a random model to a folder; returns it."""
    text_kind, vision_kind = WHOLES[name]
    text = {**hf.TINY, **KINDS[text_kind]}
    kind = text.pop("family")
    text.pop("final_logit_softcapping", None)  # which transformers computes of text alone
    config = transformers.AutoConfig.for_model(
        name,
        text_config={**text, "model_type": kind},
        vision_config={**VISION, "model_type": vision_kind},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_prompt_of_text_gives_the_logits_of_the_whole(whole):
    folder, oracle = whole
    tokens = hf.random_tokens((2, 60))
    model = sinkjax.load(folder)
    np.testing.assert_allclose(
        tiny.call(model, tokens), hf.logits(oracle, tokens), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", WHOLES)
def test_the_whole_says_whether_its_head_is_its_embedding(name, tmp_path):
    """Its text part says the opposite here, as each family's does by default."""
    oracle = save_whole(tmp_path, name, tied=name != "gemma3")
    tokens = hf.random_tokens((1, 8))
    logits = tiny.call(sinkjax.load(tmp_path), tokens)
    np.testing.assert_allclose(logits, hf.logits(oracle, tokens), rtol=0, atol=1e-4)


def test_tensors_are_known_by_their_older_and_their_newer_names(whole):
    folder, _ = whole
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    model = sinkjax.load(folder)
    names = {
        True: lambda name: name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ),
        False: lambda name: name.replace("model.language_model.", "language_model.model.").replace(
            "lm_head", "language_model.lm_head"
        ),
    }
    is_old = any(name.startswith("language_model.") for name in tensors)
    renamed = {names[is_old](name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    safetensors.numpy.save_file(renamed, folder / WEIGHTS)
    assert sinkjax.model_digest(sinkjax.load(folder)) == sinkjax.model_digest(model)
    twice = {name: 2 * tensor for name, tensor in tensors.items() if "norm.weight" in name}
    safetensors.numpy.save_file({**renamed, **twice}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"norm\.weight is unknown: no part of a Llama"):
        sinkjax.load(folder)


def test_a_text_part_is_checked_as_a_model_of_its_own(whole):
    folder, _ = whole
    config = json.loads((folder / CONFIG).read_text())
    config["text_config"] |= {"hidden_act": "nonsense", "strange": 3}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError) as refused:
        sinkjax.load(folder)
    assert "nonsense" in str(refused.value)
    assert "unknown attribute strange" in str(refused.value)


def test_a_whole_without_its_text_part_is_refused(whole):
    folder, _ = whole
    config = json.loads((folder / CONFIG).read_text())
    config["text_config"] = None
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match="model_type is"):
        sinkjax.load(folder)


def test_special_tokens_of_the_whole_are_those_of_its_text():
    part = {"model_type": "gemma3_text", "eos_token_id": 1, "pad_token_id": 0}
    config = text_config({"model_type": "gemma3", "text_config": part, "eos_token_id": [1, 106]})
    assert config == {**part, "eos_token_id": [1, 106]}
    assert text_config({"model_type": "llama", "text_config": part})["model_type"] == "llama"
