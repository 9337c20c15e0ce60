"""Owns preparing a data set: input files -> rows of ids and labels -> six files, manifest, report.

It holds the order of the steps, what makes a run fail, and what the manifest says. It knows no
flag's spelling beyond messages and prints nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.chat_template import ChatTemplate
from mindspeed_llm.data.conversation_rows import ConversationRows
from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.inputs import InputFile, find_inputs, split_weights, unpack
from mindspeed_llm.data.manifest import DatasetFiles, Manifest, write_json
from mindspeed_llm.data.message_lists import MessageListSource
from mindspeed_llm.data.messages import Conversation, RowError
from mindspeed_llm.data.mixing import mix
from mindspeed_llm.data.packing import Packing
from mindspeed_llm.data.plain_text import PlainTextRows, PlainTextSource
from mindspeed_llm.data.readers import Chunk, ChunkReader, line_numbers, split_chunks
from mindspeed_llm.data.render import Rendered, Renderer
from mindspeed_llm.data.report import (
    LISTED,
    NOT_MIXED_IN,
    OVER_LENGTH,
    WRITTEN,
    BadRow,
    Part,
    Report,
    Tally,
    collect,
)
from mindspeed_llm.data.sources import Source, make_source
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.data.tool_choice import find_tool_form
from mindspeed_llm.data.verify import verify_template
from mindspeed_llm.data.work import RowMaker, Work, tallies
from mindspeed_llm.data.writer import (
    CONTINUED,
    Shard,
    exclusive_scratch,
    outcomes,
    pack_rows,
    row_lengths,
    write_ordered,
    write_six,
)
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.logging import get_logger

_LOG = get_logger(__name__)
_VERIFIED_ROWS = 64
_TOLERATED = 0.05
_RECORDED = ("handler_name", "map_keys", "json_keys", "append_eod", "template_compat",
             "thinking", "on_bad_row", "truncation", "role_order", "train_on", "train_on_inputs",
             "mix_exhausted")  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` bytes of input, `rows` and `tokens` so far."""

    done: int
    total: int
    rows: int
    tokens: int
    seconds: float

    @property
    def eta(self) -> float:
        """Seconds left at this rate."""
        return self.seconds * (self.total - self.done) / max(1, self.done)


def make_renderer(tokenizer: Tokenizer, config: PreprocessConfig) -> Renderer:
    """Renderer for `--prompt-type` or `--hf-chat-template`."""
    template: ChatTemplate
    if config.uses_hf_template or config.prompt_type is None:
        template = HfChatTemplate(tokenizer)
    else:
        template = find_template(config.prompt_type, config.template_compat, config.thinking)
    renderer = Renderer(tokenizer, template)
    if renderer.end_id is None and config.template_compat is None:
        _LOG.warning("--prompt-type %s has no end-of-turn token: a model trained with it never "
                     "learns to stop", config.prompt_type)  # fmt: skip
    return renderer


def prepare(config: PreprocessConfig,
            progress: Callable[[Progress], None] | None = None,
            show: Callable[[Sequence[Rendered], Tokenizer], None] | None = None,
            ) -> Report:  # fmt: skip
    """Prepare the data set of `config`; an older one of the same prefix is replaced at the end.

    Args:
        config: checked settings.
        progress: called after every chunk.
        show: called once before the first chunk, with the first --show-samples rows of the input.

    Returns:
        What became of every row. It is also written beside the data set.

    Raises:
        UserError: wrong settings, input or template; too many unusable rows; nothing to write. An
            older data set of the prefix is then as it was, and there is no half of a new one.
    """
    source = make_source(config.handler_name, config.map_keys, config.json_keys)
    paths, weights = split_weights(config.input)
    if weights is None and config.mix_exhausted == "repeat":
        raise ConfigError("--mix-exhausted repeat needs weights: --input PATH:WEIGHT ...")
    inputs = find_inputs(paths)
    _check_known_columns(inputs, source)
    maker = _make_maker(config, source)
    files = DatasetFiles(config.output_prefix)
    with exclusive_scratch(files) as scratch:
        inputs = [unpack(file, scratch, number) for number, file in enumerate(inputs)]
        _check_known_columns(inputs, source)
        chunks = [chunk for file in inputs for chunk in split_chunks(file)]
        if not chunks:
            raise DataError(f"--input {' '.join(config.input)}: no rows")
        if config.verify_template and isinstance(maker, ConversationRows):
            _verify(maker, chunks)
        if show is not None and config.show_samples:
            show(_first_rows(maker, chunks, config.show_samples), maker.tokenizer)
        work = Work(maker, scratch, ChunkReader(source.columns), config.strict)
        parts = [Part(path, None if weights is None else weights[number])
                 for number, path in enumerate(paths)]  # fmt: skip
        run = _Run(config, files, inputs, chunks, work, parts)
        run.read(progress)
        return run.finish()


