"""The tasks of lm-evaluation-harness, on the baseline or under a mask.

  import lm_eval
  from sinkjax.instruments.harness import HarnessLM

  fast = sinkjax.specialize(model, mask)
  lm_eval.simple_evaluate(HarnessLM(fast, tokenizer), tasks=["lambada_openai"])

Needs the extra `lm-eval`: pip install 'sinkjax[lm-eval]'.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sinkjax.instruments.token_losses import OutputHead, residuals, score_tokens
from sinkjax.models.decoder import Llama
from sinkjax.programs.compile import compile
from sinkjax.programs.generate import Program

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 32  # tokens that inputs are padded to at least: fewer programs for short ones

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request of the harness: its texts, and the tokens of context and continuation."""


class HarnessLM(TemplateLM):
    """A model as the harness takes it.

    An input longer than the model's context loses its beginning. Inputs are padded to powers of
    two, each of which is compiled once.

    Attributes:
      model: a `Llama`, or what `sinkjax.specialize` makes of one.
      tokenizer: its own.
      batch_size: rows that go through it at once.
      max_length: tokens of its context.
      seed: of sampling, where a task samples.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.seed = batch_size, seed
        self.max_length = max_length or model.config.max_length
        self._programs: dict[tuple[tuple[int, ...], int], Program] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The name by which the harness keeps requests apart in its cache."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The tokenizer's own template, for the model to go on or to finish the last message."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; without a BOS of the tokenizer's where the text has one already."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = bos is None or not string.startswith(bos)
        return self.tokenizer.encode(
            string, add_special_tokens=add_special_tokens, verbose=False, **kwargs
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """ln P of whole texts, each token once, with as much before it as the context holds."""
        pieces, owners = [], []
        for index, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in rolling]
            pieces += own
            owners += [index] * len(own)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(pieces, disable_tqdm=disable_tqdm)
        for owner, (total, _) in zip(owners, scored, strict=True):
            totals[owner] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """ln P of each continuation, and whether greedy decoding says it."""
        rows = [(context + wanted)[-self.max_length - 1 :] for _, context, wanted in requests]
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        with tqdm(total=len(rows), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                wanted = [len(requests[index][2]) for index in batch]
                of_batch = self._score([rows[index] for index in batch], wanted)
                for index, score in zip(batch, of_batch, strict=True):
                    scores[index] = score
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], score)
                bar.update(len(batch))
        return scores

    def _score(
        self, rows: Sequence[Sequence[int]], wanted: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """Scores the last `wanted` tokens of each row of a batch."""
        count = len(rows)
        length = min(self.max_length, _power_of_two(max(map(len, rows)) - 1))
        size = min(length, _power_of_two(max(wanted), least=1))
        tokens = np.zeros((self.batch_size, length), np.int32)
        targets = np.zeros((self.batch_size, size), np.int32)
        lengths = np.ones(self.batch_size, np.int32)
        for index, row in enumerate(rows):
            lengths[index] = len(row) - 1
            tokens[index, : len(row) - 1] = row[:-1]
            targets[index, size - wanted[index] :] = row[len(row) - wanted[index] :]
        places = np.maximum(lengths[:, None] - size + np.arange(size), 0)
        residual = residuals(self.model, jnp.asarray(tokens), jnp.asarray(lengths))
        residual = jnp.take_along_axis(residual, jnp.asarray(places)[:, :, None], axis=1)
        scores = score_tokens(OutputHead(self.model), residual, jnp.asarray(targets))
        nll, correct = np.asarray(scores.nll, np.float64)[:count], np.asarray(scores.correct)
        return [
            (-float(nll[index, size - n :].sum()), bool(correct[index, size - n :].all()))
            for index, n in enumerate(wanted)
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues each context up to its stop texts, an EOS, or as many tokens as it may have.

        Stop texts are looked for when a continuation is whole: they do not shorten the work.
        """
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        with tqdm(total=len(requests), desc="continuations", disable=disable_tqdm) as bar:
            for group in groups.values():
                how = normalize_gen_kwargs(requests[group[0]].args[1])
                contexts = [requests[index].args[0] for index in group]
                for index, text in zip(group, self._continued(contexts, how), strict=True):
                    texts[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                bar.update(len(group))
        return texts

    def _continued(self, contexts: Sequence[str], how: Mapping[str, Any]) -> list[str]:
        """Continuations of contexts that are asked for in the same way."""
        new = how["max_gen_toks"]
        if new >= self.max_length:
            raise ValueError(f"{new} new tokens leave no room in a context of {self.max_length}")
        prompts = [
            self.tok_encode(context)[new - self.max_length :] or [self.prefix_token_id]
            for context in contexts
        ]
        room = min(self.max_length, _power_of_two(max(map(len, prompts))) + new)
        buckets = tuple(sorted({min(room, _power_of_two(len(prompt))) for prompt in prompts}))
        if (buckets, room) not in self._programs:
            self._programs[buckets, room] = compile(
                self.model,
                batch_size=min(self.batch_size, len(prompts)),
                prefill_lengths=buckets,
                max_length=room,
            )
        new_tokens = self._programs[buckets, room].generate(
            prompts,
            max_new_tokens=new,
            temperature=how["temperature"] if how["do_sample"] else 0.0,
            top_k=how.get("top_k"),
            top_p=how.get("top_p"),
            stop_tokens={self.eot_token_id, *self.model.config.eos_token_ids},
            seed=self.seed,
        )
        texts = self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        for stop in filter(None, how["until"]):
            texts = [text.split(stop)[0] for text in texts]
        return texts


def _power_of_two(length: int, least: int = _SHORTEST) -> int:
    return max(least, 1 << (length - 1).bit_length())
