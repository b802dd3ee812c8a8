"""The examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import headforce.draw
import headforce.policy

MODULES = [
    headforce.draw.__name__,
    *(m.name for m in pkgutil.walk_packages(headforce.policy.__path__, headforce.policy.__name__ + ".")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
