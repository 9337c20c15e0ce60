"""Measures preparing a data set, side by side in one run with the tokenizers library's own
encode_batch over the same text; owns the measurement and knows nothing of how data is prepared.

    python benchmarks/preprocess.py --tokenizer DIR [--input FILE] [--memory]

Every number is of a whole process, from its start to its end: `preprocess` with its workers reads,
renders, tokenizes and writes the six files; the baseline loads tokenizer.json, reads the rendered
text and encodes it with as many threads, and writes nothing. The runs alternate, so that whatever
else the machine does hits all of them; the load is printed beside each. CPU seconds, of all
processes and threads together, say more than the clock where others compute as well. Peak memory
(--memory) is of runs of its own: the sum over a process and its children of what they hold, shared
pages divided among those that share them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_ENCODE = """
import json, sys, time, tokenizers
method, directory, texts = sys.argv[1:]
start = time.perf_counter()
tokenizer = tokenizers.Tokenizer.from_file(directory + "/tokenizer.json")
encode = getattr(tokenizer, method)
loaded = time.perf_counter()
count = 0
batch = []
for line in open(texts, encoding="utf-8"):
    batch.append(json.loads(line))
    if len(batch) == 1000:
        count += sum(len(e.ids) for e in encode(batch, add_special_tokens=False))
        batch = []
