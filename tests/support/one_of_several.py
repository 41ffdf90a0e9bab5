"""Runs commands, one after another, as one of several processes.

python tests/support/one_of_several.py PORT PROCESSES ID '[["experiments.sweep", "--model=..."]]'
"""

import json
import sys

from scripts import run_main

if __name__ == "__main__":
    port, count, index, commands = sys.argv[1:]
    joined = f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"
    for name, *arguments in json.loads(commands):
        run_main(name, *arguments, *joined)
