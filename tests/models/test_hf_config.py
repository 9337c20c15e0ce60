"""models.hf_config: what a config.json may not be, and the two spellings of rope and dtype."""

import json
import math

import pytest

from mindspeed_llm.config.model import RopeConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.hf_config import MAX_BYTES, HFConfig, load_json

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
LLAMA3_ROPE = RopeConfig(theta=500000.0, scaling="llama3", factor=8.0, low_freq_factor=1.0,
                         high_freq_factor=4.0, original_max_position=8192)  # fmt: skip

YARN = RopeConfig(theta=1e6, scaling="yarn", factor=4.0, original_max_position=32768,
                  amplitude=0.1 * math.log(4.0) + 1.0)  # fmt: skip


def rope(**values):
    config = HFConfig({"max_position_embeddings": 131072, **values}, "test")
    config.integer("max_position_embeddings")
    found = config.rope(10000.0)
    config.finish()
    return found


@pytest.mark.parametrize(("text", "message"), [
    ("", "config.json:1: not JSON"),
    ('{"a": 1,\n}', "config.json:2: not JSON"),
    ("[1]", "expected a JSON object, found list"),
    ('{"a": 1, "a": 2}', "key 'a' is there twice"),
    ('{"a": {"b": 1, "b": 2}}', "key 'b' is there twice"),
    ('{"a": NaN}', "NaN is not a JSON number"),
    ('{"a": -Infinity}', "-Infinity is not a JSON number"),
    ("[" * 100_000, "nested too deeply"),
    (" " * (MAX_BYTES + 1), "a config.json has less than"),
])  # fmt: skip
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        load_json(path)
    assert str(path) in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ModelError, match="no such file; expected the directory of a Hugging Face"):
        load_json(tmp_path / "config.json")
    with pytest.raises(ModelError, match="not a regular file"):
        load_json(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ModelError, match="not UTF-8 text"):
        load_json(tmp_path / "config.json")


def test_a_good_file(tmp_path):
    values = {"hidden_size": 64, "name": "ein Löwe", "list": [1.5, None]}
    (tmp_path / "config.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert load_json(tmp_path / "config.json") == values


@pytest.mark.parametrize(("key", "value"), [
    ("auto_map", {"AutoModel": "modeling.Model"}),
    ("quantization_config", {"quant_method": "gptq"}),
])  # fmt: skip
def test_remote_code_and_quantised_weights_are_refused(key, value):
    with pytest.raises(ModelError, match=f"a test model: {key} is "):
        HFConfig({key: value}, "test")


@pytest.mark.parametrize("value", [0, -3, 1.0, "64", True, [64]])
def test_integers(value):
    with pytest.raises(ModelError, match="hidden_size is .*expected an integer >= 1"):
        HFConfig({"hidden_size": value}, "test").integer("hidden_size")


@pytest.mark.parametrize("value", [0, -1e-6, "1e-6", True, 10**400])
def test_numbers(value):
    with pytest.raises(ModelError, match="eps is .*expected a number > 0"):
        HFConfig({"eps": value}, "test").number("eps")


def test_missing_keys_and_defaults():
    config = HFConfig({"present": None}, "test")
    for key in ("present", "absent"):
        with pytest.raises(ModelError, match=f"{key} is missing"):
            config.integer(key)
        assert config.integer(key, 7) == 7
        assert config.number(key, None) is None
        assert config.flag(key, True) is True
    with pytest.raises(ModelError, match="expected true or false"):
        HFConfig({"flag": 1}, "test").flag("flag", True)


def test_absence_and_null_can_differ():
    for values, found in (({}, 50.0), ({"cap": None}, None), ({"cap": 3}, 3.0)):
        config = HFConfig(values, "test")
        assert config.absent_or("cap", 50.0, config.number) == found


def test_unknown_keys_must_say_nothing():
    HFConfig({"new_switch": False, "new_value": None, "use_cache": True}, "test").finish()
    for value in (True, 0, 1, "x", {}, []):
        with pytest.raises(ModelError, match="new_key is .*unknown for this family"):
            HFConfig({"new_key": value}, "test").finish()


@pytest.mark.parametrize(("values", "ids"), [
    ({}, ()), ({"eos_token_id": None}, ()), ({"eos_token_id": 3}, (3,)),
    ({"eos_token_id": [1, 107]}, (1, 107)),
])  # fmt: skip
def test_token_ids(values, ids):
    assert HFConfig(values, "test").token_ids("eos_token_id") == ids


@pytest.mark.parametrize("value", ["2", [1, "2"], 1.0, [True], -2])
def test_wrong_token_ids(value):
    with pytest.raises(ModelError, match="eos_token_id is .*expected a token id"):
        HFConfig({"eos_token_id": value}, "test").token_ids("eos_token_id")


def test_a_padding_token_of_minus_one_is_none():
    assert HFConfig({"pad_token_id": -1}, "test").token_id("pad_token_id") is None
    with pytest.raises(ModelError, match="one token id or null"):
        HFConfig({"pad_token_id": [1, 2]}, "test").token_id("pad_token_id")


@pytest.mark.parametrize(("values", "dtype"), [
    ({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"),
    ({"torch_dtype": "torch.bfloat16"}, "bfloat16"),
])  # fmt: skip
def test_dtype_in_both_spellings(values, dtype):
    assert HFConfig(values, "test").dtype() == dtype


def test_unknown_dtypes_are_refused():
    for key in ("dtype", "torch_dtype"):
        with pytest.raises(ModelError, match=f"{key} is 'float8_e4m3fn'"):
            HFConfig({key: "float8_e4m3fn"}, "test").dtype()


@pytest.mark.parametrize(("values", "expected"), [
    ({}, RopeConfig(theta=10000.0)),
    ({"rope_theta": 5e5}, RopeConfig(theta=500000.0)),
    ({"rope_theta": 500000, "rope_scaling": None}, RopeConfig(theta=500000.0)),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(theta=500000.0)),
    ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, LLAMA3_ROPE),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, LLAMA3_ROPE),
    ({"rope_scaling": {"type": "linear", "factor": 4}},
     RopeConfig(theta=10000.0, scaling="linear", factor=4.0)),
    ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}},
     RopeConfig(theta=10000.0, scaling="linear", factor=4.0)),
    ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0,
                                          "original_max_position_embeddings": 32768}}, YARN),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                          "original_max_position_embeddings": 32768}}, YARN),
])  # fmt: skip
def test_rope_in_both_spellings(values, expected):
    assert rope(**values) == expected


@pytest.mark.parametrize(("values", "message"), [
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is .*'factor', 'original_max"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta": 2}}, "any, for rope_type"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": 1}}, "truncate is 1"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "not 'dynamic'"),
    ({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 4.0}}, "one kind"),
    ({"rope_scaling": {"rope_type": "linear"}}, "exactly .'factor'."),
    ({"rope_scaling": {"rope_type": "linear", "factor": -4.0}}, "rope_scaling.factor is -4.0"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 4.0, "beta": 1}}, "exactly .'factor'."),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "above low"),
    ({"rope_scaling": "linear"}, "a JSON object or null"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "a rope_type of"),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "beside"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {}}, "nothing beside"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
    ({"rope_interleaved": True}, "rope_interleaved is True"),
])  # fmt: skip
def test_ropes_that_are_not_supported(values, message):
    with pytest.raises(ModelError, match=message):
        rope(**values)
