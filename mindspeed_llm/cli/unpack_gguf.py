"""Owns `mindspeed-llm unpack-gguf`: one GGUF file in, one Hugging Face directory out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mindspeed_llm.checkpoint.gguf import unpack
from mindspeed_llm.config.flags import parse, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnpackConfig:
    """GGUF file"""

    input: Path = setting(help="the .gguf file of a Llama-family model")
    output: Path = setting(help="Hugging Face directory to write; must not exist")


def main(argv: Sequence[str]) -> int:
    """Unpack as the flags say; raises UserError."""
    (settings,) = parse(argv, UnpackConfig, prog="mindspeed-llm unpack-gguf",
                        description="GGUF -> Hugging Face directory")  # fmt: skip
    nbytes = unpack(settings.input, settings.output)
    print(f"{settings.output}: {nbytes / 2**20:.0f} MiB of float32 weights, tokenizer, config.json")
    return 0
