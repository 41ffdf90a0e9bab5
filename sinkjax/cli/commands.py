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
    "retrieval": "Retrieval",
    "timing": "Timing",
}
"""The study of each question, in sinkjax/studies/NAME/study.py, whose docstring is its help."""

TOOLS = {
    "mask": "MakeMask",
    "inspect": "Inspect",
    "account": "Account",
    "generate": "Generate",
    "convert": "Convert",
}
"""Each tool, in sinkjax/cli/NAME.py, whose docstring is its help."""

COMMANDS = (*STUDIES, *TOOLS)
