"""Finds a mask that costs at most a given KL, and judges it on text that the search never saw.

  sinkjax search --choose_text=a.txt --judge_text=b.txt --kl_budget=0.05 --lengths=512
  sinkjax search --flagfile=search.flags --choose_text=a.txt --judge_text=b.txt
  sinkjax search --choose_text=a.txt --lengths=24 --paths='sink(first),sink(mean)'

Excerpts of --choose_text are divided: on some the cost of every head on every path is predicted, on
others the KL of whole masks is measured while the mask grows, on the last the outcome is judged, as
it is on each --judge_text. --margin is the part of the budget that the search leaves unspent,
because other text costs otherwise.

The budget is on the largest of three means: over the positions at which the mask acts, over the
last quarter of an excerpt, and over the --generated tokens after it. --budget_on=mean has it on the
mean over all positions of an excerpt.

--ranking=gates takes what `sinkjax gates` learned, for its path alone, from the folder --gates.
Text that the gates were trained on is not judged on.

Beside the chosen mask others of its size are judged, each with as many heads, or groups, on each
path:

  random, as chosen      heads drawn at random, as many in each layer; --control_draws of them
  random, on the widest path   the same heads, all on the path that costs a head least
  sink score             the heads of the highest sink scores, those on the paths that save most
  sink score, widest     the same heads, all on the path that costs a head least
  own error              the heads of the least own error under the path

--prune=MASK takes no paths of its own: each head may take its path in that mask, or stay `full`. So
a mask from elsewhere, or for another length, loses the heads that break the promises here.

--chips=8 searches for a mesh of which `model` is 8: every chip waits for the fullest, so groups are
set side by side, one on each chip, and their heads move together.

With --tasks, which are those of `sinkjax retrieval`, the mask has to keep the baseline's answers,
too: at every depth an answer's NLL may rise by --nll_budget at most. It is judged at the length,
its half and its quarter, by --judge_questions at each of --depths. To choose on, the search asks
other questions, at other depths, at that of these lengths at which the model itself answers most.

The mask is written to --mask_file with all of this inside.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from sinkjax.accounts.savings import Workload
from sinkjax.distributed import first
from sinkjax.errors import InputError, Problem
from sinkjax.masks.file import save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path, Sink, Window, parse_paths
from sinkjax.models.digest import tokens_digest
from sinkjax.report.records import Record
from sinkjax.studies import texts
from sinkjax.studies.candidates import MASK, Candidate, read_mask
from sinkjax.studies.costs import GENERATED
from sinkjax.studies.prompts import BOS, BosPolicy
from sinkjax.studies.quality.promise import budget_line
from sinkjax.studies.retrieval.asked import joined
from sinkjax.studies.retrieval.keeping import AnswersStudy
from sinkjax.studies.search.controls import CHOSEN, CONTROLS, RANDOM, control_masks, numbered
from sinkjax.studies.search.grow import Answers, SearchSettings, search_mask
from sinkjax.studies.search.judged import judged_cells
from sinkjax.studies.search.kept import sink_scores
from sinkjax.studies.search.learned import LearnedGates, read_gates
from sinkjax.studies.search.saved import answer_lines, budget_of, saved_search, summarize_search
from sinkjax.studies.search.tables import search_tables
from sinkjax.studies.series import Series, Source, plan_series
from sinkjax.studies.settings import MOST_DRAWN, above_zero, at_least, setting, some, values
from sinkjax.studies.study import Bench, Cell, Size
from sinkjax.studies.units import ChipsStudy

_RECORD_BYTES, _POSITION_BYTES = 65_536, 32  # upper bounds: of a record, of a judged position


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Search(ChipsStudy, AnswersStudy):
    """Which mask costs at most a given KL."""

    name = "search"
    whole = "each round of a search follows from the one before"
    tables_of = staticmethod(search_tables)
    title = "A mask of {} within a KL budget"
    lede = (
        "Which mask saves most within a KL budget, and what it costs on text that the search never "
        "saw, beside masks of as many heads."
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "text": "choose_text",
        "length": "lengths",
        "by": "units",
        "rank_windows": "rank_excerpts",
        "hold_windows": "hold_excerpts",
        "judge_windows": "judge_excerpts",
        "operations_per_byte": "flops_per_byte",
        "batch_size": "batch_sizes",
        "rounds": "growth_rounds",
    }

    choose_text: str | None = setting(
        None, f"{texts.TEXT} to choose on. Default: the shipped text for choosing."
    )
    judge_text: tuple[str, ...] = setting(
        (texts.JUDGE,),
        f"{texts.TEXT} to judge on, beside other excerpts of the text to choose on. "
        "Default: the shipped text for judging.",
        repeated=True,
    )
    lengths: tuple[int, ...] = setting(
        (512,), "Tokens of an excerpt, BOS included; a mask is searched at one length."
    )
    kl_budget: float = setting(0.05, "The most KL to the baseline, in nats a token.")
    budget_on: Literal["largest", "mean"] = setting(
        "largest",
        "Which KL the budget is on: the largest of that where the mask acts, over the last quarter "
        "of an excerpt and over generated tokens, or the mean over all positions of an excerpt.",
    )
    margin: float = setting(0.2, "Part of both budgets that the search leaves unspent.")
    paths: tuple[Path, ...] = setting(
        (Sink("first"), Sink("mean"), *(Window(4, near) for near in (16, 32, 64, 128))),
        "Paths that heads may take, windows and sinks, with commas between them.",
        parse=functools.partial(parse_paths, kinds=("window", "sink")),
    )
    prune: str | None = setting(
        None,
        f"{MASK}, to choose from in place of paths: each head may take its path there, or stay "
        "`full`.",
    )
    units: Literal["head", "group"] = setting(
        "head", "What moves to another path: single heads, or whole key/value groups."
    )
    objective: Literal["savings", "heads"] = setting(
        "savings", "What a move is worth: what its path saves, or one masked head."
    )
    ranking: Literal["sensitivity", "error", "gates"] = setting(
        "sensitivity",
        "How the cost of a move is predicted: sensitivity, by gradients of the KL; error, by how "
        "far the head's own output moves; gates, by what `sinkjax gates` learned.",
    )
    gates: str | None = setting(None, "Output folder of `sinkjax gates`, to rank by.")
    batch_sizes: int = setting(1, "Rows of the batch that savings are counted for.")
    generated: int = setting(
        GENERATED,
        "Tokens after a prompt: savings count the decoding of as many, and the KL is measured on "
        "as many of the text after each excerpt.",
    )
    flops_per_byte: float = setting(
        10.0, "FLOPs that the machine makes while it reads a byte, by which savings weigh the two."
    )
    growth_rounds: int = setting(
        4, "Number of growth rounds; each adds heads until the budget is reached."
    )
    tries: int = setting(5, "Masks measured in a round, at most.")
    samples: int = setting(
        2, "Draws of next tokens for each excerpt that sensitivity is from; more are less noisy."
    )
    rank_excerpts: int = setting(8, "Excerpts on which costs are predicted.")
    hold_excerpts: int = setting(8, "Excerpts on which masks are measured.")
    judge_excerpts: int = setting(24, "Excerpts of each text to judge on.")
    rank_questions: int = setting(
        2, "Questions of each task and depth on which costs are predicted."
    )
    hold_questions: int = setting(
        6, "Questions of each task and depth on which masks are measured."
    )
    control_draws: int = setting(5, "Draws of each random control.")
    control_texts: int | None = setting(
        None,
        "Number of texts on which the controls are judged, too: first other excerpts of the text "
        "to choose on. Default: all.",
    )
    bos: BosPolicy = setting("tokenizer", f"{BOS.format('excerpt')}.")
    mask_file: str | None = setting(None, "File for the mask. Default: OUTPUT_DIR/mask.json.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if len(self.lengths) != 1:
            yield self.wrong("lengths", "a mask is searched at one length; give one")
        yield from above_zero(self, kl_budget="nats a token", flops_per_byte="a number")
        if not 0 <= self.margin < 1:
            yield self.wrong("margin", "give a part of the budget, from 0 to below 1")
        yield from some(self, paths="window(4,128)")
        for path in dict.fromkeys(self.paths):
            if isinstance(path, Full | Copy):
                yield Problem("paths", path, "it is none to search for: give windows and sinks")
            if self.paths.count(path) > 1:
                yield Problem("paths", path, "it is there twice")
        if self.prune is not None and self.paths != Search.paths:
            yield self.wrong("prune", "its heads' paths are those to choose from: give no paths")
        if self.prune is not None and (self.chips > 1 or self.ranking == "gates"):
            yield self.wrong(
                "prune", "it is for one chip, and not for ranking=gates; leave them out"
            )
        yield from at_least(self, batch_sizes=1, generated=1, growth_rounds=1, tries=1, samples=1)
        yield from at_least(self, rank_excerpts=1, hold_excerpts=1, judge_excerpts=1)
        yield from at_least(self, control_texts=1)
        yield from at_least(
            self, most=MOST_DRAWN, control_draws=1, rank_questions=1, hold_questions=2
        )
        if self.mask_file and pathlib.Path(self.mask_file).suffix != ".json":
            yield self.wrong("mask_file", "let its name end in .json")
        if self.ranking == "gates" and self.gates is None:
            yield Problem("gates", None, "ranking=gates needs the output folder of `sinkjax gates`")
        if self.ranking != "gates" and self.gates is not None:
            yield self.wrong("ranking", "it makes no use of gates: give ranking=gates, or no gates")

    def plan_problems(self) -> Iterator[Problem]:
        yield from super().plan_problems()
        if self._learned is not None:
            yield from self._gate_problems(self._learned)
        if self._pruned is not None:
            yield from self._prune_problems(self._pruned)
        if self._trained_on_choice and not self.judge_text:
            text = "the gates were trained on the text to choose on, so that no excerpt of it is "
            yield Problem("judge_text", None, f"{text}left to judge on; give another text")
        hashes = [series.source.prompts.sha256 for series in self.series]
        if len(set(hashes)) < len(hashes):
            yield self.wrong(
                "judge_text",
                "it is the text that is chosen on, or is there twice: other excerpts of the text "
                "to choose on are judged on in any case; give another text or none",
            )
        chosen = self.rank_excerpts + self.hold_excerpts
        own = 0 if self._trained_on_choice else self.judge_excerpts
        for index, series in enumerate(self.series):
            wanted = self.judge_excerpts if index else chosen + own
            count = len(series.tokens[self.length])
            if count < wanted:
                text = f"has {count} excerpts of that many tokens, {wanted} are wanted"
                advice = "give a longer text, or ask for fewer excerpts"
                yield Problem("lengths", self.length, f"{series.name} {text}: {advice}")

    def _gate_problems(self, gates: LearnedGates) -> Iterator[Problem]:
        config = self.subject.config
        if self.paths != (gates.path,):
            text = f"the gates were learned for {gates.path}; give that path alone"
            yield self.wrong("paths", text)
        layers, counts = config.num_layers, {config.num_heads}
        if self.units == "group":
            counts.add(config.num_kv_heads)
        their_layers, count = gates.values.shape
        if their_layers != layers or count not in counts:
            allowed = " or ".join(f"{n} in {layers}" for n in sorted(counts))
            text = f"it has {count} a layer, in {their_layers} layers; units={self.units} takes"
            yield self.wrong("gates", f"{text} {allowed}")

    def _prune_problems(self, mask: SinkMask) -> Iterator[Problem]:
        if not mask.masked.any():
            yield self.wrong("prune", "it masks no head: give a mask with windows or sinks")
        if mask.counts()["copy"]:
            yield self.wrong("prune", "it has copy heads; give one of windows and sinks alone")
        if self.units == "group" and not mask.in_groups(self.subject.config.num_kv_heads):
            text = "not all of its key/value groups have their heads on one path: give units=head"
            yield self.wrong("prune", text)

    @property
    def length(self) -> int:
        """Tokens of an excerpt."""
        (length,) = self.lengths
        return length

    @property
    def settings(self) -> SearchSettings:
        """What is searched for: the budget is what the margin leaves of it."""
        same = ("budget_on", "objective", "ranking", "chips", "tries", "samples", "seed")
        return SearchSettings(
            kl_budget=self.kl_budget * (1 - self.margin),
            workload=Workload(
                self.length, self.batch_sizes, self.generated, 4, self.flops_per_byte
            ),
            by=self.units,
            paths=self._paths,
            rounds=self.growth_rounds,
            gates=self._learned,
            prune=self._pruned,
            **{name: getattr(self, name) for name in same},
        )

    @functools.cached_property
    def _learned(self) -> LearnedGates | None:
        return None if self.gates is None else read_gates(self.gates)

    @functools.cached_property
    def _pruned(self) -> SinkMask | None:
        if self.prune is None:
            return None
        mask, _ = read_mask(self.prune, self.subject.config, self.length, "prune")
        return mask

    @property
    def _paths(self) -> tuple[Path, ...]:
        """The paths that heads may take."""
        if self._pruned is None:
            return self.paths
        taken = (path for heads in self._pruned.heads for path in heads)
        return tuple(path for path in dict.fromkeys(taken) if path != Full())

    @property
    def _trained_on_choice(self) -> bool:
        """Whether gates were trained on the text to choose on, of which they saw any excerpt."""
        gates = self._learned
        return gates is not None and gates.text_sha256 == self.series[0].source.prompts.sha256

    @functools.cached_property
    def series(self) -> list[Series]:
        """The text to choose on, then those to judge on."""
        count = self.rank_excerpts + self.hold_excerpts + self.judge_excerpts
        chosen = self.choose_text or texts.CHOOSE
        named = [texts.read_text(chosen, count, self.seed, "choose_text")]
        for path in self.judge_text:
            named.append(texts.read_text(path, self.judge_excerpts, self.seed, "judge_text"))
        return plan_series(
            [self.subject],
            [Source(text, "text", (self.length,)) for text in named],
            bos=(self.bos,),
            num_prompts=count,
        )

    @functools.cached_property
    def _read(self) -> list[np.ndarray]:
        """The excerpts of each series with the tokens after them, int32 [W, T + M]."""
        return [series.with_following(self.length, self.generated) for series in self.series]

    @property
    def ranked(self) -> np.ndarray:
        """Excerpts on which costs are predicted, int32 [W, T]."""
        return self._read[0][: self.rank_excerpts, : self.length]

    @property
    def held(self) -> np.ndarray:
        """Excerpts on which masks are measured, int32 [W, T + M]."""
        end = self.rank_excerpts + self.hold_excerpts
        held = self._read[0][self.rank_excerpts : end]
        return held if self.budget_on == "largest" else held[:, : self.length]

    @functools.cached_property
    def judge_texts(self) -> list[tuple[Series, np.ndarray]]:
        """Excerpts that no choice sees, int32 [W, T + M], with the series that they are of."""
        chosen = self.rank_excerpts + self.hold_excerpts
        starts = [chosen, *[0] * (len(self.series) - 1)]
        texts = list(zip(self.series, self._read, starts, strict=True))
        return [
            (series, rows[start : start + self.judge_excerpts])
            for series, rows, start in texts[1 if self._trained_on_choice else 0 :]
        ]

    @functools.cached_property
    def answers(self) -> list[Answers]:
        """Questions to choose on at each length that is judged, the longest first.

        Each purpose has others, at depths between those to judge at.

        Raises:
          InputError: for a task that the length has no room for.
        """
        if not self.tasks:
            return []
        ranked = self.asked_for(self.rank_questions, 1, self.judged_lengths)
        held = self.asked_for(self.hold_questions, 2, self.judged_lengths)
        budget = self.nll_budget * (1 - self.margin)
        return [
            Answers(
                joined([asked for asked in ranked if asked.length == length]),
                tuple(asked.questions for asked in held if asked.length == length),
                budget,
            )
            for length in sorted({asked.length for asked in held}, reverse=True)
        ]

    @property
    def answers_on(self) -> tuple[Series, Series]:
        return self.series[0], self.series[1 if self.judge_text else 0]

    def specification(self) -> dict[str, Any]:
        return {
            **self._common(),
            "judged": [
                {**series.source.describe(), "tokens_sha256": self._digest(excerpts)}
                for series, excerpts in self.judge_texts
            ],
            "judged_answers": [
                tokens_digest(asked.questions.tokens) for asked in self.judged_answers
            ],
        }

    def _common(self) -> dict[str, Any]:
        """What the record of kind "search" says but for its result."""
        series = self.series[0]
        return {
            **series.origin(),
            "length": self.length,
            "ranking_sha256": self._digest(self.ranked),
            "held_sha256": self._digest(self.held),
            "num_windows": [len(self.ranked), len(self.held)],
            "settings": self.settings.describe(),
            **self._asked(),
        }

    def _asked(self) -> dict[str, Any]:
        """What records say of the questions to choose on."""
        if not self.answers:
            return {}
        return {
            "asked": {
                **values(self, "tasks", "depths", "rank_questions", "hold_questions", "nll_budget"),
                "searched_nll_budget": self.answers[0].nll_budget,
                "ranked_sha256": [tokens_digest(each.ranked.tokens) for each in self.answers],
                "held_sha256": [
                    tokens_digest(of.tokens) for each in self.answers for of in each.held
                ],
            }
        }

    def _digest(self, excerpts: np.ndarray) -> str:
        """The digest of excerpts without the tokens after them."""
        return tokens_digest(excerpts[:, : self.length])

    def size(self) -> Size:
        passes = 2 + 2 * self.samples if self.ranking == "sensitivity" else 1
        ranked = self.ranked.size * (self.growth_rounds * (1 + passes) + 3)
        measured = self.held.size * self.growth_rounds * self.tries
        for answers in self.answers[:1]:  # at shorter lengths it is less
            asked = sum(of.tokens.size for of in answers.held)
            ranked += answers.ranked.tokens.size * self.growth_rounds * passes
            measured += asked * self.growth_rounds * self.tries
        asked = 2 * sum(of.steps for of in self.judged_answers)
        texts = [excerpts.size for _, excerpts in self.judge_texts]
        controls = len(CONTROLS) + len(RANDOM) * (self.control_draws - 1)
        held = texts[: self.control_texts]
        records = 1 + len(texts) + controls * len(held) + 2 * len(self.judged_answers)
        return Size(
            ranked + measured + asked + sum(texts) + controls * sum(held),
            records,
            _RECORD_BYTES * records + _POSITION_BYTES * records * sum(texts),
        )

    def cells(self, bench: Bench) -> Iterator[Cell]:
        if self._learned and self._learned.model_digest != bench.described["model_digest"]:
            raise InputError(
                self.wrong("gates", "they are of another model: give the folder of its own")
            )
        outcome = search_mask(
            bench.model, self.ranked, self.held, self.settings, bench.keep, answers=self.answers
        )
        scores = sink_scores(bench.model, self.ranked, bench.keep)
        controls = control_masks(
            outcome, self.settings, bench.model.config, scores, self.control_draws
        )
        masks = {CHOSEN: outcome.mask, **controls}
        summarize = functools.partial(
            summarize_search, outcome, masks, bench.model.config, self.settings.workload
        )
        yield Cell({"kind": "search", **self._common()}, summarize, "search")
        for number, (series, excerpts) in enumerate(self.judge_texts):
            held = self.control_texts is None or number < self.control_texts
            judged = masks if held else {CHOSEN: outcome.mask}
            how = {"fills": outcome.fills, "seed": self.seed}
            yield from judged_cells(bench, judged, series, excerpts, self.length, **how)
        control = numbered(RANDOM[0], 0)
        # What a control loses shows at the length itself: it promises nothing at shorter ones.
        chosen = Candidate.of_mask(CHOSEN, outcome.mask, self.judged_lengths, outcome.fills)
        drawn = Candidate.of_mask(control, masks[control], self.lengths, outcome.fills)
        yield from self.answer_cells(bench, [(chosen, None), (drawn, CHOSEN)])
        records = list(bench.results)
        provenance, quality = saved_search(records)
        quality |= budget_of(records, self.kl_budget, self.budget_on)
        file = self.mask_file or bench.results.folder / "mask.json"
        how = {"provenance": provenance, "quality": quality, "fills": outcome.fills}
        first(lambda: save_mask(file, outcome.mask, **how))

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        return [
            f"mask: {self.mask_file or pathlib.Path(folder, 'mask.json')}",
            budget_line(budget_of(records, self.kl_budget, self.budget_on)),
            *answer_lines(records),
        ]
