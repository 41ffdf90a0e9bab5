"""Training to records: gates and the masks that they choose, and repaired masks.

  checkpoints/  of the training, by Orbax: a run that was stopped goes on where it was
  masks/        those that gates chose

Trained is on one text and judged on another, by the KL to the baseline at all positions but the
first, which every mask leaves as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from sinkjax.errors import InputError
from sinkjax.instruments.batches import batches
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import mean_outputs, own_errors
from sinkjax.instruments.token_losses import residuals, token_divergences
from sinkjax.masks.choose import random_control
from sinkjax.masks.file import Provenance, save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path, Sink
from sinkjax.models.decoder import Llama
from sinkjax.specialize.build import specialize
from sinkjax.studies.gates.gates import GatedModel, gates_of, mask_of_gates, start_gates
from sinkjax.studies.repair.repair import Changes, Repair, save_repair
from sinkjax.studies.resampling import estimate_mean
from sinkjax.studies.results import Results, identity
from sinkjax.studies.sweep.study import Progress, Series, describe_model, describe_texts
from sinkjax.studies.training.train import Trained, TrainSettings, distil

METHODS = ("gates", "own_error", "random")
"""How masks of one size are chosen: by learned gates; by each head's own error under the path; at
random, with as many heads in each layer as by gates."""

_RECORD_BYTES = 65_536  # an upper bound


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """What gates choose.

    Attributes:
      path: of the heads that leave `full`.
      units: what has a gate of its own.
      price: λ, in nats: what all gates open cost.
      shares: of the units, those that leave `full`, each within (0, 1).
      train: how.
    """

    path: Path
    train: TrainSettings
    units: Literal["head", "group"] = "head"
    price: float = 0.1
    shares: tuple[float, ...] = (0.3, 0.5, 0.7)

    def describe(self) -> dict[str, Any]:
        """Of JSON values."""
        return {**dataclasses.asdict(self), "path": str(self.path), "shares": list(self.shares)}


def run_gates(
    chosen_on: Series,
    judged_on: Series,
    settings: GateSettings,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Runs what a folder does not hold yet.

    Args:
      chosen_on, judged_on: windows of one model at one length, of `plan_sweep`.
      settings: what is trained.
      folder: for the results; for users, the value of --output_dir.
      on_progress: called after every step.

    Returns:
      the specification that the folder now belongs to. Records are of kind "training", one, and
      "gates", one for each share and method. The masks by gates are in masks/.

    Raises:
      InputError: for settings out of their range, weights that cannot be read, or a folder that
        cannot be used.
    """
    check_gates(chosen_on, settings)
    model, common = _begin(chosen_on, judged_on, on_progress)
    windows, judged = _windows(chosen_on), _windows(judged_on)
    fields = {**common, "path": str(settings.path), "units": settings.units}
    specification = {"experiment": "gates", **common, **settings.describe()}
    config = model.config
    units = config.num_kv_heads if settings.units == "group" else config.num_heads
    with Results(folder, specification) as results:
        results.reserve(_RECORD_BYTES * (1 + len(settings.shares) * len(METHODS)))
        fills = mean_outputs(model, windows) if settings.path == Sink("mean") else None
        gated = GatedModel(model, settings.path, fills=fills)
        trained = distil(
            model,
            gated.residuals,
            start_gates(config.num_layers, units),
            windows,
            settings.train,
            results.folder / "checkpoints",
            price=lambda logits: settings.price * gates_of(logits).mean(),
            on_step=_reporting(on_progress),
        )
        logits = np.asarray(trained.parameters)
        results.record(
            {"kind": "training", **fields, "price": settings.price, **_train_fields(settings)},
            lambda: {**_history(trained), "gates": np.asarray(gates_of(logits)).tolist()},
        )
        errors = own_errors(model, windows, [settings.path], fills=fills)[0]
        # The errors of a group's heads add up to its own where they point in different directions.
        errors = np.sqrt(np.square(errors).reshape(*logits.shape, -1).sum(axis=-1))
        judge = Judge(model, judged, fills=fills)
        for share in settings.shares:
            count = round(share * logits.size)
            choose = lambda ranking, count=count: mask_of_gates(  # noqa: E731
                ranking, settings.path, count, num_heads=config.num_heads
            )
            masks = {"gates": choose(logits), "own_error": choose(errors)}
            masks["random"] = random_control(
                masks["gates"],
                seed=settings.train.seed,
                num_kv_heads=units if settings.units == "group" else None,
            )
            for method, mask in masks.items():
                record = {
                    "kind": "gates",
                    **fields,
                    "price": settings.price,
                    **_train_fields(settings),
                    "method": method,
                    "share": share,
                }
                results.record(
                    record,
                    lambda mask=mask: _result(mask, judge(mask), settings.train.seed),
                )
                if method == "gates":
                    _save(results, identity(record), mask, fills)
                on_progress(
                    Progress("record", f"{method} {share:g}", tokens=judged.size, records=1)
                )
    return specification


