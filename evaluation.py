"""The guide's script name for `mindspeed-llm`'s evaluate command line; owns nothing else."""

import sys

from mindspeed_llm.cli import evaluate
from mindspeed_llm.cli.main import run

if __name__ == "__main__":
    sys.exit(run(evaluate.main))
