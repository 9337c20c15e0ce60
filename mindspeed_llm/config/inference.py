"""Owns the settings of chat and generation; knows neither models nor tokenizers nor terminals.

Flags that MindSpeed-LLM's chat and generate scripts pass keep their names and meaning.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from mindspeed_llm.config.flags import flag_of, setting
from mindspeed_llm.errors import ConfigError

DEFAULT_CONTEXT = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """The model, its tokenizer, its chat template"""

    load: Path = setting(help="Megatron checkpoint (converted or tuned), or Hugging Face directory")
    trust_pickle: bool = setting(
        False,
        help="read pickled weights too (.bin, torch_dist and mp_rank checkpoints), by torch's "
        "weights_only loader, which runs no code of theirs",
    )
    lora_load: Path | None = setting(
        None,
        help="adapter to merge into the weights of --load: a LoRA checkpoint of ours or a "
        "PEFT directory; a LoRA checkpoint may also be --load itself",
    )
    tokenizer_type: str = setting(
        "PretrainedFromHF", choices=("PretrainedFromHF",), help="kind of tokenizer"
    )
    tokenizer_name_or_path: Path | None = setting(
        None, help="Hugging Face directory of the tokenizer; default: the checkpoint's own"
    )
    prompt_type: str | None = setting(
        None, help="chat template, the one the model was tuned with (gemma, chatml, llama3, ...)"
    )
    hf_chat_template: bool = setting(False, help="the tokenizer's own chat template instead")
    template_compat: str | None = setting(
        None,
        help="'mindspeed': the prompt as MindSpeed-LLM 2.1 writes it, for a model tuned so",
        choices=("mindspeed",),
    )
    thinking: str | None = setting(
        None,
        help="'keep': earlier answers keep their <think> blocks in the prompt, for a model tuned "
        "so; else they are removed, as the model's own template does",
        choices=("keep", "strip-history", "expand"),
    )
    system: str | None = setting(None, help="system text; default: the template's own")
    bf16: bool = setting(False, help="bfloat16 weights and activations instead of fp32")
    seq_length: int | None = setting(
        None,
        help=f"longest conversation in tokens; default: the model's, at most {DEFAULT_CONTEXT}",
    )

    def __post_init__(self) -> None:
        if self.prompt_type is not None and self.hf_chat_template:
            raise ConfigError(
                f"--prompt-type {self.prompt_type} and --hf-chat-template name two templates; "
                "give one of them"
            )
        for flag, value in (
            ("--template-compat", self.template_compat),
            ("--thinking", self.thinking),
        ):
            if value is not None and self.prompt_type is None:
                raise ConfigError(f"{flag} {value} is for the templates of --prompt-type; give one")
        if self.seq_length is not None and self.seq_length < 2:
            raise ConfigError(f"--seq-length is {self.seq_length}; expected 2 or more")

    @property
    def has_template(self) -> bool:
        """Whether a chat template was asked for."""
        return self.prompt_type is not None or self.hf_chat_template


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How replies are made"""

    max_new_tokens: int = setting(256, help="longest reply in tokens")
    temperature: float | None = setting(
        None, help="0 takes the most probable token; above, tokens are drawn; default: 0"
    )
    top_k: int = setting(0, help="draw among the k most probable tokens; 0: among all")
    top_p: float = setting(1.0, help="draw among the most probable tokens that reach this sum")
    min_p: float = setting(
        0.0, help="draw among tokens with at least this share of the most probable one's chance"
    )
    repetition_penalty: float = setting(
        1.0, help="above 1: tokens that prompt or reply already hold become less likely"
    )
    seed: int = setting(1234, help="of the drawing; in a chat the n-th reply adds n - 1")
    stop: tuple[str, ...] = setting(
        (), help="texts that end a reply; they are not shown", metavar="TEXT"
    )
    logprobs: int | None = setting(
        None, help="write each token's log-probability and that of the N most probable ones"
    )

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}; expected 1 or more")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature is {self.temperature}; expected 0 or more")
        if self.top_k < 0:
            raise ConfigError(f"--top-k is {self.top_k}; expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}; expected above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"--min-p is {self.min_p}; expected 0 (all tokens) to 1")
        if not all(self.stop):
            raise ConfigError("--stop has an empty text, which stands everywhere; leave it out")

    def temperature_of(self, task: Literal["chat", "greedy", "do_sample"]) -> float:
        """The temperature that `task` runs with.

        Raises:
            ConfigError: a flag would have no effect, or contradicts the task.
        """
        given = self.temperature
        filtered = self.top_k != 0 or self.top_p != 1.0 or self.min_p != 0.0
        if task == "greedy" and (given or filtered):
            raise ConfigError(
                "--task greedy always takes the most probable token, so --temperature, --top-k, "
                "--top-p and --min-p have no effect; drop them or use --task do_sample"
            )
        if task == "do_sample" and given == 0:
            raise ConfigError(
                "--task do_sample draws tokens and --temperature 0 does not; use --task greedy or "
                "a temperature above 0"
            )
        if task == "greedy" or given == 0:
            if filtered:
                raise ConfigError(
                    "--top-k, --top-p and --min-p have no effect with --temperature 0; drop one or "
                    "the other"
                )
            return 0.0
        if given is None:
            return 1.0 if task == "do_sample" or filtered else 0.0
        return given


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What to do, and with which input"""

    task: str = setting(
        "greedy",
        choices=("chat", "greedy", "do_sample", "sample", "beam_search",
                 "beam_search_with_sampling", "return_output_log_probs"),
        help="chat in the terminal, or answer prompts",
    )  # fmt: skip
    prompt: str | None = setting(None, help="the prompt to answer")
    prompts_file: Path | None = setting(
        None,
        aliases=("--prompts",),
        help='prompts to answer: a text a line; in .jsonl texts, {"prompt": text} or '
        '{"messages": [{"role", "content"}, ...]}',
    )
    output: Path | None = setting(
        None, help="write the replies here as JSON lines; what is answered there already stays"
    )
    micro_batch_size: int = setting(8, help="prompts answered together")

    def __post_init__(self) -> None:
        reasons = {
            "beam_search": "beam search is not offered: chat models are decoded greedily or drawn",
            "beam_search_with_sampling": "beam search is not offered; use --task do_sample",
            "return_output_log_probs": "`mindspeed-llm evaluate` reports log-likelihoods",
        }
        if self.task in reasons:
            raise ConfigError(f"--task {self.task} cannot be honoured here: {reasons[self.task]}")
        if self.micro_batch_size < 1:
            raise ConfigError(f"--micro-batch-size is {self.micro_batch_size}; expected 1 or more")
        inputs = ("prompt", "prompts_file", "output")
        given = [name for name in inputs if getattr(self, name) is not None]
        if self.task == "chat" and given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ConfigError(f"{flags} have no effect with --task chat; drop them")
        if self.prompt is not None and self.prompts_file is not None:
            raise ConfigError("give one of --prompt and --prompts-file, not both")

    @property
    def kind(self) -> Literal["chat", "greedy", "do_sample"]:
        """The task without MindSpeed-LLM's second name of it."""
        if self.task == "chat":
            return "chat"
        return "greedy" if self.task == "greedy" else "do_sample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """The conversation of --task chat"""

    history_turns: int = setting(3, help="earlier turns the model sees")
    overflow: str = setting(
        "drop-turns",
        choices=("drop-turns", "error"),
        help="when a conversation is longer than the context: leave out its oldest turns, or "
        "refuse the new one",
    )
    stats: bool = setting(False, help="a line of counts and speed after each reply")
    script: Path | None = setting(
        None, help="take the user's lines from this file instead of the terminal"
    )
    json: bool = setting(False, help="answer each line with one JSON object, for machines")
    session: Path | None = setting(None, help="begin with the conversation that /save wrote here")
    history_file: Path | None = setting(
        None,
        help="where typed lines are kept (mode 0600); default: "
        "$XDG_STATE_HOME/mindspeed-llm/chat_history",
    )
    keep_history: bool = setting(
        True, negative="--no-history-file", help="typed lines are not kept in a file"
    )

    def __post_init__(self) -> None:
        if self.history_turns < 0:
            raise ConfigError(f"--history-turns is {self.history_turns}; expected 0 or more")
        if self.history_file is not None and not self.keep_history:
            raise ConfigError("--history-file and --no-history-file contradict each other")

    def check_task(self, task: str) -> None:
        """Raise ConfigError where a setting of the chat was given for another task."""
        fields = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        if task != "chat" and fields:
            flags = ", ".join(f.metadata["negative"] or flag_of(f.name) for f in fields)
            raise ConfigError(f"{flags}: only --task chat has a conversation; drop it")


ALWAYS: dict[str, str] = {
    "--use-mcore-models": "models are megatron-core's GPTModel",
    "--use-rotary-position-embeddings": "every supported family has rotary positions",
    "--use-kv-cache": "the KV cache is always used, and kept between turns",
    "--attention-softmax-in-fp32": "the softmax of attention is computed in fp32",
    "--no-masked-softmax-fusion": "apex's fused softmax is never used",
    "--no-gradient-accumulation-fusion": "there are no gradients here",
    "--no-load-optim": "only weights are read",
    "--no-load-rng": "only weights are read",
    "--exit-on-missing-checkpoint": "a missing checkpoint is an error",
}

_KERNEL = "kernels are chosen by the device, and a switch here would change nothing: drop it"

REFUSED: dict[str, str] = {
    "--fp16": "use --bf16, or neither for fp32",
    "--spec": "the family in the checkpoint's config.json chooses the layer spec; drop it",
    "--use-fused-rmsnorm": _KERNEL,
    "--use-fused-swiglu": _KERNEL,
    "--use-fused-rotary-pos-emb": _KERNEL,
    "--use-flash-attn": _KERNEL,
    "--max-length": "say --seq-length (whole conversation) or --max-new-tokens (reply)",
}
