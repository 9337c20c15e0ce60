"""The guide's script name for `mindspeed-llm`'s inference command line; owns nothing else."""

import sys

from mindspeed_llm.cli import inference
from mindspeed_llm.cli.main import run

if __name__ == "__main__":
    sys.exit(run(inference.main))
