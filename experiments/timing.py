"""`sinkjax timing`, from a checkout: what it does, sinkjax/cli/timing.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("timing")
