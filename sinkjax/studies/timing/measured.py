"""What a cell's samples say: each program beside the baseline and beside its limit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.accounts.limits import Limit
from sinkjax.studies.timing.pairs import Samples, ratio, summary

BASELINE, AGAIN = "baseline", "baseline again"
"""The program that others are held against, and itself a second time, as if it were another."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """The samples of one cell.

    Attributes:
      samples: of all programs, the baseline twice, and of the machine.
      device: seconds by the device's clock, which then are what counts; None for the host's.
      amounts: bytes of each `read` and FLOPs of each `multiply`.
    """

    samples: Mapping[str, Samples]
    device: Mapping[str, Sequence[float]] | None
    amounts: Mapping[str, float]
    seed: int

    def program(self, name: str, limit: Limit, baseline: Limit, tokens: int) -> dict[str, Any]:
        """One program's part of a record.

        Args:
          limit: of one of its runs.
          baseline: of one of the baseline's.
          tokens: that one run takes in, or gives.
        """
        seconds, rates = self._seconds(name), self._rates()
        typical = {key: float(np.median(values)) for key, values in rates.items()}
        # By the rates of the same round: what slows both leaves the share as it is.
        least = [
            limit.seconds({"read": read, "multiply": multiply})
            for read, multiply in zip(rates["read"], rates["multiply"], strict=True)
        ]
        summarized = summary(seconds)
        return {
            "samples": self._raw(name),
            "seconds": summarized,
            "tokens_per_second": tokens / summarized["median"],
            "ratio": None
            if name == BASELINE
            else ratio(seconds, self._seconds(BASELINE), self.seed),
            "limit": {
                "operations": limit.flops,
                "bytes": limit.bytes,
                "seconds": limit.seconds(typical),
                "share": ratio(least, seconds, self.seed),
                "ratio": limit.seconds(typical) / baseline.seconds(typical),
                "operations_ratio": limit.flops / baseline.flops,
                "bytes_ratio": limit.bytes / baseline.bytes,
            },
        }

    def machine(self) -> dict[str, Any]:
        """The machine's part: bytes read and FLOPs done a second, in each round's best."""
        return {
            name: {
                "samples": [self._raw(call) for call in self._names(name)],
                "amount": self.amounts[name],
                "per_second": summary(rates),
            }
            for name, rates in self._rates().items()
        }

    def _seconds(self, name: str) -> Sequence[float]:
        return self.samples[name].seconds if self.device is None else self.device[name]

    def _names(self, name: str) -> list[str]:
        """Under which a measurement of the machine was timed, several times a round."""
        return [call for call in self.samples if call.rpartition(" ")[0] == name]

    def _rates(self) -> dict[str, list[float]]:
        """The best of each round."""
        return {
            name: [
                amount / min(seconds)
                for seconds in zip(*map(self._seconds, self._names(name)), strict=True)
            ]
            for name, amount in self.amounts.items()
        }

    def _raw(self, name: str) -> dict[str, Any]:
        device = None if self.device is None else list(self.device[name])
        return {**dataclasses.asdict(self.samples[name]), "device_seconds": device}
