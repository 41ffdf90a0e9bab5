"""Measures how well masks answer questions, keeping what each step gave."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sinkjax.instruments.own_errors import mean_outputs
from sinkjax.instruments.tasks import Questions, share_of_words
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Sink
from sinkjax.models.sharding import even_rows, row_shards
from sinkjax.programs.compile import compile
from sinkjax.programs.generate import Program
from sinkjax.specialize.build import specialize
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.resampling import estimate_change, resample_counts
from sinkjax.studies.retrieval.asked import Asked, kept_answers
from sinkjax.studies.study import Bench, Cell

FLOOR = 0.8
"""The least accuracy of a baseline at which a mask's says something."""

_CACHE_TOKENS = 16_384  # that there is room for in the caches of one call, on each device of `data`


class MeasureAnswers:
    """Answers questions with one model, under the baseline and under masks.

    The baseline answers each set of questions once, whatever the number of masks.
    """

    def __init__(
        self, bench: Bench, excerpts: np.ndarray | None, lengths: Sequence[int], rows: int
    ):
        """Compiles and measures nothing yet.

        Args:
          excerpts: int32 [W, T], on which means of heads are taken, where `needs_means` says so.
          lengths: T of the questions whose answers are written out.
          rows: of them, at one length.
        """
        self._model, self._keep, self._tokenizer = bench.model, bench.keep, bench.subject.tokenizer
        self._excerpts, self._lengths, self._rows = excerpts, sorted(lengths), rows
        self._programs: dict[str | None, Program] = {}  # of the baseline, and of the last candidate

    def cells(
        self, candidate: Candidate, control_of: str | None, asked: Iterable[Asked], seed: int
    ) -> Iterator[Cell]:
        """What a candidate, or a control of that name's, answers of all that its lengths ask."""
        of_mask = {} if control_of is None else {"control_of": control_of}
        for questions in asked:
            if questions.length in candidate.masks:
                described = {**candidate.describe(questions.length), **of_mask}
                yield Cell(
                    questions.fields(described, seed),
                    functools.partial(self, questions, candidate, seed),
                    f"{questions.task} under {candidate.name}",
                    steps=questions.steps,
                )

    def __call__(self, asked: Asked, candidate: Candidate, seed: int) -> dict[str, Any]:
        """The "result" of a record."""
        baseline, masked = (self._answers(asked, of) for of in (None, candidate))
        return summarize_answers(baseline, masked, asked.questions.answer_tokens, seed=seed)

    def _answers(self, asked: Asked, candidate: Candidate | None) -> dict[str, np.ndarray]:
        """`accuracy` and `nll` of each question, float64 [W]; of the baseline without candidate."""
        if candidate is not None and not candidate.masks[asked.length].masked.any():
            candidate = None  # it is the baseline
        mask = None if candidate is None else candidate.masks[asked.length]
        how = {"mask": mask, "fills": self._fills(candidate, asked.length)}
        answers = kept_answers(self._model, asked.questions, self._keep, **how)
        accuracy = answers["given_back"]
        if asked.written:
            accuracy = self._found(asked.questions, candidate, how)
        return {"accuracy": accuracy.astype(np.float64), "nll": answers["nll"]}

    def _found(
        self, questions: Questions, candidate: Candidate | None, how: dict[str, Any]
    ) -> np.ndarray:
        """The share of each question's words that stand in what is written, greedily: [W]."""

        def measure() -> dict[str, np.ndarray]:
            program = self._program(candidate, how)
            tokens = program.generate(questions.prompts(), max_new_tokens=questions.new_tokens)
            return {"tokens": np.stack(tokens)}

        tokens = self._keep(
            "answers written",
            questions.tokens,
            measure,
            answer_tokens=questions.answer_tokens.tolist(),
            num_tokens=questions.new_tokens,
            **how,
        )["tokens"]
        ended = np.isin(tokens, self._model.config.eos_token_ids).cumsum(axis=1) > 0
        texts = [self._tokenizer.decode(row[~end]) for row, end in zip(tokens, ended, strict=True)]
        pairs = zip(texts, questions.answers, strict=True)
        return np.array([share_of_words(*pair) for pair in pairs])

    def _program(self, candidate: Candidate | None, how: dict[str, Any]) -> Program:
        name = None if candidate is None else candidate.name
        if name not in self._programs:
            # The last candidate's weights and programs go; the baseline's stay.
            self._programs = {key: of for key, of in self._programs.items() if key is None}
            model = self._model if name is None else specialize(self._model, **how)
            longest, shards = self._lengths[-1], row_shards(model)
            self._programs[name] = compile(
                model,
                batch_size=even_rows(self._rows, max(1, _CACHE_TOKENS // longest), shards),
                prefill_lengths=self._lengths,
                max_length=longest,
            )
        return self._programs[name]

    def _fills(self, candidate: Candidate | None, length: int) -> np.ndarray | None:
        """The means of a candidate's `sink(mean)` heads: its own, or those on the excerpts."""
        if candidate is None:
            return None
        mask = candidate.masks[length]
        if not needs_means(candidate, mask):
            return candidate.fills.get(mask)
        assert self._excerpts is not None
        measure = lambda: {"fills": mean_outputs(self._model, self._excerpts)}  # noqa: E731
        return self._keep("mean outputs", self._excerpts, measure, passes=0)["fills"]


def needs_means(candidate: Candidate, mask: SinkMask) -> bool:
    """Whether a mask has `sink(mean)` heads, as controls may, and comes without their means."""
    return mask not in candidate.fills and any(Sink("mean") in layer for layer in mask.heads)


def summarize_answers(
    baseline: dict[str, np.ndarray],
    candidate: dict[str, np.ndarray],
    answer_tokens: np.ndarray,
    *,
    seed: int,
) -> dict[str, Any]:
    """How well a mask answers beside its baseline.

    Args:
      baseline, candidate: `accuracy` and `nll` of the same W questions, float64 [W] each.
      answer_tokens: int [W].

    Returns:
      the "result" of a record: of `accuracy`, in shares, and `nll`, of a whole answer in nats,
      estimates of `baseline`, `candidate` and their paired `change`; `says_something`, whether the
      baseline reaches `FLOOR`; `answer_tokens`, the mean number; `per_excerpt`, each question's.
    """
    weights = resample_counts(len(answer_tokens), seed)
    return {
        "answer_tokens": float(answer_tokens.mean()),
        # A mean of fifths that is 80% may come out one rounding below.
        "says_something": round(float(baseline["accuracy"].mean()), 9) >= FLOOR,
        **{
            name: estimate_change(baseline[name], candidate[name], weights)
            for name in ("accuracy", "nll")
        },
        "per_excerpt": {
            of: {name: values.tolist() for name, values in arrays.items()}
            for of, arrays in (("baseline", baseline), ("candidate", candidate))
        },
    }
