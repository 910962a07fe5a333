import pytest

from mflight.diffusion.pipeline import load_pipeline
from tests.unit.diffusion.clip_vocabulary import clip_tokenizer
from tests.unit.diffusion.tiny_checkpoint import save_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint):
    return load_pipeline(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return clip_tokenizer(tmp_path_factory.mktemp("clip"))
