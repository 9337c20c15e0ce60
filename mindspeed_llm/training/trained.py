"""Owns the choice of what a run trains: all parameters, those that patterns leave, or adapters; and
the table that says how many that are. Knows no optimizer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from megatron.core.models.gpt import GPTModel

from mindspeed_llm.checkpoint.adapter import Base, targets_in
from mindspeed_llm.checkpoint.state import load_adapter, load_base, load_weights
from mindspeed_llm.checkpoint.weights import Place, read_adapter
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.tuning import LoraConfig, TuningSettings
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.models.names import expand
from mindspeed_llm.models.registry import rules_of
from mindspeed_llm.models.shapes import mcore_shape
from mindspeed_llm.training.lora import attach, freeze, keep_gradients_flowing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What is trained, and from which weights.

    Attributes:
        place: the weights of the model, and the adapter to go on with.
        lora: the adapter to train; None: the model itself.
        names: the model's parameters that are trained; without `lora`.
        patterns: the flag that chose them, or "all".
    """

    place: Place
    lora: LoraConfig | None
    names: frozenset[str]
    patterns: str

    @property
    def said(self) -> str:
        """As flags, for comparison with another run's."""
        return self.patterns if self.lora is None else self.lora.flags()


def choose(
    tuning: TuningSettings, place: Place, loaded: LoraConfig | None, model: ModelConfig
) -> Choice:
    """Compare flags, the adapter that is `loaded` from `place`, and the model.

    Raises:
        ConfigError: a flag contradicts the adapter, or a pattern fits no parameter of the model.
    """
    lora = tuning.lora(loaded)
    if lora is not None:
        check_adaptable(lora, model)
    names = tuning.trained(parameter_names(model))
    patterns = " ".join(("--freeze" if tuning.freeze else "--train-only", *tuning.patterns))
    return Choice(
        place=place,
        lora=lora,
        names=frozenset(names),
        patterns=patterns if tuning.patterns else "all",
    )


def check_adaptable(lora: LoraConfig, model: ModelConfig) -> None:
    """Raise ConfigError where `lora` wants an adapter at a layer that takes none."""
    if model.experts is None:
        return
    if model.is_mixed:
        raise ConfigError(
            f"LoRA on a {model.family} model in which only some layers have experts is not "
            "supported; --train-only trains whole layers"
        )
    wrong = [target for target in lora.targets if target.startswith("linear_fc")]
    if wrong:
        raise ConfigError(
            f"--lora-target-modules {' '.join(lora.targets)}: {' and '.join(wrong)} are experts "
            f"in this {model.family} model, which take no adapters here; give "
            "--lora-target-modules linear_qkv linear_proj"
        )


def parameter_names(model: ModelConfig) -> list[str]:
    """Names of all parameters of the whole model."""
    return [rule.mcore for rule in expand(rules_of(model), model.num_layers)]


def load_chosen(
    choice: Choice, model: Sequence[GPTModel], *, continues: bool, seed: int, recomputes: bool
) -> Base | None:
    """Load the weights, and make its chunks, `model`, train what was chosen; every rank calls it.

    Args:
        continues: the trained parameters are loaded later, with the optimizer's state.
        seed: of new adapters.
        recomputes: whole layers are recomputed, or there are several pipeline stages.

    Returns:
        of a LoRA run, the base weights.

    Raises:
        CheckpointError: see `load_base`, `load_adapter` and `load_weights`.
    """
    if choice.lora is None:
        if not continues:
            load_weights(choice.place.base, model, trust_pickle=choice.place.trust_pickle)
        if choice.patterns != "all":
            for chunk in model:
                freeze(chunk, set(choice.names))
        base = None
    else:
        adapter = None if choice.place.adapter is None else read_adapter(choice.place)
        base = load_base(choice.place, model, None if adapter is None else adapter.base)
        for chunk in model:
            attach(chunk, choice.lora, seed=seed)
        if adapter is not None and not continues:
            load_adapter(adapter, model)
    if recomputes and not (
        choice.lora is None and "embedding.word_embeddings.weight" in choice.names
    ):
        keep_gradients_flowing(model[0])  # which has the embedding, if this rank has it
    return base


def table(choice: Choice, model: ModelConfig) -> list[str]:
    """Lines that say how many of the whole model's parameters are trained, by kind of layer."""
    rules = expand(rules_of(model), model.num_layers)
    counts: dict[str, list[int]] = {}
    adapted = {name: target for name, target, _ in targets_in([rule.mcore for rule in rules])}
    for rule in rules:
        shape = mcore_shape(rule, model)
        size = 1
        for length in shape:
            size *= length
        row = counts.setdefault(re.sub(r"\.layers\.[0-9]+\.", ".layers.*.", rule.mcore), [0, 0])
        row[1] += size
        if choice.lora is None:
            row[0] += size if rule.mcore in choice.names else 0
        elif adapted.get(rule.mcore) in choice.lora.targets:
            row[0] += choice.lora.rank * sum(shape)
    return _aligned(counts, "beside" if choice.lora else "of")


def _aligned(counts: dict[str, list[int]], word: str) -> list[str]:
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows: Iterable[tuple[str, list[int]]] = [*counts.items(), ("in all", total)]
    width = max(map(len, counts))
    share = 100 * total[0] / total[1]
    lines = [
        f"  {name:<{width}}  {_count(trained):>8} {word} {_count(size):>8}"
        for name, (trained, size) in rows
        if trained or name == "in all"
    ]
    return ["trained parameters", *lines[:-1], f"{lines[-1]} ({share:.2f} %)"]


def _count(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)
