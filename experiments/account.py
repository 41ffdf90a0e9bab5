from sinkjax.cli.main import run

if __name__ == "__main__":
    run("account")
