"""Holds who may import whom; reads the syntax trees, so lazy imports count as well."""

import ast

import pytest

BASE = {"errors", "logging"}
ALLOWED = {
    "errors": set(),
    "logging": set(),
    "config": BASE,
    "device": BASE,
    "kernels": {"device"} | BASE,
    "data": {"config"} | BASE,
    "models": {"kernels", "device", "config"} | BASE,
    "checkpoint": {"models", "config"} | BASE,
    "training": {"data", "models", "checkpoint", "kernels", "device", "config"} | BASE,
    "inference": {"data", "models", "checkpoint", "kernels", "device", "config"} | BASE,
    "evaluation": {"inference", "data", "config"} | BASE,
    "patches": {"kernels", "device", "config", "models"} | BASE,
    "megatron_adaptor": {"patches", "device"} | BASE,
}
ALLOWED["cli"] = set(ALLOWED)
MEGATRON = {"patches", "training", "inference", "checkpoint", "models", "cli"}
DATA_MAY_READ = "megatron.core.datasets.indexed_dataset"


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement names; `from a import b` gives `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports_of(source) -> list[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, at any depth."""
    return [(node.lineno, name) for node in ast.walk(source.tree) for name in imported(node)]


def late_nodes(source) -> set[int]:
    """Nodes that do not run at import: inside a function, or for type checkers only."""
    guards = [
        node
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {id(node) for owner in [*source.functions(), *guards] for node in ast.walk(owner)}


def layer_of(name: str) -> str | None:
    """Layer of ours that a dotted name lies in; None for other people's, "" for the package."""
    parts = name.split(".")
    if parts[0] != "mindspeed_llm":
        return None
    return "" if len(parts) == 1 or parts[1].startswith("__") else parts[1]


def test_every_layer_has_a_rule(modules):
    layers = {source.layer for source in modules} - {""}
    assert layers <= set(ALLOWED), f"write a rule for {layers - set(ALLOWED)}"
    assert {"cli", "data", "patches", "config"} <= layers


def test_directions(modules):
    wrong, seen = [], 0
    for source in modules:
        may = ALLOWED.get(source.layer, set()) | {source.layer, ""}
        for line, name in imports_of(source):
            layer = layer_of(name)
            seen += layer is not None
            if layer is not None and layer not in may:
                wrong.append(f"{source.path}:{line}: {source.layer} imports {name}")
    assert seen > 20
    assert wrong == []


def test_no_two_layers_import_each_other():
    mutual = [(a, b) for a in ALLOWED for b in ALLOWED[a]
              if a != b and a in ALLOWED[b] and "cli" not in (a, b)]  # fmt: skip
    assert mutual == []
    assert [layer for layer in ALLOWED if layer != "cli" and "cli" in ALLOWED[layer]] == []


def test_only_cli_and_the_adaptor_know_of_patches(modules):
    wrong = [
        f"{source.path}:{line}: {name}"
        for source in modules
        for line, name in imports_of(source)
        if layer_of(name) in ("patches", "megatron_adaptor")
        and source.layer not in ("cli", "megatron_adaptor", "patches")
    ]
    assert wrong == []


def test_megatron_only_where_it_belongs(modules):
    wrong = []
    for source in modules:
        lazy = late_nodes(source)
        for node in ast.walk(source.tree):
            for name in imported(node):
                if name.split(".")[0] != "megatron" or source.layer in MEGATRON:
                    continue
                if source.layer == "data" and name.startswith(DATA_MAY_READ) and id(node) in lazy:
                    continue
                wrong.append(f"{source.path}:{node.lineno}: {name}")
    assert wrong == []


def test_megatron_training_is_not_needed(modules):
    # PyPI's megatron-core ships megatron.core only.
    wrong = [
        f"{source.path}:{line}: {name}"
        for source in modules
        for line, name in imports_of(source)
        if name.split(".")[:2] in (["megatron", "training"], ["megatron", "inference"])
    ]
    assert wrong == []


def test_torch_npu_in_one_file_and_lazily(modules):
    wrong = []
    for source in modules:
        lazy = late_nodes(source)
        for node in ast.walk(source.tree):
            for name in imported(node):
                if name.split(".")[0] != "torch_npu":
                    continue
                if str(source.path) != "mindspeed_llm/device/npu.py" or id(node) not in lazy:
                    wrong.append(f"{source.path}:{node.lineno}: {name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("layer", "third_party"),
    [("errors", set()), ("logging", set()), ("config", set()), ("kernels", {"torch"})],
)
def test_low_layers_need_little(modules, layer, third_party):
    known = {"torch", "numpy", "transformers", "safetensors", "pyarrow", "rich", "tokenizers",
             "megatron", "gguf", "accelerate", "matplotlib", "torch_npu"}  # fmt: skip
    wrong = [
        f"{source.path}:{line}: {name}"
        for source in modules
        if source.layer == layer
        for line, name in imports_of(source)
        if name.split(".")[0] in known - third_party
    ]
    assert wrong == []


def test_imports_are_absolute_and_named(all_sources):
    wrong = []
    for source in all_sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom):
                if node.level or any(alias.name == "*" for alias in node.names):
                    wrong.append(f"{source.path}:{node.lineno}")
    assert len(all_sources) > 40
    assert wrong == []


def test_top_level_patches_is_never_imported(all_sources):
    wrong = [
        f"{source.path}:{line}: {name}"
        for source in all_sources
        for line, name in imports_of(source)
        if name.split(".")[0] == "patches"
    ]
    assert wrong == []


def test_private_names_stay_in_their_module(modules):
    wrong = [
        f"{source.path}:{line}: {name}"
        for source in modules
        for line, name in imports_of(source)
        if layer_of(name) is not None and name.split(".")[-1].startswith("_")
        and not name.endswith("__")
    ]  # fmt: skip
    assert wrong == []