def _first_rows(maker: RowMaker, chunks: Sequence[Chunk], count: int) -> list[Rendered]:
    """The first `count` rows that can be made; faults are reported when the run meets them."""
    rows: list[Rendered] = []
    reader = ChunkReader(maker.source.columns)
    for _, row in (pair for chunk in chunks for pair in reader.read(chunk)):
        if len(rows) >= count:
            break
        if isinstance(row, RowError):
            continue
        try:
            (made,) = maker.make([maker.take(row)])
        except RowError:
            continue
        if not isinstance(made, RowError):
            rows += made.pieces
    return rows[:count]


def _make_maker(config: PreprocessConfig, source: Source) -> RowMaker:
    tokenizer = load_tokenizer(config.tokenizer_name_or_path)
    if isinstance(source, PlainTextSource):
        return PlainTextRows(source, tokenizer, append_eod=config.append_eod,
                             seq_length=config.seq_length,
                             split=config.truncation == "split")  # fmt: skip
    renderer = make_renderer(tokenizer, config)
    if isinstance(source, MessageListSource):
        form = find_tool_form(renderer.template, tokenizer)
        source = dataclasses.replace(source, tool_form=form)
    return ConversationRows(source, renderer, config)


def _check_known_columns(inputs: Sequence[InputFile], source: Source) -> None:
    for file in inputs:
        if file.columns is not None:
            _check_columns(file, source, frozenset(file.columns))


def _check_columns(file: InputFile, source: Source, present: frozenset[str]) -> None:
    missing = [c for c in source.required if c not in present]
    if missing:
        flag = "--json-keys" if isinstance(source, PlainTextSource) else "--map-keys"
        raise DataError(f"--input {file.path}: no column {', '.join(map(repr, missing))} in the "
                        f"whole file; its columns are {', '.join(sorted(present)) or '(none)'}. "
                        f"Name the right ones with {flag}")  # fmt: skip


def _verify(maker: ConversationRows, chunks: Sequence[Chunk]) -> None:
    renderer = maker.renderer
    if maker.config.template_compat is not None:
        _LOG.warning(
            "--template-compat %s: what MindSpeed-LLM 2.1 makes of template %s, not compared with "
            "the tokenizer's own; its answers may end with another label than the token that "
            "follows them", maker.config.template_compat, renderer.template.name,
        )  # fmt: skip
        return
    sample: list[Conversation] = []
    for _, row in ChunkReader(maker.source.columns).read(chunks[0]):
        if len(sample) == _VERIFIED_ROWS:
            break
        if not isinstance(row, RowError):
            try:
                sample.append(maker.take(row).conversation)
            except RowError:
                continue  # counted and reported when its chunk is rendered
    compared = verify_template(renderer, sample)
    if compared is None:
        _LOG.info("the tokenizer has no chat template to compare template %s with",
                  renderer.template.name)  # fmt: skip
    else:
        _LOG.info("template %s agrees with the tokenizer's own chat template "
                  "(%d conversations compared)", renderer.template.name, compared)  # fmt: skip


