"""`sinkjax generate`, from a checkout: what it does, sinkjax/cli/generate.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("generate")
