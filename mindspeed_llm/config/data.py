"""Owns the settings of preparing data; knows neither files nor tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError

HF_PROMPT = "hf"
PLAIN_TEXT = "GeneralPretrainHandler"
MESSAGE_LISTS = ("SharegptStyleInstructionHandler", "OpenAIInstructionHandler")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """conversations -> the six files of a prepared data set"""

    input: tuple[str, ...] = setting(
        help="parquet, arrow, csv, json, jsonl or txt files, each also as .gz, or directories "
        "(read recursively, in name order); PATH:WEIGHT for all mixes them in these shares"
    )
    tokenizer_name_or_path: Path = setting(help="Hugging Face directory of the model's tokenizer")
    output_prefix: Path = setting(
        help="where to write: PREFIX_packed_{input_ids,attention_mask,labels}_document.{bin,idx}"
    )
    tokenizer_type: str = setting(
        "PretrainedFromHF", help="kind of tokenizer", choices=("PretrainedFromHF",)
    )
    handler_name: str = setting(
        "AlpacaStyleInstructionHandler", help="how a row becomes a conversation"
    )
    json_keys: tuple[str, ...] = setting(
        ("text",), help=f"{PLAIN_TEXT} only: the column that holds the text"
    )
    append_eod: bool = setting(
        False, help=f"{PLAIN_TEXT} only: end each text with the tokenizer's eos token"
    )
    prompt_type: str | None = setting(
        None, help="chat template by name, e.g. gemma; 'hf' is --hf-chat-template"
    )
    hf_chat_template: bool = setting(
        False, help="use the tokenizer's own chat template instead of --prompt-type"
    )
    template_compat: str | None = setting(
        None,
        help="'mindspeed': the ids and labels that MindSpeed-LLM 2.1 makes for --prompt-type, its "
        "eos labels over end-of-turn tokens included; for comparing with older data sets",
        choices=("mindspeed",),
    )
    thinking: str | None = setting(
        None,
        help="answers with <think> blocks (qwen3, deepseek3). The model's own template removes the "
        "thinking of earlier answers. 'expand' (the default): such an answer gets a row of its own "
        "that ends with it; 'strip-history': one row, where it is not trained; 'keep': one row, "
        "and earlier thinking stays",
        choices=("keep", "strip-history", "expand"),
    )
    map_keys: dict | None = setting(
        None, help='which column holds what, e.g. {"history": "histories"}; others keep defaults'
    )
    seq_length: int | None = setting(
        None, help="longest row in tokens, see --truncation; without it all rows are kept"
    )
    truncation: str = setting(
        "drop",
        help="conversations over --seq-length: 'drop' leaves them out and counts them, "
        "'oldest-turns' and 'newest-turns' drop whole turns from the beginning or the end until "
        "the rest fits (the system text stays), 'error' makes the run fail; 'split' cuts plain "
        f"texts ({PLAIN_TEXT}) into pieces",
        choices=("drop", "oldest-turns", "newest-turns", "error", "split"),
    )
    train_on: str = setting(
        "all",
        help="answers that are targets where a message does not say so itself (key 'loss' or "
        "'weight'): 'all', the 'last' of each conversation, or 'none'",
        choices=("all", "last", "none"),
    )
    train_on_inputs: bool = setting(
        False, help="user turns are targets too, up to their end-of-turn token; headers are not"
    )
    role_order: str = setting(
        "repair",
        help="turns that do not alternate: 'repair' joins neighbours of one role and drops an "
        "answer that nothing precedes and a last turn that nothing answers, and counts the rows; "
        "'reject' leaves such rows out",
        choices=("repair", "reject"),
    )
    mix_exhausted: str = setting(
        "stop",
        help="with weights, when a source has no row left: 'stop' ends the mix, 'repeat' begins "
        "that source again until every source was used up once",
        choices=("stop", "repeat"),
    )
    pack: bool = setting(
        False,
        aliases=("--neat-pack",),
        help="fill rows of exactly --seq-length with conversations that do not see each other; "
        "both spellings store segment ids as attention_mask",
    )
    pad_to_multiple_of: int = setting(
        1, help="of packed rows: each conversation begins at a multiple of this"
    )
    on_bad_row: str = setting(
        "limit",
        help="a row that cannot be used: 'skip' leaves it out and reports it, 'error' makes the "
        "run fail after listing all of them, 'limit' skips but fails above 5 % of the rows",
        choices=("limit", "skip", "error"),
    )
    strict: bool = setting(
        False, help="stop at the first row that cannot be used, with file, line, field and reason"
    )
    verify_template: bool = setting(
        True,
        help="do not compare the first rows with the tokenizer's own chat template",
        negative="--no-verify-template",
    )
    workers: int = setting(1, help="processes; the files are the same for any number")
    log_interval: int = setting(1000, help="rows between two progress lines")
    show_samples: int = setting(
        0, help="first show so many rows, as inspect-data does: what is trained, token by token"
    )
    seed: int = setting(1234, help="seed of random choices, kept in the manifest")

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: expected at least 1")
        if self.log_interval < 1:
            raise ConfigError(f"--log-interval {self.log_interval}: expected at least 1")
        if self.show_samples < 0:
            raise ConfigError(f"--show-samples {self.show_samples}: expected 0 or more")
        if self.seq_length is not None and self.seq_length < 2:
            raise ConfigError(f"--seq-length {self.seq_length}: expected at least 2 tokens")
        if self.truncation != "drop" and self.seq_length is None:
            raise ConfigError(f"--truncation {self.truncation} needs --seq-length")
        self._check_packing()
        self._check_targets()
        if self.handler_name == PLAIN_TEXT:
            self._check_plain_text()
        else:
            self._check_conversations()

    def _check_targets(self) -> None:
        if self.train_on == "none" and self.handler_name not in MESSAGE_LISTS:
            raise ConfigError("--train-on none trains only what a message marks with 'loss', which "
                              f"rows of {self.handler_name} cannot; use --train-on all or "
                              "last")  # fmt: skip
        if self.strict and self.on_bad_row == "skip":
            raise ConfigError("--strict stops at a bad row, --on-bad-row skip passes it over; give "
                              "one of them")  # fmt: skip

    def _check_plain_text(self) -> None:
        given = {"--prompt-type": self.prompt_type, "--hf-chat-template": self.hf_chat_template,
                 "--map-keys": self.map_keys, "--train-on-inputs": self.train_on_inputs,
                 "--template-compat": self.template_compat, "--thinking": self.thinking,
                 "--train-on": self.train_on != "all"}  # fmt: skip
        for flag, value in given.items():
            if value:
                raise ConfigError(f"{flag} has no meaning with {PLAIN_TEXT}: a plain text has no "
                                  "turns, its column is --json-keys, and all of it is "
                                  "trained")  # fmt: skip
        if len(self.json_keys) != 1:
            raise ConfigError(f"--json-keys {' '.join(self.json_keys)}: one column makes one data "
                              "set; run once for each, with an --output-prefix of its "
                              "own")  # fmt: skip
        if self.truncation in ("oldest-turns", "newest-turns"):
            raise ConfigError(f"--truncation {self.truncation}: a plain text has no turns; use "
                              "split, drop or error")  # fmt: skip

    def _check_conversations(self) -> None:
        if self.append_eod:
            raise ConfigError("--append-eod is for plain texts; in a conversation every answer "
                              "ends with its end-of-turn token, which is trained")  # fmt: skip
        if self.json_keys != ("text",):
            raise ConfigError(f"--json-keys is for {PLAIN_TEXT}; {self.handler_name} takes its "
                              "columns from --map-keys")  # fmt: skip
        if self.truncation == "split":
            raise ConfigError("--truncation split would cut conversations inside a turn; use "
                              "oldest-turns, newest-turns, drop or error")  # fmt: skip
        named = self.prompt_type not in (None, HF_PROMPT)
        if named and self.hf_chat_template:
            raise ConfigError(f"--prompt-type {self.prompt_type} and --hf-chat-template are two "
                              "templates; give one of them")  # fmt: skip
        if not named and not self.uses_hf_template:
            raise ConfigError("no chat template: give --prompt-type (e.g. gemma), or "
                              "--hf-chat-template for the tokenizer's own")  # fmt: skip
        for flag, value in (("--template-compat", self.template_compat),
                            ("--thinking", self.thinking)):  # fmt: skip
            if value and self.uses_hf_template:
                raise ConfigError(f"{flag} {value} is for the templates of --prompt-type; the "
                                  "tokenizer's own template is used as it is")  # fmt: skip
        if self.template_compat and self.thinking:
            raise ConfigError(f"--thinking {self.thinking} has no place with --template-compat "
                              f"{self.template_compat}, whose templates know no "
                              "thinking")  # fmt: skip

    def _check_packing(self) -> None:
        multiple = self.pad_to_multiple_of
        if multiple < 1:
            raise ConfigError(f"--pad-to-multiple-of {multiple}: expected at least 1")
        if not self.pack:
            if multiple > 1:
                raise ConfigError(f"--pad-to-multiple-of {multiple} has no effect without --pack; "
                                  "rows are padded when they are trained")  # fmt: skip
            return
        if self.seq_length is None:
            raise ConfigError("--pack needs --seq-length, the tokens of a packed row")
        if self.seq_length % multiple:
            raise ConfigError(f"--seq-length {self.seq_length} is not a multiple of "
                              f"--pad-to-multiple-of {multiple}")  # fmt: skip

    @property
    def uses_hf_template(self) -> bool:
        """Whether the tokenizer's own chat template renders the conversations."""
        return self.hf_chat_template or self.prompt_type == HF_PROMPT
