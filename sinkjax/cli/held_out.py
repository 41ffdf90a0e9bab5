"""What the scripts that choose and train share: windows to choose on, others to judge on, training.

No choice is judged where it was made.
"""

import dataclasses
import sys

from absl import flags

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.errors import InputError, Problem
from sinkjax.studies import texts as inputs
from sinkjax.studies.prompts import BOS_POLICIES
from sinkjax.studies.sweep import study as sweep
from sinkjax.studies.training.train import TrainSettings

flags.disclaim_key_flags()  # so that --help of a script shows what is defined here for it


def define_window_flags(
    *, lengths: list[str], choose_windows: int, num_windows: int, max_tokens: int = sys.maxsize
) -> None:
    """Defines --choose_text, --text, --lengths, their numbers of windows, --bos and --seed.

    Args:
      lengths, choose_windows, num_windows, max_tokens: the flags' defaults.
    """
    flags.DEFINE_string(
        "choose_text", None, "Text file that the choice is made on; by default part of --text."
    )
    flags.DEFINE_string(
        "text",
        None,
        "Text file that it is judged on; by default Python's own language reference.",
    )
    flags.DEFINE_list("lengths", lengths, "Tokens of a window, BOS included.")
    flags.DEFINE_integer("choose_windows", choose_windows, "Windows to choose on, at most.")
    flags.DEFINE_integer("num_windows", num_windows, "Windows to judge on, at most.")
    flags.DEFINE_integer(
        "max_tokens", max_tokens, "Tokens of either at one length: fewer windows if they are long."
    )
    flags.DEFINE_enum("bos", "tokenizer", BOS_POLICIES, "As it is in a sweep.")
    flags.DEFINE_integer("seed", 0, "Of window places and of all that is drawn.")


def define_training_flags(*, steps: int, learning_rate: float) -> None:
    """Defines --steps, --learning_rate, --warmup, --rows and --save_every.

    Args:
      steps, learning_rate: the flags' defaults.
    """
    flags.DEFINE_integer("steps", steps, "Of the optimizer.")
    flags.DEFINE_float("learning_rate", learning_rate, "Of Adam at its highest.")
    flags.DEFINE_float("warmup", 0.1, "Share of the steps over which the learning rate rises.")
    flags.DEFINE_integer("rows", 1, "Windows a step.")
    flags.DEFINE_integer("save_every", 10, "Steps between checkpoints.")


def training_settings() -> TrainSettings:
    """What these flags say."""
    values = flags.FLAGS
    return TrainSettings(
        steps=values.steps,
        learning_rate=values.learning_rate,
        rows=values.rows,
        warmup=values.warmup,
        save_every=values.save_every,
        seed=values.seed,
    )


def count_tokens(
    chosen_on: sweep.Series, judged_on: sweep.Series, train: TrainSettings, judged: int
) -> int:
    """Tokens that training takes, and judging so many models after it."""
    ((length, rows),) = chosen_on.tokens.items()
    size = sum(windows.size for windows in judged_on.tokens.values())
    return train.steps * min(train.rows, len(rows)) * length + judged * size


def read_series() -> tuple[sweep.Series, sweep.Series]:
    """The windows to choose on, and those to judge on, that the flags name.

    Of a single text they are different windows, which do not overlap.

    Raises:
      InputError: listing files that cannot be read, or lengths for which there is no room.
    """
    values, name, revision = flags.FLAGS, cli.model(), cli.revision()
    wanted = {"choose_windows": values.choose_windows, "num_windows": values.num_windows}
    problems = [f"--{flag}={count}: give at least 1" for flag, count in wanted.items() if count < 1]
    if problems:
        raise InputError(*problems)
    named = [path for path in (values.choose_text, values.text) if path]
    apart = len(set(named)) == 2
    windows = max(wanted.values()) if apart else sum(wanted.values())
    texts = cli.each(
        list(dict.fromkeys(named)), lambda path: inputs.read_text(path, windows, values.seed)
    ) or [inputs.default_text(windows, values.seed)]
    lengths = tuple(sorted(cli.numbers("lengths", values.lengths, int)))
    subject = sweep.Subject(
        name=name,
        config=sinkjax.load_config(name, revision=revision),
        tokenizer=sinkjax.load_tokenizer(name, revision=revision),
        load=lambda: cli.load_model(name),
    )
    series = sweep.plan_sweep(
        [subject],
        [sweep.Source(text, "text", lengths) for text in texts],
        sweep.Settings(
            lengths, (values.bos,), num_prompts=windows, max_tokens=sys.maxsize, seed=values.seed
        ),
    )

    def first(one: sweep.Series, count: int, after: int = 0) -> sweep.Series:
        counts = {n: min(count, max(1, values.max_tokens // n)) for n in one.tokens}
        tokens = {n: rows[after : after + counts[n]] for n, rows in one.tokens.items()}
        if empty := [length for length, rows in tokens.items() if not len(rows)]:
            raise InputError(
                Problem(
                    "lengths",
                    empty,
                    f"{one.source.prompts.name} has no windows left to choose on; give a longer "
                    "text, or fewer windows",
                )
            )
        return dataclasses.replace(one, tokens=tokens)

    judged_on = first(series[-1], values.num_windows)
    return first(series[0], values.choose_windows, 0 if apart else values.num_windows), judged_on
