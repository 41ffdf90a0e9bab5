"""`sinkjax convert`, from a checkout: what it does, sinkjax/cli/convert.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("convert")
