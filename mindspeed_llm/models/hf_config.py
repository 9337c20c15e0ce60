"""Owns the careful reading of a Hugging Face config.json: types, defaults, and that no key which
could change a model's numbers is passed over. It knows no family and no module."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from mindspeed_llm.config.model import RopeConfig
from mindspeed_llm.errors import ModelError

MAX_LAYERS = 10_000  # each is written out by name: more would only eat time and memory
MAX_BYTES = 4 << 20  # a config.json has a few kB; more is not one

# Keys without influence on the forward pass of a text decoder, or that are read elsewhere
# (generation defaults come from generation_config.json). Everything else must be understood.
_INERT = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled",
    "_model_name_or_path", "_name_or_path", "architectures", "attn_implementation", "bos_token_id",
    "cache_implementation", "chunk_size_feed_forward", "do_sample", "dtype", "eos_token_id",
    "finetuning_task", "gradient_checkpointing", "id2label", "initializer_range",
    "is_llama_config", "label2id", "max_length", "max_new_tokens", "min_p", "model_type",
    "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type",
    "repetition_penalty", "return_dict", "task_specific_params", "temperature", "tokenizer_class",
    "top_k", "top_p", "torch_dtype", "transformers.js_config", "transformers_version",
    "unk_token_id", "unsloth_fixed", "unsloth_version", "use_cache",
})  # fmt: skip
_REMOTE_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
_REQUIRED: Any = object()
_T = TypeVar("_T")


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ModelError: no such file, too large, not UTF-8 JSON, a key twice, NaN, or not an object.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"{path}: not a regular file; expected JSON text")
        text = path.read_text(encoding="utf-8") if size <= MAX_BYTES else ""
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; expected the directory of a Hugging Face model"
        ) from None
    except OSError as err:
        raise ModelError(f"{path}: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise ModelError(f"{path}: not UTF-8 text ({err.reason} at byte {err.start})") from None
    if size > MAX_BYTES:
        raise ModelError(f"{path}: {size} bytes; a config.json has less than {MAX_BYTES}")

    def constant(name: str) -> NoReturn:
        raise ModelError(f"{path}: {name} is not a JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"{path}: key {twice!r} is there twice")
        return out

    try:
        value = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
    except json.JSONDecodeError as err:
        raise ModelError(f"{path}:{err.lineno}: not JSON: {err.msg}") from None
    except RecursionError:
        raise ModelError(f"{path}: nested too deeply to be a config.json") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


class HFConfig:
    """Typed access to one config.json; `finish` refuses what nobody asked for."""

    def __init__(self, values: Mapping[str, Any], family: str) -> None:
        self.values = dict(values)
        self.family = family
        self._seen: set[str] = set()
        for key in _REMOTE_CODE:
            if self.values.get(key):
                self.wrong(key, "a model without code of its own; remove the key only if the "
                                "weights really are a plain model of this family")  # fmt: skip
        if self.values.get("quantization_config"):
            self.wrong("quantization_config", "unquantised weights")

    def wrong(self, key: str, expected: str, value: Any = None) -> NoReturn:
        """Raise ModelError for `key`, with its value (looked up if not given) and the mend."""
        found = self.values.get(key) if value is None else value
        raise ModelError(
            f"config.json of a {self.family} model: {key} is {found!r}; expected {expected}"
        )

    def _get(self, key: str, default: Any) -> Any:
        self._seen.add(key)
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelError(f"config.json of a {self.family} model: {key} is missing")
        return default

    def integer(self, key: str, default: int | None = _REQUIRED) -> Any:
        """Integer >= 1 that can be a size; `null` and absence give `default`."""
        value = self._get(key, default)
        if value is not default and (type(value) is not int or value < 1):
            self.wrong(key, "an integer >= 1")
        largest = MAX_LAYERS if key == "num_hidden_layers" else 2**31 - 1
        if value is not default and value > largest:
            self.wrong(key, f"at most {largest}")
        return value

    def same_integer(self, key: str, other: str, default: int) -> int:
        """Integer >= 1 under either of two names, which must agree where both are there."""
        values = [self.integer(name, None) for name in (key, other)]
        if None not in values and values[0] != values[1]:
            raise ModelError(
                f"config.json of a {self.family} model: {key} is {values[0]} and {other} is "
                f"{values[1]}; expected one number"
            )
        return next((value for value in values if value is not None), default)

    def number(self, key: str, default: float | None = _REQUIRED) -> Any:
        """Finite number > 0 as float; `null` and absence give `default`."""
        value = self._get(key, default)
        return value if value is default else _positive(self, key, value)

    def absent_or(self, key: str, default: _T, read: Callable[[str, None], _T]) -> _T:
        """`default` where the file does not have the key; `null` says None, the rest is `read`."""
        return read(key, None) if key in self.values else default

    def flag(self, key: str, default: bool) -> bool:
        """True or false; `null` and absence give `default`."""
        value = self._get(key, default)
        if type(value) is not bool:
            self.wrong(key, "true or false")
        return value

    def choice(self, key: str, table: Mapping[str, Any], default: str | None = None) -> Any:
        """The entry of `table` that the string names; `default` is a key of `table`."""
        value = self._get(key, _REQUIRED if default is None else default)
        if not isinstance(value, str) or value not in table:
            self.wrong(key, "one of " + ", ".join(sorted(table)))
        return table[value]

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuse `key` unless it is absent, null, or one of `allowed`."""
        value = self._get(key, None)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            names = " or ".join(map(repr, allowed)) or "no such key, or null"
            self.wrong(key, f"{names}; the rest is not supported")

    def ignore(self, *keys: str) -> None:
        """Mark keys that transformers itself ignores for this family."""
        self._seen.update(keys)

    def take(self, key: str) -> Any:
        """The raw value (None if absent), marked as read; the caller checks it."""
        return self._get(key, None)

    def table(self, key: str) -> Mapping[str, Any]:
        """The JSON object at `key`; `null` and absence give an empty one."""
        value = self._get(key, None)
        if value is not None and not isinstance(value, dict):
            self.wrong(key, "a JSON object or null")
        return value or {}

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; () when absent."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            self.wrong(key, "a token id, a list of token ids or null")
        return tuple(ids)

    def token_id(self, key: str) -> int | None:
        """One token id, or None when absent or -1 (how some files say that there is none)."""
        if self.values.get(key) == -1:
            return None
        ids = self.token_ids(key)
        if len(ids) > 1:
            self.wrong(key, "one token id or null")
        return ids[0] if ids else None

    def dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """dtype of the stored weights; transformers 5 writes `dtype`, 4.x `torch_dtype`."""
        key = "dtype" if self.values.get("dtype") is not None else "torch_dtype"
        value = self.values.get(key) or "float32"
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name not in ("float32", "bfloat16", "float16"):
            self.wrong(key, "float32, bfloat16 or float16")
        return name

    def rope(self, theta: float) -> RopeConfig:
        """Rotary embedding; `theta` is the family's default base."""
        self.must_be("partial_rotary_factor", 1, 1.0)
        self.must_be("rope_interleaved", False)
        new, old = self.take("rope_parameters"), self.take("rope_scaling")
        top = self.number("rope_theta", None)
        if new is not None and old is not None and new != old:
            self.wrong("rope_scaling", f"nothing beside rope_parameters {new!r}")
        key = "rope_parameters" if new is not None else "rope_scaling"
        table = new if new is not None else old
        base = theta if top is None else top
        return rope_table(self, key, table, base, theta_given=top, kinds=(*_SCALING, "yarn"))

    def layer_types(self, num_layers: int) -> tuple[Literal["full", "sliding"], ...] | None:
        """`layer_types` of transformers >= 4.53, or None when absent."""
        value = self.take("layer_types")
        if value is None:
            return None
        known = {"full_attention": "full", "sliding_attention": "sliding"}
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.wrong("layer_types", "a list of strings")
        if any(v not in known for v in value) or len(value) != num_layers:
            self.wrong("layer_types", f"{num_layers} entries of {sorted(known)}")
        return tuple(known[v] for v in value)  # type: ignore[misc]

    def finish(self) -> None:
        """Raise ModelError for keys that were not read and say something (not null or false)."""
        for key, value in self.values.items():
            known = key in self._seen or key in _INERT
            if not known and value is not None and value is not False:
                self.wrong(key, "no such key: it is unknown for this family and might change the "
                                "numbers; remove it if you know that it does not")  # fmt: skip


