"""Settings of inspect-data: which rows, and what contradicts itself."""

import pytest

from mindspeed_llm.config.inspect import InspectConfig
from mindspeed_llm.errors import ConfigError


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [("0", [0]), ("0,5", [0, 5]), ("3-5, 1", [3, 4, 5, 1]), ("7-7", [7])],
)
def test_rows_are_numbers_and_ranges(rows, numbers):
    assert InspectConfig(prefix="x", rows=rows).row_numbers == numbers


@pytest.mark.parametrize("rows", ["", "a", "1,", "5-3", "-1", "1-2-3", "1.5", "²"])
def test_other_rows_are_refused(rows):
    with pytest.raises(ConfigError, match="is neither a number nor a range"):
        InspectConfig(prefix="x", rows=rows)


@pytest.mark.parametrize("rows", ["0-10000", "0-99999999999", "0-6000,0-6000"])
def test_too_many_rows_are_refused(rows):
    with pytest.raises(ConfigError, match="more than 10000 rows"):
        InspectConfig(prefix="x", rows=rows)


def test_two_forms_of_output_are_refused():
    with pytest.raises(ConfigError, match="--table and --json"):
        InspectConfig(prefix="x", table=True, json=True)
