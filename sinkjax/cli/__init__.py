"""The command lines: flags, terminal, and what each script does."""
