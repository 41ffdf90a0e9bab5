"""What runs Llamas beside sinkjax, each on its own terms: one model, one shape of work a time.

An engine takes weights once. For a batch of prompts of one length it gives two calls to be timed,
whose runs end when their last token is on the host, and the tokens that it decodes greedily.
"""

import abc
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sinkjax
from benchmarks.write_gguf import write_gguf
from sinkjax.errors import InputError
from sinkjax.studies.timing.pairs import Call
from sinkjax.studies.timing.stages import decode_call, prefill_call


class Engine(abc.ABC):
    """One of them.

    Attributes:
      name: for the tables.
      is_float32: whether its greedy tokens have to be those of the others in float32.
    """

    name: str
    is_float32: bool

    @abc.abstractmethod
    def prefill(self, tokens: np.ndarray) -> Call:
        """The call from int32 [B, T] on the host to the first new token of every row there."""

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray, steps: int) -> Call:
        """The call of so many greedy steps of every row, after its prompt and without it."""

    @abc.abstractmethod
    def greedy(self, tokens: np.ndarray, count: int) -> np.ndarray:
        """New tokens, int [B, count]."""


class Sinkjax(Engine):
    """The baseline's program."""

    name = "sinkjax"
    is_float32 = True

    def __init__(self, model: sinkjax.Llama):
        self._model = model
        self._programs: dict[tuple[int, ...], sinkjax.Program] = {}

    def program(self, shape: tuple[int, int], new: int) -> sinkjax.Program:
        """Compiles for prompts [B, T] and so many tokens after them; the last one stays."""
        if (*shape, new) not in self._programs:
            self._programs = {
                (*shape, new): sinkjax.compile(
                    self._model,
                    batch_size=shape[0],
                    prefill_lengths=[shape[1]],
                    max_length=shape[1] + new,
                )
            }
        return self._programs[(*shape, new)]

    def prefill(self, tokens: np.ndarray) -> Call:
        return prefill_call(self.program(tokens.shape, 1), tokens)

    def decode(self, tokens: np.ndarray, steps: int) -> Call:
        return decode_call(self.program(tokens.shape, steps), tokens, steps)

    def margin(self, tokens: np.ndarray) -> float:
        """Returns how much the likeliest next logit is above the second after int [T]."""
        run = jax.jit(lambda model, row: model.prefill(row, max_length=row.shape[1])[0])
        second, first = np.sort(np.asarray(run(self._model, jnp.asarray(tokens)[None]))[0])[-2:]
        return float(first - second)

    def greedy(self, tokens: np.ndarray, count: int) -> np.ndarray:
        program = self.program(tokens.shape, count)
        return np.stack(program.generate(tokens, max_new_tokens=count))


class Transformers(Engine):
    """transformers on PyTorch with its default cache, without what `generate` adds around it."""

    def __init__(self, folder: pathlib.Path, attention: str, dtype: str, threads: int):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise _missing("transformers") from error
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self._torch, self._cache = torch, transformers.DynamicCache
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attention, dtype=getattr(torch, dtype)
        ).eval()
        self.name = f"PyTorch {attention}" + (" bfloat16" if dtype == "bfloat16" else "")
        self.is_float32 = dtype == "float32"

    def prefill(self, tokens: np.ndarray) -> Call:
        return Call(lambda: self._first(tokens))

    def decode(self, tokens: np.ndarray, steps: int) -> Call:
        first, cache = self._first(tokens)

        def rewind() -> None:
            if beyond := cache.get_seq_length() - tokens.shape[1]:
                cache.crop(-beyond)

        return Call(lambda: self._steps(first, cache, steps), rewind)

    def greedy(self, tokens: np.ndarray, count: int) -> np.ndarray:
        first, cache = self._first(tokens)
        return np.concatenate([first[:, None], self._steps(first, cache, count - 1)], axis=1)

    def _first(self, tokens: np.ndarray) -> tuple[np.ndarray, Any]:
        cache = self._cache(config=self._model.config)
        return self._next(self._torch.tensor(tokens, dtype=self._torch.long), cache), cache

    def _steps(self, token: np.ndarray, cache: Any, steps: int) -> np.ndarray:
        new = []
        for _ in range(steps):
            token = self._next(self._torch.as_tensor(token[:, None]), cache)
            new.append(token)
        return np.array(new, np.int64).reshape(steps, len(token)).T

    def _next(self, ids: Any, cache: Any) -> np.ndarray:
        with self._torch.inference_mode():
            logits = self._model(
                input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1
            ).logits
            return logits[:, -1].argmax(dim=-1).numpy()


