"""cli.packages: packages that are fine, missing, broken in several ways; how to mend them."""

import pytest

from mindspeed_llm.cli.packages import Package, look, mend, numbers

BROKEN = {
    "symbols": ("raise ImportError('x.so: undefined symbol: _ZN3c10')", "undefined symbol",
                "built for another torch"),
    "needs": ("import triton_that_is_not_there", "No module named 'triton_that_is_not_there'",
              "it needs triton_that_is_not_there: pip install triton_that_is_not_there"),
    "dies": ("import os; os._exit(7)", "exit code 7", "--force-reinstall"),
    "raises": ("raise RuntimeError('no driver')", "RuntimeError: no driver", "--force-reinstall"),
}  # fmt: skip


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Makes a package of the given text importable here and in child processes."""

    def plant(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return tmp_path / name / "__init__.py"

    return plant


def test_a_package_that_is_fine(planted):
    file = planted("planted_fine", "__version__ = '1.2'")
    assert look("planted_fine", "planted-fine") == Package("planted_fine", "1.2", str(file))


def test_the_version_is_the_distributions():
    assert look("rich", "rich").version.split(".")[0].isdigit()


def test_a_package_that_is_not_there():
    assert look("planted_nowhere", "planted-nowhere") == Package("planted_nowhere")
    assert not look("megatron.nowhere", "megatron-nowhere").installed


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_broken_packages(kind, planted):
    text, problem, advice = BROKEN[kind]
    planted(f"planted_{kind}", text)
    package = look(f"planted_{kind}", f"planted-{kind}")
    assert package.installed and package.file is None
    assert problem in package.problem
    assert advice in mend(package, f"planted-{kind}", needed=True)
    assert "pip uninstall" not in mend(package, f"planted-{kind}", needed=True)
    assert f"pip uninstall planted-{kind}" in mend(package, f"planted-{kind}", needed=False)


def test_an_import_that_hangs(planted):
    planted("planted_hangs", "import time; time.sleep(60)")
    assert "hangs" in look("planted_hangs", "planted-hangs", timeout=1).problem


@pytest.mark.parametrize(("version", "wanted"), [
    ("2.13.0+cpu", "2.13.0"), ("0.17.0rc0", "0.17.0"), ("5.24.0.dev0", "5.24.0"), ("?", "0"),
])  # fmt: skip
def test_numbers(version, wanted):
    assert numbers(version) == wanted
