"""Owns `mindspeed-llm doctor`: what is installed, from which file, what will run on which device,
and how to mend what is broken. It changes nothing."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from mindspeed_llm import __version__
from mindspeed_llm.cli.packages import Package, look, mend, numbers
from mindspeed_llm.config.flags import parse, setting
from mindspeed_llm.errors import DeviceError, KernelError, UserError
from mindspeed_llm.patches.versions import SUPPORTED, matches, mcore_version

PYTHON = ">=3.10"
# module: (distribution, versions, what it is for); the first part is what setup.py requires
NEEDED: dict[str, tuple[str, str]] = {
    "torch": ("torch", ">=2.6"),
    "megatron.core": ("megatron-core", SUPPORTED),
    "transformers": ("transformers", ">=4.51"),
    "jinja2": ("jinja2", ">=3.1.6"),
    "numpy": ("numpy", ">=1.26"),
    "safetensors": ("safetensors", ">=0.4.3"),
    "pyarrow": ("pyarrow", ">=14"),
    "rich": ("rich", ">=13"),
}
OPTIONAL: dict[str, tuple[str, str]] = {
    "torch_npu": ("torch_npu", "Ascend NPU"),
    "matplotlib": ("matplotlib", "loss curves"),
    "gguf": ("gguf", "unpack-gguf"),
    "fastapi": ("fastapi", "server"),
    "uvicorn": ("uvicorn", "server"),
    "transformer_engine": ("transformer-engine", "not used; megatron-core imports it"),
    "apex": ("apex", "not used; megatron-core imports it"),
    "flash_attn": ("flash-attn", "fused attention on CUDA"),
    "torchvision": ("torchvision", "not used; transformers imports it"),
    "mindspeed": ("mindspeed", "not used; refused beside our adaptor"),
    "megatron.training": ("megatron-lm", "its own scripts; must be of megatron.core's checkout"),
}  # fmt: skip
# Packages that the needed ones import by themselves, where they are installed.
IMPORTED = {"megatron.core": ("transformer_engine", "apex", "flash_attn"),
            "transformers": ("torchvision", "flash_attn")}  # fmt: skip
ENVIRONMENT = ("DEVICE", "CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "ASCEND_HOME_PATH",
               "MINDSPEED_LLM_WITHOUT_KERNELS", "MINDSPEED_LLM_REQUIRE_FUSED",
               "OMP_NUM_THREADS", "PYTHONPATH", "RANK", "WORLD_SIZE", "MASTER_ADDR")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to show"""

    json: bool = setting(False, help="print JSON, for bug reports")


@dataclasses.dataclass
class Findings:
    """What the doctor found. `problems` break something that is needed, `remarks` do not."""

    about: dict[str, str]
    packages: list[dict[str, Any]]
    kernels: list[dict[str, Any]]
    patches: dict[str, int]
    problems: list[str]
    remarks: list[str]


def main(argv: Sequence[str]) -> int:
    """Print what is found; exit code 1 when something that is needed is broken."""
    (config,) = parse(
        argv,
        DoctorConfig,
        prog="mindspeed-llm doctor",
        description="What is installed, from which file, and what will run.",
    )
    found = examine()
    if config.json or importlib.util.find_spec("rich") is None:
        print(json.dumps(dataclasses.asdict(found) | {"healthy": not found.problems}, indent=2))
    else:
        _show(found)
    return 1 if found.problems else 0


def examine() -> Findings:
    """Everything the doctor looks at, on this machine and in this environment."""
    found = Findings({"mindspeed-llm": __version__}, [], [], {}, [], [])
    found.about["python"] = f"{platform.python_version()} ({sys.executable})"
    if not matches(numbers(platform.python_version()), PYTHON):
        found.problems.append(f"Python {platform.python_version()}; expected {PYTHON}")
    found.about["system"] = platform.platform()
    for name in ENVIRONMENT:
        if name in os.environ:
            found.about[f"${name}"] = os.environ[name]
    packages = {m: _megatron(look(m, entry[0])) for m, entry in (NEEDED | OPTIONAL).items()}
    files = {module: package.file for module, package in packages.items()}
    for module, (distribution, versions) in NEEDED.items():
        broken = [p for p in IMPORTED.get(module, ()) if p in packages and packages[p].problem]
        _needed(found, packages[module], distribution, versions, broken)
    for module, (distribution, purpose) in OPTIONAL.items():
        _optional(found, packages[module], distribution, purpose)
    _check_one_megatron(found, files)
    if files.get("torch") is not None:
        _device(found)
        _kernels(found)
        if files.get("megatron.core") is not None:
            _patches(found)
    return found


def _megatron(package: Package) -> Package:
    """The version of the megatron-core that is imported: a checkout's has no metadata."""
    if package.name != "megatron.core" or package.file is None:
        return package
    return dataclasses.replace(package, version=mcore_version() or package.version)


