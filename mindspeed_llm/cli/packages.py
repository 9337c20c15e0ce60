"""Owns finding out which packages are installed, from which file, and whether they can be imported.

Each import happens in a process of its own, so that one that crashes takes nobody along. It knows
nothing of what this library does with a package.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys

_PROBE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
print("\\n" + json.dumps({"file": where, "version": str(getattr(module, "__version__", ""))}))
"""


@dataclasses.dataclass(frozen=True)
class Package:
    """What is known of one package.

    Attributes:
        name: its module.
        version: its distribution's, else the module's `__version__`; None: not installed.
        file: where its module was imported from.
        problem: why it cannot be imported, one line; None where it can or is not installed.
    """

    name: str
    version: str | None = None
    file: str | None = None
    problem: str | None = None

    @property
    def installed(self) -> bool:
        """Whether there is anything of it, be it broken."""
        return self.version is not None or self.problem is not None


def look(module: str, distribution: str, timeout: float = 120) -> Package:
    """Import `module` in a process of its own and tell what became of it.

    Args:
        module: dotted name, e.g. `megatron.core`.
        distribution: name that pip knows, e.g. `megatron-core`.
        timeout: seconds after which an import counts as hanging.
    """
    version = _version(distribution)
    if version is None and importlib.util.find_spec(module.split(".")[0]) is None:
        return Package(module)
    command = [sys.executable, "-W", "ignore", "-c", _PROBE, module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Package(module, version, problem=f"its import hangs ({timeout:.0f} s)")
    if done.returncode == 0:
        said = json.loads(done.stdout.strip().splitlines()[-1])
        return Package(module, version or said["version"] or "?", said["file"])
    if version is None and f"No module named '{module}'" in done.stderr:
        return Package(module)  # a namespace that others share: megatron without megatron.core
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    cause = lines[-1].strip() if lines else f"its import dies (exit code {done.returncode})"
    return Package(module, version, problem=cause[:300])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def mend(package: Package, distribution: str, *, needed: bool) -> str:
    """What to do about a package that is installed and cannot be imported."""
    reinstall = f"pip install --force-reinstall --no-deps {distribution}"
    away = "" if needed else f", or if you do not use it: pip uninstall {distribution}"
    cause = package.problem or ""
    if re.search(r"undefined symbol|\.so|cannot open shared object|DLL", cause):
        build = f"{reinstall} --no-cache-dir --no-build-isolation"
        return f"it was built for another torch or needs a library that is not there: {build}{away}"
    missing = re.search(r"No module named '([\w.]+)'", cause)
    if missing and not package.name.startswith(missing[1]):
        return f"it needs {missing[1]}: pip install {missing[1].split('.')[0]}{away}"
    return f"{reinstall}{away}"


def numbers(version: str) -> str:
    """The leading digits and dots of a version: `2.13.0+cpu` -> `2.13.0`."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else "0"
