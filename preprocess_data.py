"""The guide's script name for `mindspeed-llm`'s preprocess command line; owns nothing else."""

import sys

from mindspeed_llm.cli import preprocess
from mindspeed_llm.cli.main import run

if __name__ == "__main__":
    sys.exit(run(preprocess.main))