def _needed(
    found: Findings,
    package: Package,
    distribution: str,
    versions: str,
    broken: Sequence[str],
) -> None:
    """`broken`: packages that this one imports and that are broken themselves."""
    state = "fine"
    if not package.installed:
        state = "missing"
        found.problems.append(
            f"{distribution} is not installed: pip install '{distribution}{versions}'"
        )
    elif package.problem is not None:
        state = "broken"
        found.problems.append(f"{package.name} cannot be imported ({package.problem}). "
                              + (f"It imports {', '.join(broken)}, broken as remarked: mend or "
                                 "remove that first" if broken else
                                 mend(package, distribution, needed=True)))  # fmt: skip
    elif package.version and not matches(numbers(package.version), versions):
        state = "unsupported"
        found.problems.append(f"{distribution} is {package.version} ({package.file}); expected "
                              f"{versions}: pip install '{distribution}{versions}'")  # fmt: skip
    found.packages.append(dataclasses.asdict(package) | {"needs": versions, "state": state})


def _optional(found: Findings, package: Package, distribution: str, purpose: str) -> None:
    state = "fine" if package.file else "not installed"
    if package.problem is not None:
        state = "broken"
        found.remarks.append(f"{package.name} is installed and cannot be imported "
                             f"({package.problem}): "
                             f"{mend(package, distribution, needed=False)}")  # fmt: skip
    found.packages.append(dataclasses.asdict(package) | {"needs": purpose, "state": state})


def _check_one_megatron(found: Findings, files: dict[str, str | None]) -> None:
    """`megatron` is a namespace: its parts may come from two installations without a word."""
    roots = {
        name: os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(files[name] or ""))))
        for name in ("megatron.core", "megatron.training")
        if files.get(name)
    }
    if len(set(roots.values())) > 1:
        places = " and ".join(f"{name} from {root}" for name, root in roots.items())
        found.remarks.append(f"two Megatrons are mixed: {places}; uninstall megatron-core or drop "
                             "the checkout from PYTHONPATH")  # fmt: skip


def _device(found: Findings) -> None:
    import torch

    from mindspeed_llm.device import npu
    from mindspeed_llm.device.detect import detect

    try:
        device = detect()
    except UserError as err:
        found.problems.append(str(err))
        return
    found.about["device"] = f"{device.kind} ({device.reason}), collectives through {device.backend}"
    if torch.cuda.is_available() and npu.why_not() is not None:
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            found.about[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.1f} GiB"
    elif npu.why_not() is None:
        found.about["npu"] = f"{torch.npu.device_count()} devices, {torch.npu.get_device_name(0)}"
    there = {
        "gloo": torch.distributed.is_gloo_available,
        "nccl": torch.distributed.is_nccl_available,
    }
    if device.backend in there and not there[device.backend]():
        found.problems.append(f"this torch has no {device.backend}, which {device.kind} needs for "
                              "several processes; install another build of torch")  # fmt: skip


def _kernels(found: Findings) -> None:
    from mindspeed_llm.cli.kernels import rows
    from mindspeed_llm.device.detect import detect

    try:
        found.kernels.extend(rows(detect().kind))
    except DeviceError:
        return  # said by _device
    except KernelError as err:
        found.problems.append(str(err))


def _patches(found: Findings) -> None:
    """Apply the register to every target, as a run would, and count what became of it."""
    from mindspeed_llm.patches import engine

    try:
        engine.apply()
        for module in engine.modules():
            importlib.import_module(module)
    except UserError as err:
        found.problems.append(f"a patch does not fit: {err}")
    except ImportError as err:
        found.problems.append(f"a patched module cannot be imported: {err}")
    for outcome in engine.report().outcomes:
        found.patches[outcome.state] = found.patches.get(outcome.state, 0) + 1


def _show(found: Findings) -> None:
    from rich.console import Console  # late: it may be what is missing
    from rich.table import Table

    from mindspeed_llm.cli.kernels import table

    # a pipe has no width of its own, and 80 columns are too few for paths
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)
    about = Table(show_header=False)
    for name, value in found.about.items():
        about.add_row(name, value)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(found.patches.items()))
    about.add_row("patches", f"{counts or 'none'} (mindspeed-llm patches lists them)")
    console.print(about)
    packages = Table("package", "version", "state", "needed, or for")
    packages.add_column("file", overflow="fold")
    for row in found.packages:
        packages.add_row(
            row["name"], row["version"] or "", row["state"], row["needs"], row["file"] or ""
        )
    console.print(packages)
    console.print(table(found.kernels))
    for word, lines in (("remark", found.remarks), ("problem", found.problems)):
        for line in lines:
            console.print(f"{word}: {line}", soft_wrap=True)
    console.print("broken: see above" if found.problems else "all that is needed is there")
