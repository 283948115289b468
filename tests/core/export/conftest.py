import pytest

from tests.core.export.datasets import Memory


@pytest.fixture
def memory():
    return Memory()
