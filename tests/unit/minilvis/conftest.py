import pytest

from mflight.minilvis.captions import train_tokenizer
from mflight.minilvis.dataset import build_minilvis


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The world as it ships: full size, seed 0."""
    return build_minilvis(tmp_path_factory.mktemp("minilvis") / "world")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))
