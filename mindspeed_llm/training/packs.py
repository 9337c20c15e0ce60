"""Owns what a packed data set asks of a run: which flags must agree with how it was packed. It
opens no file and knows no tensor.
"""

from __future__ import annotations

from mindspeed_llm.config.flags import flag_of
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.manifest import Manifest
from mindspeed_llm.errors import ConfigError

# What other launchers must say for conversations of a row not to see each other; here they never
# do, so these flags are statements about the data.
STATEMENTS = ("neat_pack", "reset_position_ids", "reset_attention_mask")


def check_packing(settings: Settings, where: str, manifest: Manifest, model: ModelConfig) -> None:
    """Raise ConfigError unless the flags agree with how the data set was packed, and the model has
    positions for its sequences; `where` is its flag and name, for messages.

    A packed row may be longer than the model's context, since no sequence in it is.
    """
    packing = manifest.packing
    length, positions = settings.train.seq_length, model.max_position_embeddings
    if packing is None:
        if length > positions:
            raise ConfigError(
                f"--seq-length {length} is beyond the model's {positions} positions; lower it"
            )
        for name in STATEMENTS:
            if getattr(settings.data, name):
                raise ConfigError(
                    f"{flag_of(name)} says that rows hold several conversations, but each row of "
                    f"{where} is one; drop the flag, or pack them with --pack, here or when the "
                    "data are prepared"
                )
        return
    if length != packing.capacity:
        raise ConfigError(
            f"--seq-length is {length}, but {where} was packed into rows of {packing.capacity} "
            f"tokens; use --seq-length {packing.capacity}, or pack the data again with "
            f"--seq-length {length}"
        )
    if manifest.longest > positions:
        raise ConfigError(
            f"{where} has a conversation of {manifest.longest} tokens, beyond the model's "
            f"{positions} positions; prepare the data again with --seq-length {positions} or less"
        )
    if settings.data.variable_seq_lengths:
        raise ConfigError(
            f"--variable-seq-lengths has no effect on {where}, whose packed rows all have "
            f"{packing.capacity} tokens; drop it"
        )
    short = model.rope.original_max_position
    if model.rope.scaling == "longrope" and packing.capacity > short:
        raise ConfigError(
            f"{where} has packed rows of {packing.capacity} tokens, and this model turns sequences "
            f"of more than {short} tokens otherwise than shorter ones, which in one row cannot be; "
            f"pack into rows of at most {short} tokens, or prepare the data without --pack"
        )
