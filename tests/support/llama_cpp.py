"""llama.cpp, through the wheel cyllama: another reader of GGUF files, the oracle for the format."""

import pathlib

import numpy as np
import pytest


def logits(path: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    """Its next-token logits of one row of tokens, float32 [T, V]; skips where it is not installed.

    Its cache is float32 as everything else.
    """
    lib = pytest.importorskip("cyllama.llama.llama_cpp", reason="needs cyllama: the oracle")

    class Model(lib.LlamaModel):
        """With the attribute by which cyllama 0.2.18 reads logits, and which it lacks."""

    lib.disable_logging()
    lib.ggml_backend_load_all()
    model = Model(str(path), lib.LlamaModelParams(), verbose=False)
    model.n_vocab = model.get_vocab().n_vocab
    params = lib.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = 128
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    context = lib.LlamaContext(model, params, verbose=False)
    batch = lib.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
    for position, token in enumerate(tokens):
        batch.add(int(token), position, [0], True)
    context.decode(batch)
    return np.stack([context.get_logits_ith(i) for i in range(len(tokens))])
