"""`sinkjax quality`, from a checkout: what it does, sinkjax/cli/quality.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("quality")
