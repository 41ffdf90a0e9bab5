"""`sinkjax inspect`, from a checkout: what it does, sinkjax/cli/inspect.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("inspect")
