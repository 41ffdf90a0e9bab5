"""Generates text with a model, under a mask or a plan, and beside the baseline on request.

  sinkjax generate --prompt="The capital of France is"
  sinkjax generate --prompt="Name three rivers." --chat --temperature=0.7 --seed=1
  sinkjax generate --prompt="Once upon a time" --mask=mask.json --compare
  sinkjax generate --prompt="Hello world" --mask=mask.json --up_to=10

--mask names a file that `sinkjax mask` or sinkjax.save_mask wrote. With --up_to it serves
prompts of up to so many tokens, and the baseline longer ones: the founding study's hybrid. What
happens to a text that grows beyond is --crossing: with "stay" the mask serves to the end, with
"prefill" all tokens so far are prefilled again without it.

--plan names a JSON file with masks for more lengths than two, each a mask's file or its text:

  {"crossing": "stay", "stages": [{"up_to": 10, "mask": "short.json"},
                                  {"up_to": null, "mask": "L0-29: 9f"}]}

Every program is compiled for the lengths that the prompts need; how long that took is shown, as are
the time to the first token and the tokens a second after it.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

import sinkjax
from sinkjax.cli import compilation, terminal
from sinkjax.cli import flags as cli
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.models.sampling import make_sampler
from sinkjax.programs.compile import DEFAULT_STEPS_PER_CALL, LAYERS
from sinkjax.programs.dispatch import CROSSINGS
from sinkjax.report.table import Table
from sinkjax.studies.candidates import read_masks, read_plan
from sinkjax.studies.prompts import BOS_POLICIES, encode

_GRAIN = 64  # room for a text is a multiple of this many tokens

cli.define_model_flags()
compilation.define_cache_flag()
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue. May be repeated.")
_CHAT = flags.DEFINE_bool("chat", False, "Put each prompt into the tokenizer's chat template.")
_BOS = flags.DEFINE_enum("bos", "tokenizer", BOS_POLICIES, "Without --chat: as it is in a sweep.")
_MASK = flags.DEFINE_string("mask", None, "File of a mask, or its text; none for the baseline.")
_UP_TO = flags.DEFINE_integer("up_to", None, "The mask serves prompts of at most so many tokens.")
_PLAN = flags.DEFINE_string("plan", None, "File of a plan, in place of --mask.")
_CROSSING = flags.DEFINE_enum(
    "crossing", "stay", CROSSINGS, "With --up_to: a text that grows beyond it."
)
_COMPARE = flags.DEFINE_bool("compare", False, "Generate with the baseline, too.")
_NEW = flags.DEFINE_integer("max_new_tokens", 64, "New tokens for each prompt, at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of sampling; 0 takes the likeliest token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw from so many likeliest tokens; none for all.")
_TOP_P = flags.DEFINE_float(
    "top_p", None, "Draw from the fewest likeliest tokens that make this share; none for all."
)
_STOP = flags.DEFINE_bool("stop", True, "End at the model's end-of-text tokens.")
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling; prompt i has this seed plus i.")
_STEPS = flags.DEFINE_integer(
    "steps_per_call",
    DEFAULT_STEPS_PER_CALL,
    "Decode steps between two looks at the host.",
)
_LAYERS = flags.DEFINE_enum(
    "layers",
    "unrolled",
    LAYERS,
    "Each layer by itself, or like ones as one loop: faster compiled, slower on a CPU.",
)
cli.define_attention_flag()


@dataclasses.dataclass(frozen=True)
class _Way:
    """One way of generating, and what it took.

    Attributes:
      name: for a person.
      plan: the masks; one stage without a bound where one mask serves all.
      fills: of the masks that have some.
    """

    name: str
    plan: sinkjax.Plan
    fills: Mapping[SinkMask, Any]


def main() -> None:
    compilation.use_cache()
    config = sinkjax.load_config(cli.model(), revision=cli.revision())
    ways = _ways(config)
    tokenizer = sinkjax.load_tokenizer(cli.model(), revision=cli.revision())
    prompts = _prompts(tokenizer)
    model = cli.load_model(cli.model())
    console = terminal.console()
    rows = []
    for way in ways:
        dispatcher = _compile(model, way, prompts)
        for index, tokens in enumerate(prompts):
            console.rule(f"{way.name}, prompt {index}: {len(tokens)} tokens", align="left")
            console.print(tokenizer.decode(tokens), style="dim", markup=False, end="")
            rows.append([way.name, *_generate(dispatcher, tokens, index, config, tokenizer)])
    terminal.print_table(console, _table(rows))


def _ways(config: sinkjax.LlamaConfig) -> list[_Way]:
    """The baseline, where it is asked for, and what --mask or --plan says."""
    problems = []
    if not _PROMPT.value:
        problems.append("--prompt is missing; give at least one text to continue")
    if _MASK.value and _PLAN.value:
        problems.append("--mask and --plan exclude each other; name the mask in the plan")
    if _UP_TO.value is not None and not _MASK.value:
        problems.append("--up_to bounds the lengths that --mask serves; give --mask, too")
    if _NEW.value < 1:
        problems.append(f"--max_new_tokens={_NEW.value}: at least 1 is allowed")
    try:
        make_sampler([_SEED.value], **_sampling())
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(*problems)
    baseline = SinkMask.full(config)
    ways = [_Way("baseline", sinkjax.Plan((sinkjax.Stage(baseline),)), {})]
    if not _MASK.value and not _PLAN.value:
        return ways
    if _PLAN.value:
        named = _Way(f"plan {_PLAN.value}", *read_plan(_PLAN.value))
    else:
        read = read_masks([_MASK.value], config)
        if len(read) > 1:
            raise InputError("--mask names several; give one, or a plan that says which is when")
        ((name, (mask, fills)),) = read.items()
        plan = sinkjax.Plan((sinkjax.Stage(mask),))
        if _UP_TO.value is not None:
            plan = sinkjax.Plan.hybrid(mask, up_to=_UP_TO.value, crossing=_CROSSING.value)
        named = _Way(f"mask {name}", plan, fills)
    for stage in named.plan.stages:
        stage.mask.check(config)
    return [*ways, named] if _COMPARE.value else [named]


def _sampling() -> dict[str, Any]:
    return {"temperature": _TEMPERATURE.value, "top_k": _TOP_K.value, "top_p": _TOP_P.value}


def _prompts(tokenizer: Any) -> list[list[int]]:
    if not _CHAT.value:
        return [encode(tokenizer, text, _BOS.value) for text in _PROMPT.value]
    if not tokenizer.chat_template:
        raise InputError("--chat: the model's tokenizer has no chat template; leave --chat out")
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in _PROMPT.value
    ]


def _compile(
    model: sinkjax.Llama, way: _Way, prompts: Sequence[Sequence[int]]
) -> sinkjax.Dispatcher:
    """Programs with a bucket for each prompt, and for all that a text may grow to."""
    longest = max(map(len, prompts)) + _NEW.value
    room = -(-longest // _GRAIN) * _GRAIN
    buckets = {min(room, 1 << (len(tokens) - 1).bit_length()) for tokens in prompts}
    if len(way.plan.stages) > 1:
        buckets.add(room)
    return sinkjax.compile_plan(
        model,
        way.plan,
        fills=way.fills,
        prefill_lengths=buckets,
        max_length=room,
        steps_per_call=_STEPS.value,
        layers=_LAYERS.value,
        attention=cli.attention(),
    )


def _generate(
    dispatcher: sinkjax.Dispatcher,
    tokens: Sequence[int],
    index: int,
    config: sinkjax.LlamaConfig,
    tokenizer: Any,
) -> list[str]:
    """Streams one prompt's continuation to the terminal; the cells that say how fast."""
    printer = _Printer(tokenizer, tokens)
    times = []

    def show(_: int, new: list[int]) -> None:
        times.append(time.perf_counter())
        printer.add(new)

    start = time.perf_counter()
    new = dispatcher.generate(
        tokens,
        max_new_tokens=_NEW.value,
        **_sampling(),
        stop_tokens=config.eos_token_ids if _STOP.value else (),
        seed=_SEED.value + index,
        on_tokens=show,
    )
    printer.end()
    rate = (len(new) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
    return [
        str(len(tokens)),
        str(len(new)),
        f"{1000 * (times[0] - start):.0f} ms",
        "-" if rate is None else f"{rate:.1f}",
        f"{sum(len(p.executables) for p in dispatcher.programs)} in "
        f"{dispatcher.compile_seconds:.1f} s",
    ]


class _Printer:
    """Prints text as its tokens come, whole characters only."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]):
        self._tokenizer, self._tokens = tokenizer, list(prompt)
        self._shown = tokenizer.decode(prompt)

    def add(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        text = self._tokenizer.decode(self._tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the rest of a character is to come
            self._print(text)

    def end(self) -> None:
        self._print(self._tokenizer.decode(self._tokens) + "\n")

    def _print(self, text: str) -> None:
        sys.stdout.write(text[len(self._shown) :])
        sys.stdout.flush()
        self._shown = text


def _table(rows: list[list[str]]) -> Table:
    return Table(
        title=f"on {jax.devices()[0].device_kind}",
        columns=("", "prompt", "new tokens", "first token", "tokens/s", "compiled"),
        rows=rows,
        notes=("tokens/s: after the first one, in one run that nothing was warmed up for.",),
    )
