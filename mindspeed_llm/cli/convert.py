"""Owns `mindspeed-llm convert` (convert_ckpt.py): flags in, one conversion, one summary out."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint.blend import BlendedSource
from mindspeed_llm.checkpoint.convert import (
    Converted,
    check_apart,
    check_hf_target,
    check_stored,
    hf_to_mcore,
    mcore_to_hf,
    source_to_mcore,
)
from mindspeed_llm.checkpoint.directory import (
    find_checkpoint,
    is_checkpoint_root,
    model_directory,
)
from mindspeed_llm.checkpoint.mcore_writer import Target
from mindspeed_llm.checkpoint.merge import (
    documents,
    export_adapter,
    merge_to_hf,
    merge_to_mcore,
)
from mindspeed_llm.checkpoint.store import TensorSource
from mindspeed_llm.checkpoint.tracker import find_foreign
from mindspeed_llm.checkpoint.weights import Place, locate, open_base
from mindspeed_llm.cli.verify import checker
from mindspeed_llm.config import convert as config
from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.data.model_tokenizer import model_tokenizer
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.models.names import expand
from mindspeed_llm.models.registry import FAMILIES, read_model, rules_of

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Names that guides use for a family, beside its own and its Hugging Face model types.
_ALSO = {
    "qwen3_moe": ("qwen3-moe",),
    "llama": ("llama2", "llama3", "llama3.1", "llama3.2", "llama-hf", "smollm2"),
}


def main(argv: Sequence[str]) -> int:
    """Convert weights as the flags say; raises UserError."""
    # Pages of 2 MiB for tensors, where Linux gives them on request; torch looks at its first
    # allocation. The system spends a third less time on a conversion.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    (settings,) = parse(
        argv,
        config.ConvertConfig,
        prog="convert_ckpt.py",
        description="Hugging Face safetensors <-> Megatron-Core checkpoint",
        always=config.ALWAYS,
        refused=config.REFUSED,
    )
    start = time.monotonic()
    place = locate(settings.load_dir, settings.lora_load, trust_pickle=settings.trust_pickle)
    if place.adapter is not None:
        if settings.blend_with is not None:
            raise ConfigError(f"--blend-with: --load-dir {settings.load_dir} gives an adapter, not "
                              "whole weights; merge it first (--save-model-type mg without "
                              "--blend-with)")  # fmt: skip
        done = _with_adapter(settings, place)
    elif settings.save_lora_to_hf:
        raise ConfigError(f"--save-lora-to-hf: --load-dir {settings.load_dir} is no LoRA "
                          "checkpoint; give one, or --lora-load")  # fmt: skip
    elif settings.load_model_type == "hf":
        done = _hf_to_mcore(settings)
    elif settings.save_model_type == "mg":
        done = _mcore_to_mcore(settings)
    else:
        done = _to_hf(settings)
    seconds = time.monotonic() - start
    print(f"{done.tensors} tensors, {done.nbytes / 2**20:.1f} MiB, in {seconds:.1f} s: {done.path}")
    return 0


def _with_adapter(settings: config.ConvertConfig, place: Place) -> Converted:
    """Merge an adapter into its base weights, or export it by itself."""
    found = "mg" if is_checkpoint_root(settings.load_dir) else "hf"
    if settings.load_model_type != found:
        raise ConfigError(f"--load-model-type {settings.load_model_type}: {settings.load_dir} is "
                          f"of type {found}")  # fmt: skip
    _check(settings, documents(place))
    if settings.save_lora_to_hf:
        return export_adapter(place, settings.save_dir, overwrite=settings.overwrite)
    if settings.save_model_type == "hf":
        # The comparison loads one directory, so it takes a checkpoint that says where its base is.
        alone = settings.lora_load is None and settings.verify
        return merge_to_hf(
            place,
            settings.save_dir,
            check=checker(settings.load_dir, documents(place)) if alone else None,
            dtype=_dtype(settings),
            shard_bytes=int(settings.max_shard_gb * 10**9),
            tokenizer=settings.tokenizer_directory,
            overwrite=settings.overwrite,
        )
    with _target_flags():
        return merge_to_mcore(
            place, settings.save_dir, dtype=_dtype(settings), **_options(settings)
        )


def _hf_to_mcore(settings: config.ConvertConfig) -> Converted:
    _check(settings, settings.load_dir)
    with _target_flags():
        options = _options(settings)
        done = hf_to_mcore(settings.load_dir, settings.save_dir, dtype=_dtype(settings),
                           trust_pickle=settings.trust_pickle, **options)  # fmt: skip
    if done.skipped:
        print(f"redundant, not converted: {', '.join(done.skipped[:4])}"
              f"{' ...' if len(done.skipped) > 4 else ''}")  # fmt: skip
    _note(options["parallel"])
    return done


def _mcore_to_mcore(settings: config.ConvertConfig) -> Converted:
    """A checkpoint, also of Megatron-LM or MindSpeed-LLM, as one of ours or as torch_dist."""
    if find_foreign(settings.load_dir) is None:
        find_checkpoint(settings.load_dir)
    directory = model_directory(settings.load_dir)
    _check(settings, directory)
    check_apart(settings.load_dir, settings.save_dir)
    model = read_model(directory)
    source, _ = open_base(settings.load_dir, trust_pickle=settings.trust_pickle)
    if settings.blend_with is not None:
        source = _blended(settings, settings.blend_with, source, model)
    with _target_flags():
        target = Target(root=settings.save_dir, **_options(settings))
        done = source_to_mcore(source, target, model=model, documents=directory,
                               dtype=_dtype(settings))  # fmt: skip
    _note(target.parallel)
    return done


def _blended(
    settings: config.ConvertConfig, start: Path, tuned: TensorSource, model: ModelConfig
) -> TensorSource:
    """Weights between those at `start` and the tuned ones, which are of one model."""
    check_apart(start, settings.save_dir)
    own = read_model(model_directory(start))
    if not own.is_same_but_for_dtype(model):
        raise CheckpointError(f"--blend-with {start}: a {own.family} model of another shape than "
                              f"the {model.family} model of --load-dir {settings.load_dir}; give "
                              "the weights that its run started from")  # fmt: skip
    first, _ = open_base(start, trust_pickle=settings.trust_pickle)
    check_stored(start, first, expand(rules_of(model), model.num_layers), model)
    assert settings.blend_share is not None, "checked with the flags"
    return BlendedSource(first, tuned, settings.blend_share)


def _note(parallel: ParallelConfig) -> None:
    experts = parallel.expert_model_parallel_size
    print(
        f"noted: TP {parallel.tensor_model_parallel_size}, "
        f"PP {parallel.pipeline_model_parallel_size}{f', EP {experts}' if experts > 1 else ''}; "
        "the checkpoint loads at any other layout too"
    )


def _options(settings: config.ConvertConfig) -> dict[str, Any]:
    """Of the `Target` of a conversion to megatron-core."""
    parallel = ParallelConfig(
        tensor_model_parallel_size=settings.target_tensor_parallel_size,
        pipeline_model_parallel_size=settings.target_pipeline_parallel_size,
        expert_model_parallel_size=settings.target_expert_parallel_size,
    )
    return {
        "parallel": parallel,
        "tokenizer": settings.tokenizer_directory,
        "overwrite": settings.overwrite,
        "ckpt_format": settings.ckpt_format,
    }


@contextlib.contextmanager
def _target_flags() -> Iterator[None]:
    """Name the layout's flags as they are spelled here: `--target-tensor-parallel-size`."""
    try:
        yield
    except ConfigError as err:
        ours = r"--(tensor|pipeline|expert)-model-parallel-size"
        raise ConfigError(re.sub(ours, r"--target-\1-parallel-size", str(err))) from None


