"""Every public name loads from its home, and none is missing from the type checker's list."""

import ast
from pathlib import Path

import pytest

import laionkit


@pytest.mark.parametrize("name", laionkit.__all__)
def test_the_name_loads(name):
    assert getattr(laionkit, name) is not None


@pytest.mark.parametrize("name", [n for n in laionkit.__all__ if n.endswith("Config")])
def test_help_lists_every_setting_of_a_config(name):
    config = getattr(laionkit, name)
    for setting, field in config.model_fields.items():
        assert f"\n    {setting}: {' '.join(field.description.split())}" in config.__doc__


def test_what_the_type_checker_sees_is_what_loads():
    assert {*laionkit._HOMES, "__version__"} == set(laionkit.__all__)
    tree = ast.parse(Path(laionkit.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in checked.body for alias in node.names}
    assert seen | {"__version__"} == set(laionkit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no public name 'fetsh'"):
        _ = laionkit.fetsh
