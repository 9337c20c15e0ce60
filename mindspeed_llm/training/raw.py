"""Owns what happens when --data-path names conversations instead of a prepared data set: they are
prepared once, and the run reads the result. Knows neither how, nor process groups.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from mindspeed_llm.checkpoint.directory import model_directory
from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.cache import CACHE, is_raw, prepared
from mindspeed_llm.data.prepare import Progress
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)
_SMALL = 16 << 20
_MOST_WORKERS = 16


def with_prepared_data(settings: Settings) -> Settings:
    """`settings` with every file of conversations in --data-path replaced by its data set.

    Every process of a job calls this before they join: one of them prepares, the others wait for
    it without a time limit. See `data.cache.prepared`.

    Raises:
        ConfigError: no template for them, or settings of preparing where nothing is to prepare.
        UserError: see `data.cache.prepared`.
    """
    data = settings.data
    raw = [path for path in data.prefixes if is_raw(path)]
    if not raw:
        _refuse_without_effect(settings)
        return settings
    for path in raw:
        _refuse_folder_of_a_data_set(path)
    if data.template is None:
        raise ConfigError(
            f"--data-path {raw[0]} holds conversations that have to be prepared: give the chat "
            "template, --prompt-type NAME or --hf-chat-template"
        )
    made = {path: str(_prepared(settings, path)) for path in raw}
    words = tuple(made.get(word, word) for word in data.data_path)
    return dataclasses.replace(settings, data=dataclasses.replace(data, data_path=words))


def _refuse_folder_of_a_data_set(path: str) -> None:
    end = "_packed_manifest.json"
    names = sorted(file.name.removesuffix(end) for file in Path(path).glob(f"*{end}"))
    if names:
        raise ConfigError(
            f"--data-path {path} is the directory of prepared data sets; give the prefix of one: "
            f"{', '.join(str(Path(path) / name) for name in names)}"
        )


def _refuse_without_effect(settings: Settings) -> None:
    data = settings.data
    given = {
        "--handler-name": data.handler_name is not None,
        "--map-keys": data.map_keys is not None,
        "--data-cache-path": data.data_cache_path is not None and not data.fits_rows,
    }
    idle = [flag for flag, is_given in given.items() if is_given]
    if idle:
        raise ConfigError(
            f"{idle[0]} is for preparing conversations, and --data-path {data.prefixes[0]} is no "
            "file or directory of them; drop the flag, or check the path"
        )


def _prepared(settings: Settings, path: str) -> Path:
    data = settings.data
    tokenizer = tokenizer_directory(settings)
    directory = data.data_cache_path or Path(path).resolve().parent / CACHE
    handler = {} if data.handler_name is None else {"handler_name": data.handler_name}
    config = PreprocessConfig(
        input=(path,),
        tokenizer_name_or_path=tokenizer,
        output_prefix=directory,
        prompt_type=data.prompt_type,
        hf_chat_template=data.hf_chat_template,
        map_keys=data.map_keys,
        workers=_workers(Path(path)),
        **handler,
    )
    return prepared(config, directory, _Told())


def tokenizer_directory(settings: Settings) -> Path:
    """The directory of the run's tokenizer, before the checkpoint at --load was looked at.

    Raises:
        CheckpointError: no flag names it, and there is no checkpoint.
    """
    if settings.data.tokenizer_name_or_path is not None:
        return settings.data.tokenizer_name_or_path
    load = settings.checkpoint.load
    if not load.exists():
        raise CheckpointError(
            f"--load {load}: no such directory; expected a checkpoint, whose tokenizer prepares "
            "the data"
        )
    return model_directory(load)


def _workers(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    if sum(file.stat().st_size for file in files) < _SMALL:
        return 1
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))


class _Told:
    """A line in the log every ten seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, at: Progress) -> None:
        if time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            _log.info("%s rows, %.0f %%, ETA %.0f s", at.rows, 100 * at.done / at.total, at.eta)
