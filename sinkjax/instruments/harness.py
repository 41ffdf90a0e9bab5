"""The tasks of lm-evaluation-harness, on the baseline or under a mask.

  import lm_eval
  from sinkjax.instruments.harness import HarnessLM

  fast = sinkjax.specialize(model, mask)
  lm_eval.simple_evaluate(HarnessLM(fast, tokenizer), tasks=["lambada_openai"])

The harness's own command has the model by its name, `sinkjax`, where the release looks for
plug-ins. 0.4.13 does not, and this module is that command with the name known:

  python -m sinkjax.instruments.harness --model sinkjax \\
    --model_args pretrained=smollm2-135m,mask=mask.json,dtype=float32 --tasks lambada_openai

Needs the extra `lm-eval`: pip install 'sinkjax[lm-eval]'.
"""

import bisect
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from sinkjax.checkpoint.chat import ChatTemplate
from sinkjax.checkpoint.load import load, load_tokenizer
from sinkjax.distributed import to_host
from sinkjax.errors import InputError, Problem, whole
from sinkjax.instruments.token_losses import OutputHead, residuals, score_tokens
from sinkjax.masks.file import load_mask
from sinkjax.models.decoder import Llama, check_model
from sinkjax.models.finite import check_finite
from sinkjax.models.sharding import fitting_rows, lay_rows
from sinkjax.programs.compile import compile, longest_context
from sinkjax.programs.generate import MAX_STOP_TOKENS, Program, prompt_problems
from sinkjax.specialize.build import specialize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "sinkjax"
"""What the harness calls a `HarnessLM` by."""

_BATCH_SIZE = 8
_SAMPLING = ("temperature", "top_k", "top_p")
_NEUTRAL = {"num_beams": 1, "min_p": 0, "repetition_penalty": 1, "num_return_sequences": 1}
"""Settings of generation that there are not here, with the value that changes nothing."""