def run_repair(
    chosen_on: Series,
    judged_on: Series,
    mask: SinkMask,
    settings: TrainSettings,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    name: str,
    fills: np.ndarray | None = None,
) -> dict[str, Any]:
    """As `run_gates`: repairs a mask and judges it before and after.

    Args:
      mask: with heads off `full`.
      settings: how to train.
      name: of the mask, for records and for the repair's file in the folder.
      fills: float32 [L, N, H], of `sink(mean)`.

    Returns:
      the specification. Records are of kind "training", one, and "repair", two: of the mask as it
      is, and `repaired`. The repair is in the folder, NAME.repair.safetensors.
    """
    settings.check()
    model, common = _begin(chosen_on, judged_on, on_progress)
    fields = {**common, "mask": name, "mask_digest": mask.digest}
    fields |= {"train": dataclasses.asdict(settings)}
    specification = {"experiment": "repair", **fields}
    judged = _windows(judged_on)
    repair = Repair(specialize(model, mask, fills=fills))
    with Results(folder, specification) as results:
        results.reserve(_RECORD_BYTES * 3)
        trained = distil(
            model,
            repair.residuals,
            dict(repair.start),
            _windows(chosen_on),
            settings,
            results.folder / "checkpoints",
            on_step=_reporting(on_progress),
        )
        save_repair(
            results.folder / f"{name}.json",
            trained.parameters,
            mask_digest=mask.digest,
            model_digest=common["model"]["model_digest"],
        )
        results.record({"kind": "training", **fields}, lambda: _history(trained))
        for repaired, changes in ((False, repair.start), (True, trained.parameters)):
            results.record(
                {"kind": "repair", **fields, "repaired": repaired},
                lambda changes=changes: _result(
                    mask, _divergences(model, repair, changes, judged), settings.seed
                ),
            )
            on_progress(Progress("record", "judged", tokens=judged.size, records=1))
    return specification


def check_gates(series: Series, settings: GateSettings) -> None:
    """All that can be refused before any weight is read."""
    problems = []
    try:
        settings.train.check()
    except InputError as error:
        problems += error.problems
    problems += [
        f"--shares={share:g}: give shares, above 0 and below 1"
        for share in settings.shares
        if not 0 < share < 1
    ]
    if not settings.shares:
        problems.append("--shares is empty: give at least one, such as 0.5")
    if not settings.price >= 0:
        problems.append(f"--price={settings.price:g}: give 0 nats or more")
    if len(series.tokens) != 1:
        problems.append(
            f"--lengths={','.join(map(str, sorted(series.tokens)))}: gates are trained at one "
            "length; give one"
        )
    if problems:
        raise InputError(*problems)


def _begin(
    chosen_on: Series, judged_on: Series, on_progress: Callable[[Progress], None]
) -> tuple[Llama, dict[str, Any]]:
    """The model, and what all records of a run say."""
    subject = judged_on.subject
    model = subject.load()
    described = describe_model(subject, model)
    on_progress(Progress("model", f"loaded {subject.name}"))
    (length,) = judged_on.tokens
    return model, describe_texts(chosen_on, judged_on, length, described)


def _save(results: Results, record_id: str, mask: SinkMask, fills: np.ndarray | None) -> None:
    """Writes a mask with what its record says: masks/gates-SHARE.json."""
    record = results.get(record_id)
    how = ("path", "units", "price", "share", "train")
    save_mask(
        results.folder / "masks" / f"gates-{record['share']:g}.json",
        mask,
        provenance=Provenance.from_records(
            [record],
            text="chosen_on",
            method="learned gates",
            **{name: record[name] for name in how},
        ),
        quality={
            "kl": [
                {
                    "text": record["source"]["name"],
                    "text_sha256": record["source"]["sha256"],
                    "length": record["length"],
                    "num_windows": record["source"]["num_windows"],
                    **record["result"]["kl"],
                }
            ]
        },
        fills=fills,
    )


def _windows(series: Series) -> np.ndarray:
    (windows,) = series.tokens.values()
    return windows


def _reporting(on_progress: Callable[[Progress], None]) -> Callable[[int], None]:
    return lambda tokens: on_progress(Progress("measured", "trained", tokens=tokens))


def _train_fields(settings: GateSettings) -> dict[str, Any]:
    return {"train": dataclasses.asdict(settings.train)}


def _history(trained: Trained) -> dict[str, Any]:
    return {name: array.astype(float).tolist() for name, array in trained.history.items()}


def _result(mask: SinkMask, kl: np.ndarray, seed: int) -> dict[str, Any]:
    return {
        "heads": mask.counts(),
        "kl": estimate_mean(kl, seed),
        "mask": str(mask),
        "mask_digest": mask.digest,
    }


def _divergences(model: Llama, repair: Repair, changes: Changes, windows: np.ndarray) -> np.ndarray:
    """KL(baseline ‖ model with these changes), float32 [W, T - 1]."""
    changed = repair.model(changes)
    parts = []
    for tokens, count in batches(windows):
        streams = (residuals(one, tokens)[:, 1:] for one in (model, changed))
        parts.append(np.asarray(token_divergences(model, *streams))[:count])
    return np.concatenate(parts)
