"""Holds that the documents name files, commands and flags that exist."""

import importlib
import re
from pathlib import Path

import pytest

from mindspeed_llm.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SCRIPTS = {"preprocess_data.py": "preprocess", "convert_ckpt.py": "convert",
           "posttrain_gpt.py": "train", "inference.py": "inference",
           "evaluation.py": "evaluate"}  # fmt: skip
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.M | re.S)


def commands(text):
    """(module of mindspeed_llm.cli, flags) of every command in bash blocks and in `...`."""
    blocks = [block for language, block in BLOCK.findall(text) if language == "bash"]
    for block in [*blocks, *re.findall(r"`(mindspeed-llm [^`]+)`", BLOCK.sub("", text))]:
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            flags = [word.split("=")[0] for word in words if word.startswith("--")]
            for word, after in zip(words, [*words[1:], ""], strict=True):
                if Path(word).name in SCRIPTS:
                    yield SCRIPTS[Path(word).name], flags
                elif word == "mindspeed-llm" and after in COMMANDS:
                    yield COMMANDS[after][0], flags


def test_the_pages_are_there():
    names = {page.name for page in PAGES}
    assert {"README.md", "README_zh.md", "CONTRIBUTING.md"} <= names
    topics = (
        "quickstart",
        "multi_turn",
        "multi_turn_zh",
        "data",
        "checkpoint",
        "design",
        "patches",
    )
    assert {f"{topic}.md" for topic in topics} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    scripts = re.findall(r"(?<![\w.])(?:examples|tests|docs|\.ci)/[\w./-]*\w", text)
    missing += [path for path in scripts if not (ROOT / path).exists()]
    assert missing == []


def test_commands_and_flags_exist(capsys):
    used = {}
    for page in PAGES:
        for module, flags in commands(page.read_text(encoding="utf-8")):
            used.setdefault(module, {}).update(dict.fromkeys(flags, page.name))
    assert {"preprocess", "convert", "unpack_gguf", "dialogues", "patches"} <= used.keys()
    assert sum(map(len, used.values())) >= 15
    unknown = []
    for module, flags in used.items():
        with pytest.raises(SystemExit):
            importlib.import_module(f"mindspeed_llm.cli.{module}").main(["--help"])
        known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
        unknown += [f"{page}: {module} {flag}" for flag, page in flags.items() if flag not in known]
    assert unknown == []


def test_settings_of_launchers_exist():
    """NAME=value in front of a launcher names a setting of that launcher."""
    common = (ROOT / "examples/mcore/common.sh").read_text()
    wrong, seen = [], 0
    for page in PAGES:
        for _, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"\b(examples/mcore/\S+\.sh)", line)
                if not found or not (ROOT / found[1]).is_file():
                    continue
                text = (ROOT / found[1]).read_text() + common
                for name in re.findall(r"\b([A-Z][A-Z_]+)=", line[: found.start()]):
                    seen += 1
                    if f"{name}=${{{name}:-" not in text and f"${{{name}:-" not in text:
                        wrong.append(f"{page.name}: {name}")
    assert seen >= 10
    assert wrong == []


def test_both_languages_show_the_same_commands():
    for page in ("README{}.md", "docs/multi_turn{}.md"):
        english, chinese = (
            [
                line.split("#")[0].strip()
                for language, block in BLOCK.findall((ROOT / page.format(end)).read_text("utf-8"))
                if language in ("bash", "python")
                for line in block.splitlines()
            ]
            for end in ("", "_zh")
        )
        assert english == chinese


def test_the_readme_shows_the_whole_tree():
    tree = next(block for _, block in BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
                if "mindspeed_llm/" in block)  # fmt: skip
    shown = set(re.findall(r"^ *(\w+)/", tree, flags=re.M))
    packages = {path.parent.name for path in ROOT.glob("mindspeed_llm/*/__init__.py")}
    assert packages | {"examples", "tests", "docs", "mindspeed_llm"} <= shown
