"""Owns the list of families and the way from a model directory to a ModelConfig; no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models import (
    gemma,
    gemma2,
    gemma3,
    llama,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from mindspeed_llm.models.family import Family
from mindspeed_llm.models.hf_config import load_json
from mindspeed_llm.models.names import NameRule

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (gemma, gemma2, gemma3, llama, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe)
}


def read_model(directory: Path) -> ModelConfig:
    """The architecture in `directory`/config.json (a Hugging Face model directory).

    Only JSON is read; nothing in the directory is run.

    Raises:
        ModelError: file missing or malformed, family unknown (lists the known ones), or a key
            whose value would change the numbers and is not supported.
    """
    path = Path(directory) / "config.json"
    values = load_json(path)
    kind = values.get("model_type")
    for family in FAMILIES.values():
        if kind in family.hf_model_types:
            try:
                return family.parse(values)
            except ModelError as err:
                raise ModelError(f"{path}: {err}") from None
    known = ", ".join(sorted(t for f in FAMILIES.values() for t in f.hf_model_types))
    raise ModelError(f"{path}: model_type is {kind!r}; known are {known}")


def language_config(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json of the language model alone; of files that describe nothing else, as it is."""
    kind = values.get("model_type")
    for family in FAMILIES.values():
        if kind in family.hf_model_types:
            return family.text_config(values)
    return values


def rules_of(model: ModelConfig) -> tuple[NameRule, ...]:
    """The name table of `model`'s family."""
    return FAMILIES[model.family].rules(model)
