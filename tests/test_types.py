"""The shapes and dtypes that signatures name, checked at every call of a small model's work."""

import subprocess
import sys

_CHECKED = """
from jaxtyping import TypeCheckError, install_import_hook

folders = ["sinkjax.masks", "sinkjax.attention", "sinkjax.models"]
with install_import_hook(folders, "beartype.beartype"):
    import sinkjax
    import sinkjax.instruments.sinks
    import sinkjax.models.sampling as sampling
    import sinkjax.programs.compile
    import sinkjax.specialize.build
    from sinkjax.models.config import LlamaConfig, RopeConfig
    from sinkjax.models.decoder import Llama

import jax.numpy as jnp
import numpy as np
from flax import nnx

config = LlamaConfig(
    vocab_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, embed_dim=16, mlp_dim=24,
    max_length=64, norm_eps=1e-5, attention_bias=True, rope=RopeConfig(type="dynamic", factor=2.0),
)
model = Llama(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
tokens, lengths = jnp.arange(14).reshape(2, 7), jnp.array([7, 5])
mask = sinkjax.SinkMask.from_text("L0: f w(1,2) 2s(first) | L1: c(0,0) c(0,1) w(2,3) s(zero)")
for each in (model, sinkjax.specialize(model, mask)):
    logits, cache = each.prefill(tokens, lengths=lengths, max_length=9)
    sampler = sampling.make_sampler([0, 1], temperature=1.0, top_k=3)
    for _ in range(2):
        token = sampling.draw(logits, sampler, cache.lengths)
        logits, cache = each.decode(token, cache)
stats = sinkjax.measure_sinks(model, tokens, lengths=lengths)
scores = np.asarray(stats.score("mean"))
sinkjax.SinkMask.from_scores(scores, threshold=0.3, path=sinkjax.Sink("first"))

for wrong in (
    lambda: model(tokens[0]),
    lambda: model.logits(logits),
    lambda: sinkjax.SinkMask.from_scores(scores[0, 0], threshold=0.3, path=sinkjax.Sink("first")),
):
    try:
        wrong()
    except TypeCheckError:
        print("refused")
"""


def test_every_array_has_the_shape_and_dtype_that_its_annotation_names():
    """Full, specialized, ragged and bfloat16; the hook is there, for wrong shapes are refused."""
    ran = subprocess.run([sys.executable, "-c", _CHECKED], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["refused"] * 3
