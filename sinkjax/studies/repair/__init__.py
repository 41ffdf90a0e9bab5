"""How much of a mask's cost does a short training of the output projections win back?"""
