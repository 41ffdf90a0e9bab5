"""Distillation to a model's own predictions: learned gates, and the repair of a masked model."""

from sinkjax.distill.gates import GatedModel, gates_of, mask_of_gates, start_gates
from sinkjax.distill.repair import Repair, load_repair, repair_path, save_repair
from sinkjax.distill.run import GateSettings, check_gates, run_gates, run_repair
from sinkjax.distill.train import Trained, TrainSettings, distil

__all__ = [
    "GateSettings",
    "GatedModel",
    "Repair",
    "TrainSettings",
    "Trained",
    "check_gates",
    "distil",
    "gates_of",
    "load_repair",
    "mask_of_gates",
    "repair_path",
    "run_gates",
    "run_repair",
    "save_repair",
    "start_gates",
]