class LlamaCpp(Engine):
    """llama.cpp through the wheel cyllama: float32 weights, its default cache of float16."""

    name = "llama.cpp"
    is_float32 = True

    def __init__(self, model: sinkjax.Llama, threads: int):
        try:
            from cyllama.llama import llama_cpp
        except ImportError as error:
            raise _missing("llama.cpp") from error
        self._lib, self._threads = llama_cpp, threads
        llama_cpp.disable_logging()
        llama_cpp.ggml_backend_load_all()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.gguf"
            write_gguf(model, path)
            params = llama_cpp.LlamaModelParams()
            params.n_gpu_layers = 0
            params.use_mmap = False  # weights in memory, on large pages where the process has them
            self._model = llama_cpp.LlamaModel(str(path), params)
        chain = llama_cpp.LlamaSamplerChainParams()
        self._sampler = llama_cpp.LlamaSampler(chain)
        self._sampler.add_greedy()

    def prefill(self, tokens: np.ndarray) -> Call:
        context = self._context(tokens.shape, 1)
        batch = self._prompt(tokens)
        return Call(
            lambda: self._decoded(context, batch, self._last(tokens)),
            lambda: context.kv_cache_clear(False),
        )

    def decode(self, tokens: np.ndarray, steps: int) -> Call:
        rows, length = tokens.shape
        context = self._context(tokens.shape, steps)
        first = self._decoded(context, self._prompt(tokens), self._last(tokens))

        def rewind() -> None:
            for row in range(rows):
                context.memory_seq_rm(row, length, -1)

        return Call(lambda: self._steps(context, first, length, steps), rewind)

    def greedy(self, tokens: np.ndarray, count: int) -> np.ndarray:
        context = self._context(tokens.shape, count)
        first = self._decoded(context, self._prompt(tokens), self._last(tokens))
        later = self._steps(context, first, tokens.shape[1], count - 1)
        return np.array([first, *later]).T

    def _context(self, shape: tuple[int, int], new: int) -> Any:
        rows, length = shape
        params = self._lib.LlamaContextParams()
        params.n_seq_max = rows
        params.n_ctx = rows * (length + new)
        params.n_batch = rows * length
        params.n_threads = params.n_threads_batch = self._threads
        return self._lib.LlamaContext(self._model, params)

    def _prompt(self, tokens: np.ndarray) -> Any:
        batch = self._lib.LlamaBatch(n_tokens=tokens.size, embd=0, n_seq_max=1)
        last = tokens.shape[1] - 1
        for row, prompt in enumerate(tokens.tolist()):
            for position, token in enumerate(prompt):
                batch.add(token, position, [row], position == last)
        return batch

    @staticmethod
    def _last(tokens: np.ndarray) -> list[int]:
        """Returns where the logits of each row's last token are."""
        rows, length = tokens.shape
        return [length * (row + 1) - 1 for row in range(rows)]

    def _decoded(self, context: Any, batch: Any, places: list[int]) -> list[int]:
        context.decode(batch)
        return [self._sampler.sample(context, place) for place in places]

    def _steps(self, context: Any, token: list[int], position: int, steps: int) -> list[list[int]]:
        batch = self._lib.LlamaBatch(n_tokens=len(token), embd=0, n_seq_max=1)
        new = []
        for step in range(steps):
            batch.clear()
            for row, latest in enumerate(token):
                batch.add(latest, position + step, [row], True)
            token = self._decoded(context, batch, list(range(len(token))))
            new.append(token)
        return new


def _missing(engine: str) -> InputError:
    return InputError(
        f"--engines: {engine} is not installed: pip install '.[peers]', or leave it out"
    )
