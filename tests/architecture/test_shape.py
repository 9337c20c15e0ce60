"""Holds sizes, types, docstrings and the constructs this house does without."""

import ast

FILE_LINES = 600
FUNCTION_LINES = 80
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}


def at(source, node) -> str:
    return f"{source.path}:{node.lineno}"


def test_files_are_short(all_sources, root):
    scripts = [*root.glob("examples/**/*.sh"), *root.glob("tests/*.sh")]
    sizes = {str(source.path): source.text.count("\n") for source in all_sources}
    sizes |= {str(path.relative_to(root)): path.read_text().count("\n") for path in scripts}
    assert {name: size for name, size in sizes.items() if size > FILE_LINES} == {}


def test_functions_are_short(all_sources):
    lengths = [
        (node.end_lineno - node.lineno + 1, f"{at(source, node)} {node.name}")
        for source in all_sources
        for node in source.functions()
    ]
    assert len(lengths) > 50
    assert [row for row in lengths if row[0] > FUNCTION_LINES] == []
    installed = sorted(length for length, where in lengths if not where.startswith("tests/"))
    assert installed[int(len(installed) * 0.95)] < 60


def test_everything_installed_is_typed(modules):
    wrong, seen = [], 0
    for source in modules:
        methods = {
            id(node)
            for kind in ast.walk(source.tree)
            if isinstance(kind, ast.ClassDef)
            for node in kind.body
        }
        for node in source.functions():
            args = node.args
            named = args.posonlyargs + args.args
            static = any(isinstance(d, ast.Name) and d.id == "staticmethod"
                         for d in node.decorator_list)  # fmt: skip
            if id(node) in methods and not static:
                named = named[1:]
            named = named + args.kwonlyargs + [a for a in (args.vararg, args.kwarg) if a]
            seen += len(named) + 1
            wrong += [f"{at(source, node)} {node.name}({a.arg})" for a in named if not a.annotation]
            if node.returns is None:
                wrong.append(f"{at(source, node)} {node.name} -> ?")
    assert seen > 100
    assert wrong == []


def test_every_module_says_what_it_owns(all_sources):
    assert [str(s.path) for s in all_sources if not ast.get_docstring(s.tree)] == []


def test_public_names_are_documented(modules):
    wrong = []
    for source in modules:
        for node in source.tree.body:
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            if isinstance(node, kinds) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    wrong.append(f"{at(source, node)} {node.name}")
    assert wrong == []


def test_no_file_has_a_vague_name(all_sources):
    assert [str(s.path) for s in all_sources if s.path.stem in VAGUE] == []
    assert [str(s.path) for s in all_sources if s.path.parent.name in VAGUE] == []


def test_no_error_is_swallowed(all_sources):
    """A bare or broad `except` only to clean up: its last statement raises again."""
    wrong = []
    for source in all_sources:
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = node.type is None or any(
                isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")
                for kind in caught
            )
            if broad and not isinstance(node.body[-1], ast.Raise):
                wrong.append(at(source, node))
    assert wrong == []


def test_only_command_lines_print(modules):
    wrong = [
        at(source, node)
        for source in modules
        if source.layer != "cli"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]  # fmt: skip
    assert wrong == []


def test_no_global_state_is_rebound(modules):
    wrong = [at(source, node) for source in modules for node in ast.walk(source.tree)
             if isinstance(node, ast.Global)]  # fmt: skip
    assert wrong == []


def test_settings_are_read_by_name(modules):
    """`getattr(config, "x", default)` hides a misspelt setting; patches may probe versions."""
    wrong = []
    for source in modules:
        if source.layer in ("patches", "megatron_adaptor"):
            continue
        for node in ast.walk(source.tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "getattr"
                and len(node.args) == 3
                and isinstance(node.args[0], ast.Name)
                and any(word in node.args[0].id for word in ("config", "cfg", "args", "settings"))
            ):
                wrong.append(at(source, node))
    assert wrong == []


def test_nothing_is_left_undone(all_sources):
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    wrong = [
        f"{source.path}:{number}"
        for source in all_sources
        for number, line in enumerate(source.text.splitlines(), 1)
        if any(word in line.replace("-", " ").split() for word in words)
        or any(f"# {word}" in line for word in words)
    ]
    stubs = [
        at(source, node)
        for source in all_sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, (ast.Call, ast.Name))
        and "NotImplementedError" in ast.dump(node.exc)
    ]
    assert wrong + stubs == []


def test_no_pickle_and_no_remote_code(modules):
    """Nothing reads a pickle from outside or runs code that comes with a checkpoint."""
    wrong = []
    for source in modules:
        for node in ast.walk(source.tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] in ("pickle", "dill", "cloudpickle") for name in names):
                wrong.append(f"{at(source, node)} imports pickle")
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                    wrong.append(f"{at(source, node.value)} trusts remote code")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True"
                           for k in node.keywords)  # fmt: skip
                if not safe or source.path.name != "pickled.py":
                    wrong.append(f"{at(source, node)} torch.load")
    assert wrong == []