_SCALING: dict[str, tuple[str, ...]] = {  # rope_type -> the numbers it takes
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


_YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def rope_table(
    config: HFConfig,
    key: str,
    table: Any,
    theta: float,
    *,
    theta_given: float | None = None,
    kinds: Collection[str] = tuple(_SCALING),
) -> RopeConfig:
    """RopeConfig from one table of `rope_parameters` or `rope_scaling`.

    Args:
        config: the file, for messages and `max_position_embeddings`.
        key: where the table stands, for messages.
        table: JSON object or None.
        theta: base without `rope_theta` in the table.
        theta_given: top-level `rope_theta`; one in the table must agree with it.
        kinds: rope types that the model's layers can have.
    """
    if table is None:
        return RopeConfig(theta=theta)
    if not isinstance(table, dict):
        config.wrong(key, "a JSON object or null", table)
    numbers = {name: value for name, value in table.items() if value is not None}
    said = [numbers.pop(name, None) for name in ("rope_type", "type")]
    kind = said[0] or said[1] or "default"
    if None not in said and said[0] != said[1]:
        config.wrong(key, "one kind in rope_type and type", table)
    if not isinstance(kind, str) or kind not in kinds:
        config.wrong(key, f"a rope_type of {sorted(kinds)}, not {kind!r}", table)
    if numbers.pop("partial_rotary_factor", 1) != 1:
        config.wrong(key, "partial_rotary_factor 1.0; partial rotation is not supported", table)
    truncate = numbers.pop("truncate", True) if kind == "yarn" else True
    if type(truncate) is not bool:
        config.wrong(f"{key}.truncate", "true or false", truncate)
    numbers = {name: _positive(config, f"{key}.{name}", v) for name, v in numbers.items()}
    base = numbers.pop("rope_theta", theta)
    if theta_given is not None and base != theta_given:
        config.wrong(key, f"the rope_theta {theta_given} that stands beside it", table)
    if kind in ("llama3", "yarn"):  # transformers, too, takes the model's length where none is
        length = config.integer("max_position_embeddings")
        numbers.setdefault("original_max_position_embeddings", length)
    if kind == "yarn":
        return _yarn(config, key, table, base, numbers, truncate)
    if set(numbers) != set(_SCALING[kind]):
        config.wrong(key, f"exactly {list(_SCALING[kind])} for rope_type {kind!r}", table)
    if kind == "default":
        return RopeConfig(theta=base)
    if kind == "linear":
        return RopeConfig(theta=base, scaling="linear", factor=numbers["factor"])
    if numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        config.wrong(key, "high_freq_factor above low_freq_factor", table)
    return RopeConfig(
        theta=base,
        scaling="llama3",
        factor=numbers["factor"],
        low_freq_factor=numbers["low_freq_factor"],
        high_freq_factor=numbers["high_freq_factor"],
        original_max_position=int(numbers["original_max_position_embeddings"]),
    )


def _yarn(
    config: HFConfig, key: str, table: Any, theta: float, numbers: dict[str, float], truncate: bool
) -> RopeConfig:
    """YaRN from the numbers of its table, as transformers reads them."""
    options = {name: numbers.pop(name, None) for name in _YARN_OPTIONS}
    if set(numbers) != {"factor", "original_max_position_embeddings"}:
        wanted = ["factor", "original_max_position_embeddings"]
        config.wrong(
            key, f"{wanted}, and of {list(_YARN_OPTIONS)} any, for rope_type 'yarn'", table
        )
    factor = numbers["factor"]

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    amplitude, ours, alls = (options[name] for name in ("attention_factor", *_YARN_OPTIONS[3:]))
    if amplitude is None:
        amplitude = mscale(ours) / mscale(alls) if ours and alls else mscale(1.0)
    return RopeConfig(
        theta=theta,
        scaling="yarn",
        factor=factor,
        original_max_position=int(numbers["original_max_position_embeddings"]),
        beta_fast=options["beta_fast"] or 32.0,
        beta_slow=options["beta_slow"] or 1.0,
        whole_dimensions=truncate,
        amplitude=amplitude,
    )


def _positive(config: HFConfig, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e300:
        raise ModelError(
            f"config.json of a {config.family} model: {key} is {value!r}; expected a number > 0"
        )
    return float(value)
