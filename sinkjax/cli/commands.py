"""The commands' names, which need nothing else."""

STUDIES = {
    "sweep": "Sweep",
    "predict": "Predict",
    "copies": "Copies",
    "search": "Search",
    "frontier": "Frontier",
    "gates": "Gates",
    "repair": "RepairStudy",
    "quality": "Quality",
    "timing": "Timing",
}
"""The study of each question, in sinkjax/studies/NAME/study.py, whose docstring is its help."""

TOOLS = ("mask", "inspect", "generate", "convert")
"""Each is a module of sinkjax.cli: its docstring is its help, its `main` is what it does."""

COMMANDS = (*STUDIES, *TOOLS)
