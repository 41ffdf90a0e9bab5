"""`sinkjax frontier`, from a checkout: what it does, sinkjax/cli/frontier.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("frontier")
