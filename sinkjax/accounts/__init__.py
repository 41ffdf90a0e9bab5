"""What a mask saves: compiled costs, formulas, savings and the limits of a machine."""
