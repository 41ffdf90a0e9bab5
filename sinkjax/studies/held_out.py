"""What studies that choose and judge share: one text to choose on, another to judge on.

No choice is judged where it was made.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sinkjax.errors import InputError, Problem, each, problems_of
from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.masks.mask import SinkMask
from sinkjax.studies.costs import GENERATED, summarize_parts
from sinkjax.studies.prompts import BOS, BosPolicy
from sinkjax.studies.resampling import estimate_kl
from sinkjax.studies.series import Series, Source, plan_series
from sinkjax.studies.settings import at_least, setting, some
from sinkjax.studies.study import Study
from sinkjax.studies.texts import CHOOSE, JUDGE, TEXT, read_text


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HeldOutStudy(Study):
    """A study that chooses on one text and judges on another, or on other excerpts of the same."""

    renamed: ClassVar[Mapping[str, str]] = {
        "text": "judge_text",
        "choose_windows": "choose_excerpts",
        "num_windows": "judge_excerpts",
    }

    choose_text: str | None = setting(
        None, f"{TEXT} to choose on. Default: the shipped text for choosing."
    )
    judge_text: str | tuple[str, ...] | None = setting(  # several where a study says so
        None, f"{TEXT} to judge on. Default: the shipped text for judging."
    )
    lengths: tuple[int, ...] = setting((256,), "Tokens of an excerpt, BOS included.")
    choose_excerpts: int = setting(32, "Number of excerpts to choose on, at most.")
    judge_excerpts: int = setting(32, "Number of excerpts to judge on, at most.")
    max_tokens: int | None = setting(
        None,
        "Tokens at one length on either text; fewer excerpts where they are long. Default: no "
        "limit.",
    )
    bos: BosPolicy = setting("tokenizer", f"{BOS.format('excerpt')}.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least(self, choose_excerpts=1, judge_excerpts=1)
        yield from at_least(self, most=sys.maxsize, max_tokens=1)
        yield from some(self, lengths=256)

    def plan_problems(self) -> Iterator[Problem]:
        yield from super().plan_problems()
        yield from problems_of(lambda: self._series)

    @property
    def chosen_on(self) -> Series:
        """Excerpts to choose on."""
        return self._series[0]

    @property
    def judged_on(self) -> Series:
        """Excerpts to judge on, of the first text."""
        return self._series[1]

    @property
    def judged_texts(self) -> Sequence[Series]:
        """Excerpts to judge on, of each text."""
        return self._series[1:]

    def judged_rows(self, length: int, generated: int = GENERATED) -> np.ndarray:
        """Excerpts to judge on with tokens after them, int32 [W, T + M]; M is 0 without room."""
        return self.judged_on.with_following(length, generated)

    @functools.cached_property
    def _series(self) -> tuple[Series, ...]:
        """The text to choose on, then those to judge on."""
        counts = self.choose_excerpts, self.judge_excerpts
        chosen, given = self.choose_text or CHOOSE, self.judge_text or JUDGE
        judged = given if isinstance(given, tuple) else (given,)
        fields = {**dict.fromkeys(judged, "judge_text"), chosen: "choose_text"}
        named, most = dict.fromkeys((chosen, *judged)), max(counts)
        files = each(named, lambda name: read_text(name, most, self.seed, fields[name]))
        hashes = {name: text.sha256 for name, text in zip(named, files, strict=True)}
        # Of one text, by whatever names, they are different excerpts, which do not overlap.
        same = hashes[chosen] in map(hashes.get, judged)
        count = sum(counts) if same else most
        texts = {text.sha256: dataclasses.replace(text, count=count) for text in files}
        planned = plan_series(
            [self.subject],
            [Source(text, "text", tuple(sorted(self.lengths))) for text in texts.values()],
            bos=(self.bos,),
            num_prompts=count,
        )
        series = dict(zip(texts, planned, strict=True))
        after = self.judge_excerpts if same else 0
        to_choose = self._part(series[hashes[chosen]], self.choose_excerpts, after)
        if same:
            read = {length: after + len(rows) for length, rows in to_choose.tokens.items()}
            series[hashes[chosen]] = dataclasses.replace(series[hashes[chosen]], read=read)
        to_judge = dict.fromkeys(map(hashes.get, judged))
        return to_choose, *(self._part(series[sha], self.judge_excerpts) for sha in to_judge)

    def _part(self, series: Series, count: int, after: int = 0) -> Series:
        most = self.max_tokens or sys.maxsize
        counts = {n: min(count, max(1, most // n)) for n in series.tokens}
        tokens = {n: rows[after : after + counts[n]] for n, rows in series.tokens.items()}
        if empty := [length for length, rows in tokens.items() if not len(rows)]:
            advice = "give a longer text, or ask for fewer excerpts"
            text = f"{series.name} has no excerpts left to choose on; {advice}"
            raise InputError(Problem("lengths", empty, text))
        return dataclasses.replace(series, tokens=tokens)


def mask_result(
    mask: SinkMask, kl: np.ndarray, length: int, windows: Sequence[int | None]
) -> dict[str, Any]:
    """The "result" of a record of a mask's KL, which counts as masked what hides anything.

    Args:
      kl: float [W, P], of every scored position of excerpts and of tokens after them, nats.
      length: T, of the excerpts.
      windows: of the model's own, as of `SinkMask.hiding`.
    """
    hiding = mask.hiding(windows)
    return {
        "heads": hiding.counts(),
        "kl": estimate_kl(kl[:, : length - SCORE_FROM]),
        **summarize_parts(kl, hiding, length),
        "mask": str(mask),
        "mask_digest": mask.digest,
    }
