"""`sinkjax repair`, from a checkout: what it does, sinkjax/cli/repair.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("repair")
