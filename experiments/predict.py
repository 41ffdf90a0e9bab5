"""`sinkjax predict`, from a checkout: what it does, sinkjax/cli/predict.py says."""

from sinkjax.cli.main import run

if __name__ == "__main__":
    run("predict")
