"""`sinkjax sweep`, from a checkout: what it does, sinkjax/cli/sweep.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("sweep")
