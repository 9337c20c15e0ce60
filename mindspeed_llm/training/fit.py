"""Owns what happens when rows of --data-path do not fit the run: too long ones are shortened, and
with --pack rows share packs, before training begins. Knows neither how, nor process groups.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.cache import CACHE
from mindspeed_llm.data.fit import Fit, fitted
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.training.raw import tokenizer_directory


def with_fitted_data(settings: Settings) -> Settings:
    """`settings` with every data set of --data-path replaced by one whose rows fit, see
    `data.fit.fitted`; nothing happens without --pack and with --truncation drop.

    Every process of a job calls this before they join, as it calls `raw.with_prepared_data`.

    Raises:
        UserError: see `data.fit.fitted`.
    """
    data = settings.data
    if not data.fits_rows:
        return settings
    fit = Fit(
        seq_length=settings.train.seq_length,
        truncation=data.truncation,
        pack=data.pack,
        pad_to_multiple_of=data.pack_multiple,
    )

    def tokenizer() -> Tokenizer:
        return load_tokenizer(tokenizer_directory(settings))

    made = {}
    for prefix in data.prefixes:
        directory = data.data_cache_path or Path(prefix).resolve().parent
        if directory.name != CACHE and data.data_cache_path is None:
            directory = directory / CACHE
        made[prefix] = str(fitted(Path(prefix), directory, fit, tokenizer))
    words = tuple(made.get(word, word) for word in data.data_path)
    return dataclasses.replace(settings, data=dataclasses.replace(data, data_path=words))
