"""Owns the libraries of CANN that the torch_npu wheel is linked to: builds stand-ins for them and
loads them. It knows no operator.

glibc takes a library that is already loaded for one that is needed when their names (SONAME) agree,
so the stand-ins are loaded before torch_npu, and no environment variable is needed. One library
holds runtime.c, hccl.c and a function that fails for every other symbol the wheel leaves undefined;
the others are empty and depend on it.
"""

import ctypes
import hashlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = [HERE / "native" / name for name in ("runtime.c", "hccl.c")]
FAILURE = 107001  # of every function that is not written out
_SYSTEM = re.compile(r"^(ld-linux|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|util|gomp)[.-])")
_DEFINED = re.compile(r"^(?:\w+\*? )+\*?(\w+)\(", re.MULTILINE)
_loaded = []


def home():
    """Where built libraries lie: in the environment, keyed by all that they are made of."""
    parts = [path.read_bytes() for path in [*SOURCES, HERE / "native" / "fallback.cpp"]]
    parts += [importlib.metadata.version(name).encode() for name in ("torch", "torch_npu")]
    key = hashlib.sha256(b"|".join(parts)).hexdigest()[:16]
    return pathlib.Path(sysconfig.get_paths()["purelib"]) / "virtual_npu" / key


def _packages():
    import importlib.util

    found = [importlib.util.find_spec(name) for name in ("torch", "torch_npu")]
    return [pathlib.Path(spec.submodule_search_locations[0]) for spec in found]


def _output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _symbols(library, kind):
    """Names that a library defines or leaves undefined (without a version: not the system's)."""
    for line in _output("nm", "-D", f"--{kind}-only", str(library)).splitlines():
        letter, name = line.split()[-2:]
        if kind == "defined" or (letter == "U" and "@" not in name):
            yield name.split("@")[0]


def _dynamic(library, tag):
    return re.findall(rf"\({tag}\).*\[(.+?)\]", _output("readelf", "-d", str(library)))


def build():
    """Build everything once; returns the directory."""
    folder = home()
    if (folder / "libraries").exists():
        return folder
    for tool in ("gcc", "g++", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise SystemExit(f"virtual NPU: {tool} is missing; install gcc, g++ and binutils")
    torch, torch_npu = _packages()
    wheel = sorted(torch_npu.rglob("*.so"))
    around = sorted((torch / "lib").glob("*.so"))
    there = {path.name for path in wheel + around}.union(
        *(_dynamic(path, "SONAME") for path in wheel)
    )
    needed = sorted({name for path in wheel for name in _dynamic(path, "NEEDED")} - there)
    needed = [name for name in needed if not _SYSTEM.match(name)]
    undefined = {name for path in wheel for name in _symbols(path, "undefined")}
    defined = {name for path in wheel + around for name in _symbols(path, "defined")}
    missing = sorted(n for n in undefined - defined if not n.startswith(("Py", "_Py")))
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    _compile_libraries(fresh, needed, missing)
    _compile_fallback(fresh, torch)
    (fresh / "libraries").write_text("\n".join(needed), encoding="utf-8")
    try:
        fresh.rename(folder)
    except OSError:  # another process was quicker
        shutil.rmtree(fresh)
    return folder


def _compile_libraries(folder, needed, missing):
    first = "libascendcl.so"
    assert first in needed, f"the wheel needs no {first}: {needed}"
    objects, own = [], set()
    for source in SOURCES:
        objects.append(str(folder / f"{source.stem}.o"))
        _output("gcc", "-c", "-O2", "-fPIC", "-w", str(source), "-o", objects[-1])
        listed = _output("nm", "--defined-only", objects[-1]).splitlines()
        own |= {line.split()[-1] for line in listed}
    rest = folder / "rest.c"
    data = [f"void* {name}[64];" for name in missing if name.startswith("_ZT")]
    rest_names = [name for name in missing if name not in own and not name.startswith("_ZT")]
    lines = data + [f"int {name}(void) {{ return {FAILURE}; }}" for name in rest_names]
    rest.write_text("\n".join(lines), encoding="utf-8")
    link = ["gcc", "-shared", "-fPIC", "-w"]
    _output(*link, f"-Wl,-soname,{first}", *objects, str(rest), "-lrt", "-o", str(folder / first))
    for name in needed:
        if name != first:
            _output(
                *link,
                f"-Wl,-soname,{name}",
                "-Wl,--no-as-needed",
                "-x",
                "c",
                os.devnull,
                "-x",
                "none",
                str(folder / first),
                "-Wl,-rpath,$ORIGIN",
                "-o",
                str(folder / name),
            )


def _compile_fallback(folder, torch):
    include = torch / "include"
    _output("g++", "-O1", "-std=c++20", "-shared", "-fPIC", "-w", "-DTORCH_EXTENSION_NAME=fallback",
            f"-I{include}", f"-I{include / 'torch/csrc/api/include'}",
            f"-I{sysconfig.get_paths()['include']}", str(HERE / "native" / "fallback.cpp"),
            f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python",
            "-o", str(folder / "fallback.so"))  # fmt: skip


def load():
    """Load the stand-ins into this process; torch_npu can be imported from then on."""
    folder = build()
    names = (folder / "libraries").read_text(encoding="utf-8").split()
    for name in sorted(names, key=lambda name: name != "libascendcl.so"):
        _loaded.append(ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL))


if __name__ == "__main__":
    print(build())