_SHORTEST = 32  # tokens that inputs are padded to at least: fewer programs for short ones

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request of the harness: its texts, and the tokens of context and continuation."""


class HarnessLM(TemplateLM):
    """A model as the harness takes it.

    An input longer than the model's context loses its beginning. Inputs are padded to powers of
    two, each of which is compiled once. Sampling draws from all tokens unless a task says
    otherwise.

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
        batch_size: int = _BATCH_SIZE,
        max_length: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        check_model(model)
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.seed = batch_size, seed
        self.max_length = model.config.context if max_length is None else max_length
        most = longest_context(model.config)
        problems = [
            Problem(name, value, "whole numbers from 1 on are allowed")
            for name, value in (("batch_size", batch_size), ("max_length", self.max_length))
            if (whole(value) or 0) < 1
        ]
        if not problems and most is not None and self.max_length > most:
            text = f"the model is made for {most} tokens"
            problems.append(Problem("max_length", max_length, text))
        if whole(seed) is None:
            problems.append(Problem("seed", seed, "a whole number is needed"))
        if problems:
            raise InputError(*problems)
        self._chat_text = ChatTemplate(tokenizer, "the model")
        self._programs: dict[tuple[tuple[int, ...], int, int], Program] = {}
        self._special = dict(
            zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        )
        for token, added in tokenizer.added_tokens_decoder.items():
            if added.special:
                self._special[added.content] = token

    @classmethod
    def named(
        cls,
        pretrained: str,
        *,
        mask: str | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = _BATCH_SIZE,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> "HarnessLM":
        """Loads a model by names, as the harness's command gives them.

        Args:
          pretrained, revision, dtype: of the model and its tokenizer, as for `sinkjax.load`.
          mask: a mask's file, or the name of one that ships; None for the baseline.
          batch_size: rows, or `auto` for 8, which `max_batch_size` bounds.
          max_length, seed: as of the class.
          device: not read. The command names cuda:0 unless it is told otherwise; the model runs
            where JAX does.

        Raises:
          InputError: as `sinkjax.load`, `load_mask`, `specialize` and the class do.
        """
        if str(batch_size).split(":")[0] == "auto":
            most = max_batch_size or _BATCH_SIZE
            batch_size = min(most, _BATCH_SIZE) if whole(most) else most
        named = {"revision": None if revision is None else str(revision)}
        saved = None if mask is None else load_mask(str(mask))  # the harness makes 512 a number
        tokenizer = load_tokenizer(str(pretrained), **named)
        model = load(str(pretrained), dtype=dtype, **named)
        if saved is not None:
            model = specialize(model, saved.mask, fills=saved.fills)
        rows = int(batch_size) if str(batch_size).isdecimal() else batch_size
        return cls(model, tokenizer, batch_size=rows, max_length=max_length, seed=seed)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessLM":
        """Makes what `named` makes; arguments that are None are left out."""
        more = {key: value for key, value in (additional_config or {}).items() if value is not None}
        given, known = {**arg_dict, **more}, inspect.signature(cls.named).parameters
        problems = [
            Problem(name, given[name], f"it is unknown; known are {', '.join(known)}")
            for name in given.keys() - known.keys()
        ]
        if "pretrained" not in given:
            problems.append(Problem("pretrained", None, "name a model, such as smollm2-135m"))
        if problems:
            raise InputError(*problems)
        return cls.named(**given)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "HarnessLM":
        """Makes what `named` makes, of `pretrained=...,mask=...`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: BOS, or EOS where there is none.

        Raises:
          InputError: where the tokenizer has neither.
        """
        for token in (self.tokenizer.bos_token_id, self.eot_token_id):
            if token is not None:
                return token
        raise InputError(
            "a text without a context follows a BOS or an EOS, and the tokenizer has neither: "
            "set its bos_token, or choose a task whose texts have contexts"
        )

    @property
    def tokenizer_name(self) -> str:
        """The name by which the harness keeps requests apart in its cache."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The tokenizer's own template, for the model to go on or to finish the last message.

        As with the harness's own models, one that fails is tried again without system messages.

        Raises:
          InputError: for a template that fails, as `ChatTemplate` says.
        """
        without = [message for message in chat_history if message["role"] != "system"]
        how = {"add_generation_prompt": add_generation_prompt}
        how["continue_final_message"] = not add_generation_prompt
        try:
            return self._chat_text(chat_history, **how)
        except InputError:
            if len(without) == len(chat_history):
                raise
        logging.warning("The chat template fails: once more without system messages.")
        return self._chat_text(without, **how)

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
        """ln P of each continuation, and whether greedy decoding says it.

        Raises:
          InputError: for a continuation without a token, or longer than the model's context, and
            for tokens outside the vocabulary.
        """
        rows = []
        for index, (_, context, wanted) in enumerate(requests):
            # A context may have no token, as " " has none where spaces go to the continuation.
            row = (context or [self.prefix_token_id]) + wanted
            self._check(f"request {index}", row, wanted)
            rows.append(row[-self.max_length - 1 :])
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

    def _check(self, which: str, row: Sequence[int], wanted: Sequence[int]) -> None:
        problems = list(prompt_problems(np.asarray(row), self.model.config.vocab_size))
        if not wanted:
            problems.append("has a continuation without a token of its own")
        if len(wanted) > self.max_length:
            text = f"of more than the {self.max_length} that the model can see"
            problems.append(f"has a continuation of {len(wanted)} tokens, {text}")
        if problems:
            raise InputError(*(f"{which} {problem}" for problem in problems))

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
        arrays = tokens, lengths, places, targets
        tokens, lengths, places, targets = (lay_rows(self.model, array) for array in arrays)
        residual = residuals(self.model, tokens, lengths)
        residual = jnp.take_along_axis(residual, places[:, :, None], axis=1)
        scores = to_host(score_tokens(OutputHead(self.model), residual, targets))
        nll, correct = scores.nll.astype(np.float64)[:count], scores.correct
        totals = [nll[index, size - n :].sum() for index, n in enumerate(wanted)]
        check_finite("logits", totals)
        return [
            (-float(total), bool(correct[index, size - n :].all()))
            for index, (total, n) in enumerate(zip(totals, wanted, strict=True))
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues each context up to its stop texts, an EOS, or as many tokens as it may have.

        Stop texts that are special tokens end a continuation where they are drawn. The others are
        looked for when it is whole: they do not shorten the work.

        Raises:
          InputError: for settings that there are not here, and such as leave no room for a context.
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
        # The command makes a number of a text that looks like one.
        stops = [str(stop) for stop in how["until"] if stop not in (None, "")]
        new = how["max_gen_toks"]
        sampling = self._sampling(how)
        if not 0 < new < self.max_length:
            text = f"it has to leave room for a prompt in a context of {self.max_length} tokens"
            raise InputError(Problem("max_gen_toks", new, text))
        prompts = [
            self.tok_encode(context)[new - self.max_length :] or [self.prefix_token_id]
            for context in contexts
        ]
        rows = fitting_rows(self.model, min(self.batch_size, len(prompts)))
        room = min(self.max_length, _power_of_two(max(map(len, prompts))) + new)
        buckets = tuple(sorted({min(room, _power_of_two(len(prompt))) for prompt in prompts}))
        if (buckets, room, rows) not in self._programs:
            self._programs[buckets, room, rows] = compile(
                self.model, batch_size=rows, prefill_lengths=buckets, max_length=room
            )
        ends = {self.eot_token_id, *self.model.config.eos_token_ids}
        ends |= {self._special[stop] for stop in stops if stop in self._special}
        ends = {end for end in ends if end is not None and end < self.model.config.vocab_size}
        new_tokens = self._programs[buckets, room, rows].generate(
            prompts,
            max_new_tokens=new,
            **sampling,
            stop_tokens=sorted(ends)[:MAX_STOP_TOKENS],
            seed=self.seed,
        )
        return [self._text(tokens.tolist(), ends, stops) for tokens in new_tokens]

    @staticmethod
    def _sampling(how: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of drawing, of those that a task gives."""
        own = {"do_sample", "until", "max_gen_toks", *_SAMPLING}
        problems = [
            Problem(name, value, "there is no such setting here; leave it out")
            for name, value in how.items()
            if name not in own and value is not None and value != _NEUTRAL.get(name)
        ]
        sampling = {name: how.get(name) for name in _SAMPLING} if how["do_sample"] else {}
        if sampling and not sampling["temperature"]:
            text = "with do_sample one above 0 is needed"
            problems.append(Problem("temperature", sampling["temperature"], text))
        if problems:
            raise InputError(*problems)
        if sampling:
            sampling["top_k"] = sampling["top_k"] or None  # 0 is all tokens, as in transformers
        return sampling

    def _text(self, tokens: list[int], ends: set[int], stops: Sequence[str]) -> str:
        """What new tokens say up to the first that ends them, or the first stop text.

        As with the harness's own model a row at a time, a stop text may also stand in what special
        tokens are written as, of which nothing is left in the text.
        """
        count = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        tokens, decode = tokens[:count], self.tokenizer.decode
        texts = [decode(tokens, skip_special_tokens=True)]
        for stop in stops:
            if stop in decode(tokens):
                counts = range(len(tokens))
                count = bisect.bisect_left(
                    counts, True, key=lambda n, s=stop: s in decode(tokens[:n])
                )
                before = decode(tokens[:count], skip_special_tokens=True)
                texts.append(before.removesuffix(self._plain(stop)))
        text = min(texts, key=len)
        for stop in stops:
            text = text.split(stop)[0]
        return text

    def _plain(self, text: str) -> str:
        """A text without the special tokens in it."""
        for special in self._special:
            text = text.replace(special, "")
        return text


def _power_of_two(length: int, least: int = _SHORTEST) -> int:
    return max(least, 1 << (length - 1).bit_length())


if NAME not in model_registry:  # a release with plug-ins has it by this package's entry point
    model_registry.register(NAME, target=HarnessLM)

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
