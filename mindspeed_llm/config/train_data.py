"""Owns what a run says of its data sets: which, in what order, how rows become batches.
Opens no file.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path

from mindspeed_llm.config.data import HF_PROMPT
from mindspeed_llm.config.flags import at_least, setting
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainDataConfig:
    """The prepared data sets, their tokenizer, and how rows become batches"""

    data_path: tuple[str, ...] = setting(
        help="prefix of the six files that preprocess_data.py wrote, or a file or directory of "
        "conversations; several, or weights and prefixes in turn (0.3 A 0.7 B), are trained as one",
        metavar="[WEIGHT] PREFIX",
    )
    split: str = setting(
        "100,0,0", help="shares of training, validation and test rows in each data set"
    )
    tokenizer_type: str = setting(
        "PretrainedFromHF", choices=("PretrainedFromHF",), help="kind of tokenizer"
    )
    tokenizer_name_or_path: Path | None = setting(
        None, help="Hugging Face directory of the tokenizer; default: the checkpoint's own"
    )
    prompt_type: str | None = setting(
        None, help="chat template; must be the one the data were prepared with"
    )
    hf_chat_template: bool = setting(
        False, help="the template is the tokenizer's own; for --data-path as for --prompt-type"
    )
    handler_name: str | None = setting(
        None, help="where --data-path is a file of conversations: see preprocess_data.py"
    )
    map_keys: dict | None = setting(
        None, help="where --data-path is a file of conversations: see preprocess_data.py"
    )
    data_cache_path: Path | None = setting(
        None,
        help="directory where data sets are kept that training makes from files of conversations, "
        "or with --pack or --truncation; default: .mindspeed_llm_cache beside the data",
    )
    truncation: str = setting(
        "drop",
        help="rows over --seq-length: 'drop' leaves them out and counts them, 'oldest-turns' and "
        "'newest-turns' drop whole turns until the rest fits, 'split' cuts plain texts, 'error' "
        "ends the run; as preprocess_data.py does",
        choices=("drop", "oldest-turns", "newest-turns", "split", "error"),
    )
    pack: bool = setting(
        False,
        help="rows of exactly --seq-length hold several conversations that never see each other; "
        "data sets that are not packed are packed first, as preprocess_data.py --pack does",
    )
    variable_seq_lengths: bool = setting(
        False, help="pad a micro-batch to its longest row instead of --seq-length"
    )
    pad_to_multiple_of: int | None = setting(
        None,
        help="with --variable-seq-lengths: round lengths up to it (default 8); where --pack packs: "
        "each conversation begins at a multiple of it (default 1)",
    )
    neat_pack: bool = setting(
        False, help="states that the data are packed; conversations of a row never see each other"
    )
    reset_position_ids: bool = setting(
        False, help="states the same: positions start again with each conversation of a row"
    )
    reset_attention_mask: bool = setting(
        False, help="states the same: attention ends with each conversation of a row"
    )
    shuffle: bool = setting(True, negative="--no-shuffle", help="keep the rows in file order")
    padded_samples: bool = setting(
        False,
        help="fill each epoch up to whole global batches with rows of its own, so that no batch "
        "lies in two epochs",
    )
    full_shuffle_instruction_dataset: bool = setting(
        False, help="shuffle all epochs of the run as one, instead of each by itself"
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "pad_to_multiple_of")
        if self.pack and self.variable_seq_lengths:
            raise ConfigError(
                "--variable-seq-lengths has no effect with --pack, whose rows all have "
                "--seq-length tokens; drop one of them"
            )
        self._check_order()
        if self.hf_chat_template and self.prompt_type not in (None, HF_PROMPT):
            raise ConfigError(
                f"--prompt-type {self.prompt_type} and --hf-chat-template are two templates; give "
                "one of them"
            )
        twice = [prefix for prefix in self.prefixes if self.prefixes.count(prefix) > 1]
        if twice:
            raise ConfigError(f"--data-path names {twice[0]} twice; give it one weight")

    def _check_order(self) -> None:
        full, padded = self.full_shuffle_instruction_dataset, self.padded_samples
        if full and not self.shuffle:
            raise ConfigError("--full-shuffle-instruction-dataset contradicts --no-shuffle")
        if full and padded:
            raise ConfigError(
                "--padded-samples fills the last batch of an epoch, and with "
                "--full-shuffle-instruction-dataset the epochs are mixed; give one of them"
            )
        if padded and self.weights is not None and len(self.prefixes) > 1:
            raise ConfigError(
                "--padded-samples fills the last batch of an epoch, and data sets that are "
                "blended by weight have no common epoch; drop the flag or the weights"
            )

    @property
    def fits_rows(self) -> bool:
        """Whether rows may have to be made anew for the run."""
        return self.pack or self.truncation != "drop"

    @property
    def row_multiple(self) -> int:
        """With --variable-seq-lengths: lengths of micro-batches are rounded up to it."""
        return self.pad_to_multiple_of or 8

    @property
    def pack_multiple(self) -> int:
        """With --pack: conversations begin at multiples of it."""
        return self.pad_to_multiple_of or 1

    @property
    def weights(self) -> tuple[Fraction, ...] | None:
        """Weight of each data set, exactly as written; None where none is given."""
        return self._blend[0]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The data sets."""
        return self._blend[1]

    @property
    def _blend(self) -> tuple[tuple[Fraction, ...] | None, tuple[str, ...]]:
        """As Megatron-LM reads it: an even number of words, each second one a weight."""
        words = self.data_path
        numbers = [_number(word) for word in words[::2]]
        if len(words) % 2 or not any(number is not None for number in numbers):
            return None, words
        for word, number in zip(words[::2], numbers, strict=True):
            if number is None or number <= 0:
                raise ConfigError(
                    f"--data-path {' '.join(words)}: {word!r} is not a weight above 0; expected "
                    "WEIGHT PREFIX in turn for all data sets, or no weight at all"
                )
        return tuple(number for number in numbers if number is not None), words[1::2]

    @property
    def template(self) -> str | None:
        """Name of the template that the data must have, or None."""
        return HF_PROMPT if self.hf_chat_template else self.prompt_type


def _number(word: str) -> Fraction | None:
    try:
        return Fraction(word) if math.isfinite(float(word)) else None
    except ValueError:
        return None
