"""Which heads does a model keep `full` when it learns a gate for each?"""
