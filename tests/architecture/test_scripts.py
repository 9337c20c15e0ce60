"""Holds that every shell script parses, fails loudly, and that launchers stay thin."""

import re
import subprocess

import pytest

STRICT = "set -euo pipefail"
GUIDE = {
    "data_convert_{m}_instruction.sh", "ckpt_convert_{m}_hf2mcore.sh",
    "ckpt_convert_{m}_mcore2hf.sh", "tune_{s}_full_ptd.sh", "tune_{s}_lora_ptd.sh",
    "chat_{s}_ptd.sh", "generate_{s}_ptd.sh",
}  # fmt: skip
FAMILIES = {"gemma2": "gemma2_9b", "smollm2": "smollm2_135m"}


@pytest.fixture(scope="module")
def scripts(root):
    found = sorted([*root.glob("examples/**/*.sh"), *root.glob("tests/*.sh"), root / ".ci/run"])
    assert len(found) >= len(GUIDE) * len(FAMILIES) + 4
    return found


def test_scripts_parse_and_stop_at_the_first_failure(scripts):
    for path in scripts:
        assert path.stat().st_mode & 0o111, f"chmod +x {path}"
        checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert STRICT in path.read_text().splitlines(), path


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_the_guides_launchers(root, family):
    expected = {name.format(m=family, s=FAMILIES[family]) for name in GUIDE}
    assert {path.name for path in (root / "examples/mcore" / family).glob("*.sh")} == expected


def test_launchers_are_thin_and_movable(root):
    launchers = sorted(root.glob("examples/mcore/*/*.sh"))
    assert len(launchers) == len(GUIDE) * len(FAMILIES)
    for path in launchers:
        text = path.read_text()
        assert text.count("\n") <= 45, path
        assert "common.sh" in text, path
        # A setting that the environment cannot change would have to be edited in place.
        fixed = re.findall(r"^([A-Z][A-Z0-9_]*)=(?!\$\{\1:-)", text, flags=re.M)
        assert fixed == [], f"{path}: write {fixed[0]}=${{{fixed[0]}:-...}}"


def test_no_script_names_a_folder_of_one_machine(scripts, root):
    for path in scripts:
        absolute = set(re.findall(r"(?<![\w$}.:/-])/(?:home|root|data|mnt|work)\b[^\s\"']*",
                                  path.read_text()))  # fmt: skip
        assert absolute == set(), path
