"""The guide's script name for `mindspeed-llm`'s convert command line; owns nothing else."""

import sys

from mindspeed_llm.cli import convert
from mindspeed_llm.cli.main import run

if __name__ == "__main__":
    sys.exit(run(convert.main))