def _to_hf(settings: config.ConvertConfig) -> Converted:
    directory = model_directory(settings.load_dir)
    _check(settings, directory)
    check_hf_target(settings.load_dir, settings.save_dir, settings.overwrite)
    check = (
        checker(settings.load_dir, directory, trust_pickle=settings.trust_pickle)
        if settings.verify
        else None
    )
    return mcore_to_hf(
        settings.load_dir,
        settings.save_dir,
        dtype=_dtype(settings),
        shard_bytes=int(settings.max_shard_gb * 10**9),
        tokenizer=settings.tokenizer_directory,
        overwrite=settings.overwrite,
        check=check,
        trust_pickle=settings.trust_pickle,
    )


def _dtype(settings: config.ConvertConfig) -> torch.dtype | None:
    return _DTYPES[settings.params_dtype] if settings.params_dtype else None


def _check(settings: config.ConvertConfig, directory: Path) -> None:
    """Raise UserError where a flag does not belong to the model that is read."""
    model = read_model(directory)
    _check_claims(settings, model, directory)
    if settings.tokenizer_directory is not None:
        model_tokenizer(settings.tokenizer_directory, directory, model, flag="--tokenizer-model",
                        model_flag="--load-dir")  # fmt: skip


def _check_claims(settings: config.ConvertConfig, model: ModelConfig, directory: Path) -> None:
    """Raise ConfigError where a flag says something else of the model than its config.json."""
    where = directory / "config.json"
    if settings.model_type_hf is not None:
        _check_family("--model-type-hf", settings.model_type_hf, model, where)
    if settings.spec is not None:
        module = settings.spec[0].rsplit(".", 1)[-1].removesuffix("_spec")
        _check_family("--spec", module, model, where)
    for flag, said, found in (
        ("--add-qkv-bias", settings.add_qkv_bias, model.qkv_bias),
        ("--post-norm", settings.post_norm, model.post_norms),
    ):
        if said and not found:
            raise ConfigError(f"{flag} contradicts {where}: this {model.family} model has none; "
                              "leave it out")  # fmt: skip


def _check_family(flag: str, said: str, model: ModelConfig, where: Path) -> None:
    names = {
        family: (family, *FAMILIES[family].hf_model_types, *_ALSO.get(family, ()))
        for family in FAMILIES
    }
    if said in names[model.family]:
        return
    fitting = ", ".join(sorted(set(names[model.family])))
    known = ", ".join(sorted({name for aliases in names.values() for name in aliases}))
    raise ConfigError(
        f"{flag} {said}: {where} is a {model.family} model; expected one of {fitting} "
        f"(known in all: {known})"
    )
