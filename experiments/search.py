"""`sinkjax search`, from a checkout: what it does, sinkjax/cli/search.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("search")
