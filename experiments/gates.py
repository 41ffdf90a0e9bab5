"""`sinkjax gates`, from a checkout: what it does, sinkjax/cli/gates.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("gates")
