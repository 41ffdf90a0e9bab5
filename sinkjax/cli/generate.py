"""Generates text with a model, under a mask or a plan, and beside the baseline on request.

  sinkjax generate --prompt="The capital of France is"
  sinkjax generate --prompt="Name three rivers." --chat --temperature=0.7 --seed=1
  sinkjax generate --prompt="Once upon a time" --mask=mask.json --compare
  sinkjax generate --prompt="Hello world" --mask=mask.json --up_to=10

--mask names a file that `sinkjax mask` or sinkjax.save_mask wrote. With --up_to it serves
prompts of up to so many tokens, and the baseline longer ones. What happens to a text that grows
beyond is --crossing: with "stay" the mask serves to the end, with "prefill" all tokens so far are
prefilled again without it.

--plan names a JSON file with masks for more lengths than two, each a mask's file or its text:

  {"crossing": "stay", "stages": [{"up_to": 10, "mask": "short.json"},
                                  {"up_to": null, "mask": "L0-29: 9f"}]}

Every program is compiled for the lengths that the prompts need; how long that took is shown, as are
the time to the first token and the tokens a second after it.
"""

import dataclasses
import os
import pathlib
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import sinkjax
from sinkjax.checkpoint.chat import ChatTemplate
from sinkjax.cli import terminal
from sinkjax.cli.tool import ModelSettings, ProgramSettings, Tool, as_in
from sinkjax.errors import InputError, Problem, about, explaining, problems_of
from sinkjax.masks.mask import SinkMask
from sinkjax.models.sampling import make_sampler
from sinkjax.models.sharding import fitting_rows
from sinkjax.programs.compile import longest_context
from sinkjax.programs.dispatch import Crossing
from sinkjax.programs.generate import prompt_problems
from sinkjax.report.table import Table
from sinkjax.studies.candidates import MASK, Fills, fills_of, read_mask, read_plan
from sinkjax.studies.prompts import BOS, BosPolicy, encode
from sinkjax.studies.settings import at_least, setting
from sinkjax.studies.timing.study import Timing