class _Run:
    """One run: chunks become tallies and shards, then these become the data set and the report."""

    def __init__(self, config: PreprocessConfig, files: DatasetFiles, inputs: Sequence[InputFile],
                 chunks: Sequence[Chunk], work: Work, parts: Sequence[Part]) -> None:  # fmt: skip
        self._config, self._files, self._inputs = config, files, inputs
        self._chunks, self._work, self._parts = chunks, work, parts
        self._faults: list[tuple[InputFile, list[tuple[int, str, str, str]]]] = []
        self._total = Tally()

    def read(self, progress: Callable[[Progress], None] | None) -> None:
        """Turn every chunk into a shard and count what became of its rows."""
        weight = sum(chunk.weight for chunk in self._chunks)
        done = listed = 0
        seen: dict[InputFile, set[str]] = {}
        start = time.monotonic()
        with closing(tallies(self._work, self._chunks, self._config.workers)) as found:
            for chunk, tally in zip(self._chunks, found, strict=True):
                if self._config.strict:
                    self._stop_at_a_fault(chunk.file, tally)
                # Only as many faults are held as a report lists; their counts are complete.
                if tally.faults and listed < LISTED:
                    self._faults.append((chunk.file, tally.faults))
                    listed += len(tally.faults)
                self._total.add(tally)
                self._parts[chunk.file.source].tally.add(tally)
                seen.setdefault(chunk.file, set()).update(tally.columns)
                done += chunk.weight
                if progress is not None:
                    progress(Progress(done, weight, self._total.rows, self._total.tokens,
                                      time.monotonic() - start))  # fmt: skip
        for file, columns in seen.items():
            if file.columns is None and columns:
                _check_columns(file, self._work.maker.source, frozenset(columns))
            hint = self._work.maker.source.unread_hint(frozenset(columns))
            if hint:
                _LOG.warning("%s: %s", file.path, hint)

    def _stop_at_a_fault(self, file: InputFile, tally: Tally) -> None:
        counts_long = self._config.truncation == "error"
        faults = [f for f in tally.faults if f[3] != OVER_LENGTH or counts_long]
        if faults:
            position, name, reason, kind = faults[0]
            line = line_numbers(file, [position])[position]
            raise DataError(f"{BadRow(str(file.path), line, name, reason, kind)} (--strict); "
                            "nothing was written")  # fmt: skip

    def finish(self) -> Report:
        """Write data set, report and manifest; or, if refused, only why."""
        config, files, total = self._config, self._files, self._total
        listed = collect(self._bad_rows())
        refusal = self._refusal()
        if refusal is not None:
            report = Report(str(files.prefix), total, listed, False, self._parts)
            write_json(files.refused, report.as_json())
            raise DataError("\n".join([refusal, *report.lines(), f"all of them: {files.refused}"]))
        shards = [self._work.shard(number) for number in range(len(self._chunks))]
        order = self._mix(shards)
        packing: Packing | None = None
        if config.pack:
            packing, described = self._pack(shards, order)
        elif order is not None:
            described, total.supervised_tokens = write_ordered(files, shards, order,
                                                               self._work.scratch)  # fmt: skip
        else:
            described = write_six(files, shards, self._work.scratch)
        report = Report(str(files.prefix), total, listed, True, self._parts)
        write_json(files.report, report.as_json())
        self._manifest(described, packing).write(files.manifest)
        return report

    def _mix(self, shards: Sequence[Shard]) -> np.ndarray | None:
        """The order of rows that the weights ask for; counts what is left out and what repeats."""
        weights = [part.weight for part in self._parts if part.weight is not None]
        if not weights:
            return None
        for part in self._parts:
            if not part.tally.kept:
                raise DataError(f"--input {part.input}: no row of it can be used, so it cannot "
                                f"have weight {part.weight:g} in the mix; nothing was "
                                "written")  # fmt: skip
        config, total = self._config, self._total
        counts = [part.tally.kept for part in self._parts]
        units = mix(counts, weights, config.seed, config.mix_exhausted == "repeat")
        codes, lengths = outcomes(shards), row_lengths(shards)
        firsts = np.flatnonzero(codes != CONTINUED)
        sizes = np.diff(np.append(firsts, len(codes)))
        edges = np.cumsum([0, *counts])
        for number, part in enumerate(self._parts):
            inside = np.arange(edges[number], edges[number + 1])
            unused = np.setdiff1d(inside, units)
            lost = Counter(WRITTEN[code] for code in codes[firsts[unused]].tolist())
            for tally in (part.tally, total):
                tally.buckets.subtract(lost)
                tally.buckets[NOT_MIXED_IN] += len(unused)
            chosen = units[(units >= edges[number]) & (units < edges[number + 1])]
            part.tally.written = int(sizes[chosen].sum())
        order = np.repeat(firsts[units], sizes[units])
        before = np.repeat(np.cumsum(sizes[units]) - sizes[units], sizes[units])
        order += np.arange(len(order)) - before
        total.written, total.tokens = len(order), int(lengths[order].sum(dtype=np.int64))
        total.longest = int(lengths[order].max())
        return order

    def _pack(self, shards: Sequence[Shard],
              order: np.ndarray | None) -> tuple[Packing, dict[str, Any]]:  # fmt: skip
        """Write packed rows; what is supervised is counted again, since no first token is."""
        config, total = self._config, self._total
        assert config.seq_length is not None
        packing, described, total.supervised_tokens = pack_rows(
            self._files, shards, order, self._work.scratch, capacity=config.seq_length,
            multiple=config.pad_to_multiple_of, pad_id=self._work.maker.tokenizer.pad_id,
        )  # fmt: skip
        return packing, described

    def _bad_rows(self) -> Iterator[BadRow]:
        for file in dict.fromkeys(file for file, _ in self._faults):
            faults = collect(f for other, faults in self._faults if other == file for f in faults)
            # Line numbers are counted only for those that will be listed.
            lines = line_numbers(file, [position for position, *_ in faults])
            for position, name, reason, kind in faults:
                yield BadRow(str(file.path), lines[position], name, reason, kind)

    def _refusal(self) -> str | None:
        config, total = self._config, self._total
        if not total.rows:
            return f"--input {' '.join(config.input)}: no rows"
        share = f"{total.bad} of {total.rows} rows cannot be used"
        if total.bad and config.on_bad_row == "error":
            return (f"{share}; nothing was written. Mend them, or leave them out with "
                    "--on-bad-row skip")  # fmt: skip
        if config.on_bad_row == "limit" and total.bad > _TOLERATED * total.rows:
            return (f"{share}, more than {_TOLERATED:.0%}, so columns or format are probably not "
                    "what was meant; nothing was written. If they are: --on-bad-row "
                    "skip")  # fmt: skip
        if config.truncation == "error" and total.buckets[OVER_LENGTH]:
            return (f"{total.buckets[OVER_LENGTH]} of {total.rows} rows have more tokens than "
                    f"--seq-length {config.seq_length} (--truncation error); nothing was "
                    "written")  # fmt: skip
        if not total.kept:
            return "no row is left to train on; nothing was written"
        return None

    def _manifest(self, described: dict[str, Any], packing: Packing | None) -> Manifest:
        config, total, maker = self._config, self._total, self._work.maker
        settings = {name: getattr(config, name) for name in _RECORDED}
        settings["weights"] = [part.weight for part in self._parts]
        return Manifest(
            rows=total.written if packing is None else packing.rows,
            tokens=total.tokens,
            supervised_tokens=total.supervised_tokens,
            longest=total.longest,
            tokenizer_sha256=maker.tokenizer.sha256,
            vocab_size=maker.tokenizer.vocab_size,
            eos_id=maker.tokenizer.eos_id,
            pad_id=maker.tokenizer.pad_id,
            template=maker.template,
            template_sha256=maker.fingerprint(),
            seq_length=config.seq_length,
            packed=packing is not None,
            packing=packing,
            seed=config.seed,
            settings=settings,
            counts={name: n for name, n in sorted(total.buckets.items()) if n},
            inputs=[{"name": f.path.name, "bytes": f.path.stat().st_size} for f in self._inputs],
            files=described,
            versions={n: importlib.metadata.version(n) for n in ("tokenizers", "transformers")},
        )
