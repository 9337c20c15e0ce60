"""Atomic commits, also when the writer dies, and finding, checking and explaining checkpoints."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from mindspeed_llm.checkpoint import directory
from mindspeed_llm.checkpoint.directory import (
    MANIFEST,
    TRACKER,
    Staging,
    find_checkpoint,
    model_directory,
    replace_text,
    verify,
)
from mindspeed_llm.checkpoint.store import Planned, merge_indexes, write_chunks
from mindspeed_llm.errors import CheckpointError


@pytest.fixture
def assets(tmp_path):
    place = tmp_path / "assets"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama"}')
    (place / "tokenizer.json").write_text("{}")
    return place


def stage(root, iteration, assets, value=1.0):
    staging = Staging.begin(root, iteration)
    plan = [Planned("w", "model", (64,), torch.float32, (0,), (64,))]
    records, index = write_chunks(
        staging.path, "model-r00000", plan, lambda p: torch.full((64,), value)
    )
    records += staging.write_documents(merge_indexes([index]), {"value": value}, assets)
    return staging, records


def save(root, iteration, assets, value=1.0):
    staging, records = stage(root, iteration, assets, value)
    return staging.commit(records)


def value_of(checkpoint):
    verify(checkpoint, checkpoint.files, "full")
    out = torch.empty(64)
    checkpoint.reader().read("w", (0,), out)
    assert (out == out[0]).all() and checkpoint.common()["value"] == out[0].item()
    return out[0].item()


def test_layout_and_tracker(tmp_path, assets):
    root = tmp_path / "ck"
    for iteration, name, word in ((None, "release", "release"), (120, "iter_0000120", "120"),
                                  (12345678, "iter_12345678", "12345678")):  # fmt: skip
        save(root, iteration, assets)
        assert (root / TRACKER).read_text() == word
        found = find_checkpoint(root)
        assert (found.path, found.iteration) == (root / name, iteration)
        assert sorted(p.name for p in found.hf_dir.iterdir()) == ["config.json", "tokenizer.json"]
        assert sorted(p.name for p in found.path.iterdir()) == sorted(
            ["model-r00000-000.safetensors", "index.json", "common.json", "hf", MANIFEST]
        )
    assert find_checkpoint(root / "iter_0000120").iteration == 120
    assert model_directory(root) == root / "iter_12345678" / "hf"
    assert not list(root.glob("*.tmp-*")) + list(root.glob("*.old-*"))


def test_saving_the_same_iteration_again_replaces_it(tmp_path, assets):
    save(tmp_path / "ck", 5, assets, 1.0)
    save(tmp_path / "ck", 5, assets, 2.0)
    assert value_of(find_checkpoint(tmp_path / "ck")) == 2.0
    assert sorted(p.name for p in (tmp_path / "ck").iterdir()) == ["iter_0000005", TRACKER]


def test_the_former_one_keeps_its_name_when_the_new_one_cannot_have_it(
    tmp_path, assets, monkeypatch
):
    save(tmp_path / "ck", 5, assets, 1.0)
    rename = os.replace

    def fails(source, target):
        if ".tmp-" in str(source) and str(target).endswith("iter_0000005"):
            raise OSError("the disk has gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="the disk has gone"):
        save(tmp_path / "ck", 5, assets, 2.0)
    assert value_of(find_checkpoint(tmp_path / "ck")) == 1.0
    assert not list((tmp_path / "ck").glob("*.old-*"))


DEATHS = ["writing", "manifest", "first rename", "second rename", "tracker", "clean-up"]


@pytest.mark.parametrize("where", DEATHS)
def test_kill_while_saving_leaves_a_valid_checkpoint(tmp_path, assets, where):
    """SIGKILL at each step of saving an iteration that exists: the old or the new one is found."""
    root = tmp_path / "ck"
    save(root, 5, assets, 1.0)
    child = os.fork()
    if child == 0:  # dies by its own hand; must never return into pytest
        try:
            _save_and_die(root, assets, where)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert value_of(find_checkpoint(root)) == (2.0 if where in ("tracker", "clean-up") else 1.0)
    save(root, 6, assets, 3.0)
    assert value_of(find_checkpoint(root)) == 3.0
    assert not list(root.glob("*.tmp-*-*-*")), "what the dead writer left is cleared"


def _save_and_die(root, assets, where):
    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    staging, records = stage(root, 5, assets, 2.0)
    if where == "writing":
        die()
    elif where == "manifest":
        directory.write_json = die
    elif where in ("first rename", "second rename"):
        replace, calls = os.replace, []

        def counted(*args):
            if len(calls) == DEATHS.index(where) - 2:
                die()
            calls.append(args)
            replace(*args)

        directory.os.replace = counted
    elif where == "tracker":
        directory.replace_text = die
    else:
        directory.shutil.rmtree = die
    staging.commit(records)


def test_temporary_directory_of_a_living_process_stays(tmp_path, assets):
    first, records = stage(tmp_path / "ck", 1, assets)
    save(tmp_path / "ck", 2, assets)
    assert first.path.is_dir()
    first.commit(records)
    assert find_checkpoint(tmp_path / "ck").iteration == 1


def test_discard_removes_what_begin_made(tmp_path, assets):
    staging, _ = stage(tmp_path / "new" / "ck", 1, assets)
    staging.discard()
    assert not (tmp_path / "new" / "ck").exists()
    (tmp_path / "mine").mkdir()
    staging, _ = stage(tmp_path / "mine", 1, assets)
    staging.discard()
    assert (tmp_path / "mine").is_dir()


def test_file_that_another_machine_wrote_is_missed(tmp_path, assets):
    staging, records = stage(tmp_path / "ck", 1, assets)
    (staging.path / records[0].name).unlink()
    with pytest.raises(CheckpointError, match="shared by all machines"):
        staging.commit(records)
    assert not (tmp_path / "ck" / TRACKER).exists()


def damage(path, position=-2):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model-r00000-000.safetensors", "index.json", "common.json",
                                  "hf/config.json", "hf/tokenizer.json"])  # fmt: skip
def test_one_flipped_bit_is_found_and_the_file_named(tmp_path, assets, name):
    save(tmp_path / "ck", 3, assets)
    path = save(tmp_path / "ck", 4, assets).path / name
    damage(path)
    with pytest.raises(CheckpointError, match=name.replace(".", "[.]")) as caught:
        value_of(find_checkpoint(tmp_path / "ck"))
    assert "iter_0000003 is complete" in str(caught.value), "the way out is named"


@pytest.mark.parametrize("change", [
    lambda p: p.write_bytes(p.read_bytes()[:-1]),
    lambda p: p.write_bytes(b""),
    lambda p: p.unlink(),
    lambda p: p.write_bytes(p.read_bytes() + b"x"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["model-r00000-000.safetensors", "common.json"])
def test_size_is_checked_always(tmp_path, assets, name, change):
    change(save(tmp_path / "ck", 4, assets).path / name)
    with pytest.raises(CheckpointError, match=name.replace(".", "[.]")):
        find_checkpoint(tmp_path / "ck")


def test_size_mode_does_not_read_the_files(tmp_path, assets):
    checkpoint = save(tmp_path / "ck", 4, assets)
    damage(checkpoint.path / "model-r00000-000.safetensors")
    verify(checkpoint, checkpoint.files, "size")
    with pytest.raises(CheckpointError, match="sha256"):
        verify(checkpoint, checkpoint.files, "full")


@pytest.mark.parametrize("change", [
    lambda m: m.pop("files"), lambda m: m.update(format="other"), lambda m: m.update(version=2),
    lambda m: m.update(iteration="4"),
    lambda m: m["files"].pop("index.json"),
    lambda m: m["files"].update({"../x": m["files"]["index.json"]}),
    lambda m: m["files"].update({"/etc/passwd": m["files"]["index.json"]}),
])  # fmt: skip
def test_manifest_is_not_trusted(tmp_path, assets, change):
    path = save(tmp_path / "ck", 4, assets).path / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=MANIFEST):
        find_checkpoint(tmp_path / "ck")


def test_symbolic_link_in_a_checkpoint_is_refused(tmp_path, assets):
    path = save(tmp_path / "ck", 4, assets).path / "common.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match="common.json: missing"):
        find_checkpoint(tmp_path / "ck")


@pytest.mark.parametrize(("files", "words"), [
    ({}, "no checkpoint"),
    ({"iter_0000001/x": ""}, TRACKER),
    ({"config.json": "{}", "model.safetensors": ""}, "convert_ckpt.py --load-model-type hf"),
    ({"iter_0000001/mp_rank_00/model_optim_rng.pt": ""}, "pickled"),
    ({TRACKER: "1", "iter_0000001/mp_rank_00/model_optim_rng.pt": ""}, "pickled"),
    ({TRACKER: "1", "iter_0000001/__0_0.distcp": ""}, "torch_dist"),
    ({TRACKER: "7"}, "iter_0000007: named by"),
    ({TRACKER: "seven"}, "expected 'release' or a number"),
    ({TRACKER: "../../etc"}, "expected 'release' or a number"),
    ({TRACKER: "-1"}, "expected 'release' or a number"),
    ({TRACKER: ""}, "expected 'release' or a number"),
])  # fmt: skip
def test_what_is_no_checkpoint_is_explained(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(tmp_path)


def test_no_such_directory(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        find_checkpoint(tmp_path / "none")


def test_replace_text_replaces_whole(tmp_path):
    path = tmp_path / "tracker"
    replace_text(path, "a long first text")
    replace_text(path, "2")
    assert path.read_text() == "2" and list(tmp_path.iterdir()) == [path]


def test_needs_no_megatron():
    """Conversion and inspection of checkpoints work where megatron-core is broken or missing."""
    code = ("import sys, mindspeed_llm.checkpoint.directory, mindspeed_llm.checkpoint.convert\n"
            "assert not any(name.startswith('megatron') for name in sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
