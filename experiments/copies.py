"""`sinkjax copies`, from a checkout: what it does, sinkjax/cli/copies.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("copies")
