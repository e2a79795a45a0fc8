"""Keys that are there and hold nothing."""

from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.config.file import set_key
from embank.pipelines.config.run import parse_config
from embank.tables import ConfigError
from tests.training.runs import raw_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tables.codec=null", "tables.codec is None: nothing stands there; leave the key out for 'fp32'."),
        ("tables.codec=", "tables.codec is None: nothing stands there; leave the key out for 'fp32'."),
        ("tables.method=null", "tables.method is None: nothing stands there; leave the key out for 'full'."),
        (
            "tables.overrides.item.codec=null",
            "tables.overrides.item.codec is None: nothing stands there; leave the key out for 'fp32'.",
        ),
    ],
)
def test_a_name_that_is_nothing_is_refused_with_what_stands_for_it(override: str, message: str) -> None:
    raw: dict[str, Any] = raw_config(Path("data"))
    set_key(raw, override)
    with pytest.raises(ConfigError, match=message):
        parse_config(raw)