_GRAIN = 64  # room for a text is a multiple of this many tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(ModelSettings, ProgramSettings, Tool):
    """Continues prompts with the programs of a mask, a plan or the baseline."""

    compilation_cache: str | None = setting(
        None,
        "Folder, made for you alone, in which executables are kept for the next run; by default "
        "none are.",
    )
    prompt: tuple[str, ...] = setting((), "Text to continue.", repeated=True)
    chat: bool = setting(False, "Whether to put each prompt into the tokenizer's chat template.")
    bos: BosPolicy = setting(
        "tokenizer", f"{BOS.format('prompt')}. A chat template says so itself."
    )
    mask: str | None = setting(None, f"{MASK}. By default the baseline.")
    up_to: int | None = setting(None, "Most tokens of a prompt that the mask serves.")
    plan: str | None = setting(
        None, "File of a plan, or the name of a shipped one, in place of --mask."
    )
    crossing: Crossing = setting(
        "stay",
        "What happens to a text that grows beyond --up_to: stay decodes on with the mask, prefill "
        "prefills all of it anew with the baseline.",
    )
    compare: bool = setting(False, "Whether to generate with the baseline, too.")
    max_new_tokens: int = setting(64, "New tokens for each prompt, at most.")
    temperature: float = setting(
        0.0, "Temperature of sampling; 0 takes the likeliest token every time."
    )
    top_k: int | None = setting(
        None, "Number of likeliest tokens that are drawn from; by default all are."
    )
    top_p: float | None = setting(
        None,
        "Share of probability that is drawn from: the fewest likeliest tokens that make it; by "
        "default all are.",
    )
    stop: bool = setting(True, "Whether to end at the model's end-of-text tokens.")
    seed: int = setting(0, "Seed of sampling; prompt i has this seed plus i.")
    steps_per_call: int = as_in(Timing, "steps_per_call")

    def run(self) -> None:
        if self.compilation_cache is not None:
            _use_cache(self.compilation_cache)
        config = self.load_config()
        if problems := list(self._problems()):
            raise InputError(*problems)
        plans = self._plans(config)
        self.make_mesh()  # refused before the weights are read
        tokenizer = self.load_tokenizer()
        prompts = self._prompts(tokenizer, config)
        model = self.load()
        console = terminal.console()
        rows = []
        for name, (plan, fills) in plans.items():
            dispatcher = self._compile(model, plan, fills, prompts)
            for index, tokens in enumerate(prompts):
                console.rule(f"{name}, prompt {index}: {len(tokens)} tokens", align="left")
                console.print(tokenizer.decode(tokens), style="dim", end="")
                rows.append([name, *self._stream(dispatcher, tokens, index, config, tokenizer)])
        table = Table(
            title=f"on {jax.devices()[0].device_kind}",
            columns=("", "prompt", "new tokens", "first token", "tokens/s", "compiled"),
            rows=rows,
            notes=("tokens/s: after the first one, in one run that nothing was warmed up for.",),
        )
        terminal.print_table(console, table)

    def _problems(self) -> Iterator[Problem | str]:
        """The problems of the settings by themselves."""
        if not self.prompt:
            yield "--prompt is missing; give at least one text to continue"
        if self.mask and self.plan:
            yield "--mask and --plan exclude each other; name the mask in the plan"
        if self.up_to is not None and not self.mask:
            yield "--up_to bounds the lengths that --mask serves; give --mask, too"
        yield from at_least(self, max_new_tokens=1, steps_per_call=1)
        yield from problems_of(lambda: make_sampler([self.seed], **self._sampling()))

    def _plans(self, config: sinkjax.LlamaConfig) -> dict[str, tuple[sinkjax.Plan, Fills]]:
        """The baseline, where it is asked for, and the mask or the plan, with their fills."""
        plans = {}
        if self.compare or not (self.mask or self.plan):
            plans["baseline"] = sinkjax.Plan((sinkjax.Stage(SinkMask.full(config)),)), {}
        if self.plan:
            plan, files = read_plan(self.plan, config)
            plans[f"plan {self.plan}"] = plan, fills_of(files)
        elif self.mask:
            mask, files = read_mask(self.mask, config)
            plan = sinkjax.Plan((sinkjax.Stage(mask),))
            if self.up_to is not None:
                plan = sinkjax.Plan.hybrid(mask, up_to=self.up_to, crossing=self.crossing)
            plans[f"mask {self.mask}"] = plan, fills_of(files)
        return plans

    def _sampling(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def _prompts(self, tokenizer: Any, config: sinkjax.LlamaConfig) -> list[list[int]]:
        if self.chat and not tokenizer.chat_template:
            text = "the model's tokenizer has no chat template; leave --chat out"
            raise InputError(Problem("chat", None, text))
        chat = ChatTemplate(tokenizer, self.model)
        prompts, problems = [], []
        for text in self.prompt:
            if self.chat:
                with about("chat"):
                    said = chat([{"role": "user", "content": text}], add_generation_prompt=True)
                tokens = tokenizer.encode(said, add_special_tokens=False)
            else:
                tokens = encode(tokenizer, text, self.bos)
            prompts.append(tokens)
            for problem in prompt_problems(np.asarray(tokens), config.vocab_size):
                problems.append(Problem("prompt", text, f"it {problem}"))
            most, length = longest_context(config), len(tokens) + self.max_new_tokens
            if most is not None and length > most:
                made = f"the model is made for {most} tokens, and with --max_new_tokens it is"
                advice = "give a shorter one, or ask for fewer new tokens"
                problems.append(Problem("prompt", text, f"{made} {length}: {advice}"))
        if problems:
            raise InputError(*problems)
        chat.close()
        return prompts

    def _compile(
        self,
        model: sinkjax.Llama,
        plan: sinkjax.Plan,
        fills: Fills,
        prompts: Sequence[Sequence[int]],
    ) -> sinkjax.Dispatcher:
        """Programs with a bucket for each prompt, and for all that a text may grow to."""
        plan = plan.reached(set(map(len, prompts)), self.max_new_tokens)
        longest = max(map(len, prompts)) + self.max_new_tokens
        room = -(-longest // _GRAIN) * _GRAIN
        room = min(room, longest_context(model.config) or room)
        buckets = {min(room, 1 << (len(tokens) - 1).bit_length()) for tokens in prompts}
        if len(plan.stages) > 1:
            buckets.add(room)
        return sinkjax.compile_plan(
            model,
            plan,
            fills=fills,
            batch_size=fitting_rows(model, 1),
            prefill_lengths=buckets,
            max_length=room,
            steps_per_call=self.steps_per_call,
            layers=self.layers,
            attention=self.attention,
        )

    def _stream(
        self,
        dispatcher: sinkjax.Dispatcher,
        tokens: Sequence[int],
        index: int,
        config: sinkjax.LlamaConfig,
        tokenizer: Any,
    ) -> list[str]:
        """Prints one prompt's continuation as it comes; the cells that say how fast it came."""
        printer = _Printer(tokenizer, tokens)
        times = []

        def show(_: int, new: list[int]) -> None:
            times.append(time.perf_counter())
            printer.add(new)

        start = time.perf_counter()
        new = dispatcher.generate(
            tokens,
            max_new_tokens=self.max_new_tokens,
            **self._sampling(),
            stop_tokens=[t for t in config.eos_token_ids if self.stop and t < config.vocab_size],
            seed=self.seed + index,
            on_tokens=show,
        )
        printer.add([], end="\n")
        rate = f"{(len(new) - 1) / (times[-1] - times[0]):.1f}" if len(times) > 1 else "-"
        return [
            str(len(tokens)),
            str(len(new)),
            f"{1000 * (times[0] - start):.0f} ms",
            rate,
            f"{sum(len(p.executables) for p in dispatcher.programs)} in "
            f"{dispatcher.compile_seconds:.1f} s",
        ]


def _use_cache(name: str) -> None:
    """Has JAX keep executables in a folder and take them from it. Before any is compiled.

    They are machine code that a later run executes, so the folder has to be the user's own.
    """
    folder = pathlib.Path(name).absolute()
    with about("compilation_cache", name):
        if not name:
            raise InputError("the folder has no name; give it one, or leave this out")
        with explaining("it cannot be made", "name a folder of yours"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise InputError(
                "it is open to others, whose code would be run from it; close it with chmod 700, "
                "or name a folder that is not there yet"
            )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class _Printer:
    """Prints text as its tokens come, whole characters only."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]):
        self._tokenizer, self._tokens = tokenizer, list(prompt)
        self._printed = tokenizer.decode(prompt)

    def add(self, tokens: Sequence[int], end: str = "") -> None:
        self._tokens += tokens
        text = self._tokenizer.decode(self._tokens) + end
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the rest of a character is to come
            print(text[len(self._printed) :], end="", flush=True)
            self._printed = text
