"""Owns the settings of weight conversion, named as MindSpeed-LLM 2.1 names its flags; converts
nothing itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError

# Flags of MindSpeed-LLM's converter that state what is always so here.
ALWAYS = {
    "--use-mcore-models": "weights are those of megatron-core's GPTModel",
}
# Flags of MindSpeed-LLM's converter that are not honoured, and what to do instead.
REFUSED = {
    "--load-checkpoint-loosely": "a tensor that is missing or left over is an error; leave it out",
    "--num-layers-per-virtual-pipeline-stage": "the result loads at any pipeline layout; leave it "
    "out",
    "--num-layer-list": "the result loads at any pipeline layout; leave it out",
    "--noop-layers": "layers that do nothing are not supported",
    "--lora-r": "the adapter at --lora-load says it; leave it out",
    "--lora-alpha": "the adapter at --lora-load says it; leave it out",
    "--lora-target-modules": "the adapter at --lora-load says it; leave it out",
    "--moe-grouped-gemm": "weights do not depend on how experts are computed; leave it out",
    "--make-vocab-size-divisible-by": "the vocabulary is padded when a model is built and stored "
    "without padding; leave it out",
    "--orm": "reward models are not supported",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Weight conversion"""

    load_model_type: str = setting(
        help="what is read: hf (Hugging Face weights) or mg (a checkpoint of ours, or with "
        "--trust-pickle one of Megatron-LM or MindSpeed-LLM)",
        choices=("hf", "mg"),
    )
    save_model_type: str = setting(help="what is written", choices=("hf", "mg"))
    load_dir: Path = setting(help="directory to read")
    save_dir: Path = setting(
        help="directory to write; for mg -> hf it may be the original Hugging Face model, then "
        "the result goes to mg2hg/ below it"
    )
    model_type: str = setting("GPT", help="kind of model", choices=("GPT",))
    model_type_hf: str | None = setting(
        None, help="family, compared with config.json's model_type, which decides"
    )
    target_tensor_parallel_size: int = setting(
        1, help="TP it is meant for; checked and noted, the result loads at any"
    )
    target_pipeline_parallel_size: int = setting(
        1, help="PP it is meant for; checked and noted, the result loads at any"
    )
    target_expert_parallel_size: int = setting(
        1, help="EP it is meant for; checked and noted, the result loads at any"
    )
    tokenizer_model: Path | None = setting(
        None, help="tokenizer file or directory whose files travel with the weights"
    )
    params_dtype: str | None = setting(
        None,
        help="cast to this dtype; without it every bit is kept",
        choices=("fp32", "bf16", "fp16"),
    )
    add_qkv_bias: bool = setting(False, help="the model has biases of q, k and v; is compared")
    post_norm: bool = setting(False, help="the model has norms after its sub-layers; is compared")
    spec: tuple[str, ...] | None = setting(
        None, help="MindSpeed-LLM's layer spec (module and name); its family is compared"
    )
    lora_load: Path | None = setting(
        None,
        help="adapter to merge into the weights of --load-dir: a LoRA checkpoint of ours or a PEFT "
        "directory; a LoRA checkpoint may also be --load-dir itself",
    )
    blend_with: Path | None = setting(
        None,
        help="weights that the run of --load-dir started from (a checkpoint or a Hugging Face "
        "directory); what is written lies on the line from them to those of --load-dir; mg -> mg",
    )
    blend_share: float | None = setting(
        None,
        help="with --blend-with: how far to go from there to --load-dir's weights, above 0 and "
        "below 1; less keeps more of what the model knew before",
    )
    save_lora_to_hf: bool = setting(
        False, help="write the adapter by itself, as a PEFT directory; mg -> hf"
    )
    ckpt_format: str = setting(
        "safetensors",
        help="format of a checkpoint that is written: safetensors (ours) or torch_dist, which "
        "Megatron-LM loads",
        choices=("safetensors", "torch_dist"),
    )
    trust_pickle: bool = setting(
        False,
        help="read pickled weights too (.bin, .pt, torch_dist and mp_rank checkpoints), by torch's "
        "weights_only loader, which runs no code of theirs",
    )
    max_shard_gb: float = setting(5.0, help="largest Hugging Face weight file, in 10^9 bytes")
    overwrite: bool = setting(False, help="replace a checkpoint or model that is in --save-dir")
    verify: bool = setting(
        True,
        negative="--no-verify",
        help="do not open the Hugging Face directory with transformers and compare its logits",
    )

    def __post_init__(self) -> None:
        if self.save_lora_to_hf:
            self._check_adapter_export()
        elif self.load_model_type == self.save_model_type == "hf" and self.lora_load is None:
            raise ConfigError("--load-model-type and --save-model-type are both hf; nothing to "
                              "convert")  # fmt: skip
        if self.save_model_type == "hf" and self.ckpt_format != "safetensors":
            raise ConfigError(f"--ckpt-format {self.ckpt_format}: Hugging Face weights are "
                              "safetensors; leave it out")  # fmt: skip
        sizes = (
            self.target_tensor_parallel_size,
            self.target_pipeline_parallel_size,
            self.target_expert_parallel_size,
        )
        if self.save_model_type == "hf" and sizes != (1, 1, 1):
            raise ConfigError(
                f"--target-tensor-parallel-size {sizes[0]} --target-pipeline-parallel-size "
                f"{sizes[1]} --target-expert-parallel-size {sizes[2]}: a Hugging Face directory "
                "has no layout; leave them out or give 1"
            )
        if self.save_model_type == "mg" and not self.verify:
            raise ConfigError("--no-verify: only what is written as Hugging Face weights is "
                              "compared; leave it out")  # fmt: skip
        if not self.max_shard_gb > 0:
            raise ConfigError(f"--max-shard-gb is {self.max_shard_gb}; expected more than 0")
        self._check_blend()
        place = self.tokenizer_model
        if place is not None and not place.exists():
            raise ConfigError(
                f"--tokenizer-model {place}: no such file or directory; expected tokenizer.json "
                "or the directory that has it"
            )

    def _check_blend(self) -> None:
        share = self.blend_share
        if (self.blend_with is None) != (share is None):
            raise ConfigError("--blend-with and --blend-share need each other; give both or "
                              "neither")  # fmt: skip
        if share is None:
            return
        if not 0 < share < 1:
            raise ConfigError(f"--blend-share is {share}; expected more than 0 and less than 1")
        if (self.load_model_type, self.save_model_type) != ("mg", "mg"):
            raise ConfigError("--blend-with makes a checkpoint of two others; give "
                              "--load-model-type mg --save-model-type mg")  # fmt: skip

    def _check_adapter_export(self) -> None:
        if (self.load_model_type, self.save_model_type) != ("mg", "hf"):
            raise ConfigError("--save-lora-to-hf writes an adapter of ours for Hugging Face; "
                              "give --load-model-type mg --save-model-type hf")  # fmt: skip
        for flag, given in (("--tokenizer-model", self.tokenizer_model is not None),
                            ("--params-dtype", self.params_dtype is not None)):  # fmt: skip
            if given:
                raise ConfigError(f"{flag} has no effect with --save-lora-to-hf; leave it out")

    @property
    def tokenizer_directory(self) -> Path | None:
        """Directory of `tokenizer_model`, which names a file or a directory."""
        place = self.tokenizer_model
        return place.parent if place is not None and place.is_file() else place