count += sum(len(e.ids) for e in encode(batch, add_special_tokens=False)) if batch else 0
print(json.dumps({"tokens": count, "load": loaded - start, "encode": time.perf_counter() - loaded}))
"""


def main() -> None:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        source = options.input or _dialogues(scratch, options.dialogues)
        repeated = _repeated(source, options.times, scratch / "repeated")
        print(f"input {source}, {options.times} times; {options.workers} workers against "
              f"{options.workers} threads; {os.cpu_count()} CPUs")  # fmt: skip
        first = _prepare(options, repeated, scratch / "set")
        _run(first, {})
        texts, tokens = _texts(scratch / "set", options.tokenizer, scratch / "texts.jsonl")
        print(f"{_manifest(scratch / 'set')['rows']} dialogues, {tokens} tokens\n")
        if options.repeats:
            _speed(options, first, texts)
        if options.memory:
            _memory(options, source, scratch)


def _options() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--input", type=Path, help="parquet or jsonl file; default: generated")
    parser.add_argument("--dialogues", type=int, default=12_000, help="how many to generate")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--prompt-type", default="gemma3")
    parser.add_argument("--map-keys", default='{"history": "histories"}')
    parser.add_argument("--times", type=int, default=1, help="repeat the input so many times")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="measured runs of each; 0: none")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory, input once and 10 times"
    )
    parser.add_argument("--scratch", type=Path, help="directory for temporaries")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[],
                        help="further flags of preprocess; must stand last")  # fmt: skip
    return parser.parse_args()


def _dialogues(scratch: Path, count: int) -> Path:
    command = [sys.executable, "-m", "mindspeed_llm.cli.main", "dialogues", "--output",
               str(scratch / "dialogues"), "--train", str(count)]  # fmt: skip
    _run(command, {})
    return scratch / "dialogues" / "train.parquet"


def _repeated(source: Path, times: int, folder: Path) -> Path:
    """The input `times` times in one file."""
    if times == 1:
        return source
    folder.mkdir()
    target = folder / source.name
    if source.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(source)
        with pyarrow.parquet.ParquetWriter(target, table.schema) as writer:
            for _ in range(times):
                writer.write_table(table)
    else:
        with target.open("wb") as file:
            for _ in range(times):
                file.write(source.read_bytes())
    return target


def _prepare(options: argparse.Namespace, source: Path, prefix: Path) -> list[str]:
    return [sys.executable, str(ROOT / "preprocess_data.py"), "--input", str(source),
            "--tokenizer-name-or-path", str(options.tokenizer), "--output-prefix", str(prefix),
            "--workers", str(options.workers), "--prompt-type", options.prompt_type,
            "--map-keys", options.map_keys, "--log-interval", "1000000",
            *options.more]  # fmt: skip


class Spent(NamedTuple):
    """Seconds on the clock from start to end, and of CPU in all processes and threads."""

    wall: float
    cpu: float
    printed: str


def _run(command: Sequence[str], environment: dict[str, str]) -> Spent:
    start, before = time.perf_counter(), _cpu()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, text=True,
                          capture_output=True)  # fmt: skip
    spent = Spent(time.perf_counter() - start, _cpu() - before, done.stdout)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return spent


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _manifest(prefix: Path) -> dict[str, int]:
    return json.loads(Path(f"{prefix}_packed_manifest.json").read_text())


def _texts(prefix: Path, directory: Path, target: Path) -> tuple[Path, int]:
    """The rendered text of every row, from its ids."""
    import tokenizers

    from mindspeed_llm.data.view import PreparedRows

    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    rows, tokens = PreparedRows(prefix), 0
    with target.open("w", encoding="utf-8") as file:
        for number in range(len(rows)):
            ids = rows.row(number, None).ids.tolist()
            tokens += len(ids)
            file.write(json.dumps(tokenizer.decode(ids, skip_special_tokens=False)) + "\n")
    return target, tokens


def _speed(options: argparse.Namespace, command: list[str], texts: Path) -> None:
    threads = {"RAYON_NUM_THREADS": str(options.workers), "TOKENIZERS_PARALLELISM": "true"}
    contestants = {"preprocess": (command, {})}
    for method in ("encode_batch", "encode_batch_fast"):
        baseline = [sys.executable, "-c", _ENCODE, method, str(options.tokenizer), str(texts)]
        contestants[method] = (baseline, threads)
    runs: dict[str, list[Spent]] = {name: [] for name in contestants}
    for repeat in range(options.repeats):
        for name, (line, environment) in contestants.items():
            load = os.getloadavg()[0]
            spent = _run(line, environment)
            runs[name].append(spent)
            inner = spent.printed.strip() if name.startswith("encode") else ""
            print(f"{repeat + 1}  {name:<18} {spent.wall:7.2f} s  CPU {spent.cpu:7.2f} s  "
                  f"load {load:5.2f}  {inner}", flush=True)  # fmt: skip
    print(f"\n{'whole process':<18} {'median':>8} {'least':>8} {'most':>8} {'ratio':>7}"
          f" {'CPU':>8} {'ratio':>7}")  # fmt: skip
    middle = {name: [statistics.median(s[i] for s in spent) for i in (0, 1)]
              for name, spent in runs.items()}  # fmt: skip
    for name, spent in runs.items():
        walls = [s.wall for s in spent]
        wall, cpu = middle[name]
        print(f"{name:<18} {wall:7.2f}s {min(walls):7.2f}s {max(walls):7.2f}s "
              f"{wall / middle['encode_batch'][0]:6.2f}x {cpu:7.2f}s "
              f"{cpu / middle['encode_batch'][1]:6.2f}x")  # fmt: skip


def _memory(options: argparse.Namespace, source: Path, scratch: Path) -> None:
    print(f"\n{'peak memory':<18} {'dialogues':>9} {'MiB':>8} {'processes':>9}")
    peaks = []
    for times in (1, 10):
        prefix = scratch / f"memory{times}"
        command = _prepare(options, _repeated(source, times, scratch / f"x{times}"), prefix)
        peak, processes = _peak(command)
        peaks.append(peak)
        rows = _manifest(prefix)["rows"]
        print(f"{'preprocess':<18} {rows:>9} {peak / 2**20:8.1f} {processes:>9}", flush=True)
    print(f"10 times the input: {peaks[1] / peaks[0]:.2f}x the memory")


def _peak(command: Sequence[str]) -> tuple[int, int]:
    """Most bytes a process and its children held at a time, and most processes."""
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = processes = 0
    while child.poll() is None:
        family = _family(child.pid)
        peak = max(peak, sum(_held(pid) for pid in family))
        processes = max(processes, len(family))
        time.sleep(0.02)
    if child.returncode:
        assert child.stderr is not None
        sys.exit(child.stderr.read().decode())
    return peak, processes


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it has ended
    return found


def _held(pid: int) -> int:
    """Bytes of a process; what it shares is counted in parts. 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
