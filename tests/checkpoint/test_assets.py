"""What travels with the weights: known files only, flushed, with the right dtype."""

import hashlib
import json

import pytest
import torch

from mindspeed_llm.checkpoint import assets
from mindspeed_llm.checkpoint.assets import Chat, copy_assets, set_dtype, sync_tree, write_json
from mindspeed_llm.errors import CheckpointError


@pytest.fixture
def source(tmp_path):
    place = tmp_path / "source"
    place.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "modeling_evil.py",
                 "pytorch_model.bin", "model.safetensors", "rng.pt"):  # fmt: skip
        (place / name).write_text(f"{name}\n")
    (place / "config.json").write_text('{"model_type": "of ours"}\n')
    return place


def test_code_and_weights_stay_behind(tmp_path, source):
    records = copy_assets(source, tmp_path / "target")
    assert sorted(r.name for r in records) == [
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
    ]
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == sorted(
        r.name for r in records
    )
    for record in records:
        data = (source / record.name).read_bytes()
        assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_tokenizer_from_another_place(tmp_path, source):
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("other")
    (other / "config.json").write_text("other")
    copy_assets(source, tmp_path / "target", other)
    assert (tmp_path / "target" / "tokenizer.json").read_text() == "other"
    assert (tmp_path / "target" / "config.json").read_text() == '{"model_type": "of ours"}\n'
    assert not (tmp_path / "target" / "chat_template.jinja").exists(), "not that tokenizer's"


def test_directory_without_config(tmp_path):
    with pytest.raises(CheckpointError, match="config.json"):
        copy_assets(tmp_path, tmp_path / "target")


def test_absurd_size(tmp_path, source, monkeypatch):
    monkeypatch.setattr(assets, "_LIMIT", 5)
    with pytest.raises(CheckpointError, match="too large"):
        copy_assets(source, tmp_path / "target")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_is_changed_under_its_own_key_only_if_it_differs(tmp_path, key):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": "\U0001f337", key: "bfloat16"}))
    before = path.read_bytes()
    assert not set_dtype(path, torch.bfloat16)
    assert path.read_bytes() == before
    assert set_dtype(path, torch.float32)
    assert json.loads(path.read_text()) == {"a": "\U0001f337", key: "float32"}


def test_missing_dtype_means_float32(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert not set_dtype(path, torch.float32)
    assert set_dtype(path, torch.float16)
    assert json.loads(path.read_text()) == {"torch_dtype": "float16"}


def test_json_has_no_nan_and_sync_finds_its_files(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    record = write_json(tmp_path / "b.json", {"x": [1]})
    assert json.loads((tmp_path / "b.json").read_text()) == {"x": [1]}
    assert record.size == (tmp_path / "b.json").stat().st_size
    sync_tree(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_tree(tmp_path / "none")


@pytest.mark.parametrize(("generation", "wanted"), [
    ({"eos_token_id": 1, "top_k": 5}, {"eos_token_id": [1, 7, 9], "top_k": 5}),
    ({"eos_token_id": [9, 1]}, {"eos_token_id": [9, 1, 7]}),
    ({"eos_token_id": [7, 9]}, {"eos_token_id": [7, 9]}),
    (None, {"eos_token_id": [3, 7, 9], "bos_token_id": 2}),  # config.json's stay
])  # fmt: skip
def test_ids_that_end_an_answer_are_in_generation_config(generation, wanted, source, tmp_path):
    (source / "config.json").write_text(json.dumps({"eos_token_id": 3, "bos_token_id": 2}))
    if generation is not None:
        (source / "generation_config.json").write_text(json.dumps(generation))
    records = copy_assets(source, tmp_path / "target", chat=Chat((7, 9)))
    path = tmp_path / "target" / "generation_config.json"
    assert json.loads(path.read_text()) == wanted
    (record,) = [r for r in records if r.name == path.name]
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("file", "text", "written"), [
    ("chat_template.jinja", "own", False),
    ("chat_template.json", "{}", False),
    ("tokenizer_config.json", '{"chat_template": "own"}', False),
    ("tokenizer_config.json", '{"chat_template": null}', True),
    ("tokenizer.json", "{}", True),
])  # fmt: skip
def test_a_chat_template_is_written_where_there_is_none(file, text, written, source, tmp_path):
    (source / "chat_template.jinja").unlink()
    (source / file).write_text(text)
    records = copy_assets(source, tmp_path / "target", chat=Chat(template="new"))
    path = tmp_path / "target" / "chat_template.jinja"
    assert (path.is_file() and path.read_text() == "new") is written
    assert (path.name in [r.name for r in records]) is path.is_file()
    assert (tmp_path / "target" / file).read_text() == text


@pytest.mark.parametrize("data", [b"{", b"[1]", b"\xff\xfe\xfd", b""])
def test_a_malformed_generation_config_is_not_copied_along(data, source, tmp_path):
    (source / "generation_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="generation_config.json: .*mend the file"):
        copy_assets(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()
