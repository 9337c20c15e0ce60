"""Owns the `mindspeed-llm` command: picks the sub-command and turns errors into exit codes.

It knows no flag; each sub-command's module has `main(argv) -> int`, imported when called.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence

from mindspeed_llm import __version__
from mindspeed_llm import logging as log
from mindspeed_llm.errors import UserError

COMMANDS: dict[str, tuple[str, str]] = {
    "preprocess": ("preprocess", "conversations -> the six files of a packed data set"),
    "inspect-data": ("inspect_data", "what a prepared data set holds and what is trained"),
    "convert": ("convert", "Hugging Face <-> Megatron-Core weights"),
    "verify": ("verify", "an exported model against its checkpoint: logits of both"),
    "train": ("train", "supervised fine-tuning"),
    "chat": ("inference", "talk to a model in the terminal"),
    "generate": ("inference", "answer prompts in a batch"),
    "serve": ("serve", "answer OpenAI's requests, and a page to talk, over HTTP"),
    "evaluate": ("evaluate", "multi-turn recall and loss"),
    "dialogues": ("dialogues", "write memory dialogues for training and evaluation"),
    "plan": ("plan", "memory of a training run at each layout, and which layout to take"),
    "doctor": ("doctor", "what is installed, from which file, and what will run"),
    "selfcheck": ("selfcheck", "every kernel of this machine against plain torch on the CPU"),
    "patches": ("patches", "what is patched here, why, and until when"),
    "launch": ("launch", "torchrun whose failures read as one line"),
    "unpack-gguf": ("unpack_gguf", "GGUF file -> Hugging Face directory"),
}
# What megatron-core says on every start: nothing is amiss, none of it is needed.
_NO_NEWS = (".*(Transformer Engine|Apex).*not installed", "full scope is deprecated",
            "Failed to create unified memory mempool",
            r"The \.grad attribute of a Tensor that is not a leaf",
            r"`?torch\.distributed\..* is deprecated")  # fmt: skip
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PRESET = {"chat": ["--task", "chat"], "generate": ["--task", "greedy"]}


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run one sub-command's `main`; a user's mistake becomes one message and an exit code."""
    log.configure()
    for known in _NO_NEWS:
        warnings.filterwarnings("ignore", message=known)
    logging.getLogger("megatron.core.utils").addFilter(_is_news)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return command(arguments)
    except UserError as err:
        where = "" if log.rank() == 0 else f"[rank {log.rank()}] "
        print(f"{where}error: {err}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read the output has left (`| head`). Python would complain again when it flushes at
        # the end, so standard output goes nowhere from here on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as err:
        # A place that cannot be read or written: the user's to mend. Anything else keeps its trace.
        if err.filename is None and err.errno not in _NO_ROOM:
            raise
        place = "" if err.filename is None else f"{err.filename}: "
        print(f"error: {place}{err.strerror}; choose another place, or make this one usable",
              file=sys.stderr)  # fmt: skip
        return UserError.exit_code


def _is_news(record: logging.LogRecord) -> bool:
    """False for what megatron-core 0.15 logs of its own unfinished functions at import."""
    return "has reached end of life" not in str(record.msg)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"mindspeed_llm.cli.{COMMANDS[name][0]}")
    preset = _PRESET.get(name, []) if "--task" not in arguments else []
    return run(module.main, preset + arguments[1:])


def _usage() -> str:
    rows = "\n".join(f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items())
    return f"usage: mindspeed-llm COMMAND [flags]   (COMMAND --help lists them)\n\n{rows}"


if __name__ == "__main__":
    sys.exit(main())
