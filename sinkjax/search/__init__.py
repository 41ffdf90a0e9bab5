"""Masks chosen to a KL budget, and ways to choose heads held against each other.

errors, sensitivity   what each head costs under each path, in one pass
savings               what each path saves
judge                 the KL of any mask, by one program for all
budget, grow          moves in order of cost a saving, as many as the measured KL allows
run, frontier         from windows to records
"""
