"""`sinkjax mask`, from a checkout: what it does, sinkjax/cli/mask.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("mask")
