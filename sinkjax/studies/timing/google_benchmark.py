"""Records of timing in the JSON of google-benchmark, for the tools that compare its runs.

Every sample is a repetition of one iteration, as `--benchmark_repetitions` writes them; the times
are the host's, and CPU time is the whole process's (`MeasureProcessCPUTime`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.studies.timing.measured import AGAIN

_AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "median": np.median,
    "stddev": lambda values: np.std(values, ddof=1),
    "cv": lambda values: np.std(values, ddof=1) / np.mean(values),
}


def google_benchmark(
    records: Sequence[Mapping[str, Any]], *, date: str, executable: str
) -> dict[str, Any]:
    """One JSON object for a file.

    Args:
      records: of kind `timing`, at least one.
      date: of now, in ISO 8601.
      executable: what made them.
    """
    environment = records[-1]["environment"]
    return {
        "context": {
            "date": date,
            "executable": executable,
            "num_cpus": environment["cpu_count"],
            "load_avg": records[-1]["result"]["load_average"][-1],
            "library_build_type": "release",
            "json_schema_version": 1,
            "environment": environment,
        },
        "benchmarks": [
            run for family, record in enumerate(records) for run in _family(family, record)
        ],
    }


def _family(family: int, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All runs of one record, program by program."""
    result = record["result"]
    programs = {**result["programs"], AGAIN: result["baseline_again"]}
    sizes = f"b{record['batch_size']}/t{record['prompt_length']}"
    if record["stage"] == "decode":
        sizes += f"/n{record['generated']}"
    for index, (name, program) in enumerate(programs.items()):
        samples = program["samples"]
        real, cpu = (np.array(samples[key]) * 1e3 for key in ("seconds", "cpu_seconds"))
        run_name = f"{record['stage']}/{sizes}/{name}/process_time"
        common = {
            "family_index": family,
            "per_family_instance_index": index,
            "run_name": run_name,
            "repetitions": real.size,
            "threads": 1,
        }
        tokens = program["tokens_per_second"] * program["seconds"]["median"]
        for number, (real_time, cpu_time) in enumerate(zip(real, cpu, strict=True)):
            yield {
                "name": run_name,
                **common,
                "run_type": "iteration",
                "repetition_index": number,
                "iterations": 1,
                **_times(real_time, cpu_time),
                "items_per_second": float(tokens / real_time * 1e3),
            }
        for aggregate, function in _AGGREGATES.items():
            yield {
                "name": f"{run_name}_{aggregate}",
                **common,
                "run_type": "aggregate",
                "aggregate_name": aggregate,
                "aggregate_unit": "percentage" if aggregate == "cv" else "time",
                "iterations": real.size,
                **_times(function(real), function(cpu)),
            }


def _times(real: float, cpu: float) -> dict[str, Any]:
    return {"real_time": float(real), "cpu_time": float(cpu), "time_unit": "ms"}
