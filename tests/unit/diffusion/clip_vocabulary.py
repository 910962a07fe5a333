"""CLIP's own tokenizer, from the vocabulary that the wheel of open-clip-torch carries."""

import gzip
from importlib.util import find_spec
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizerFast

from tests.unit.diffusion.tiny_checkpoint import save_clip_tokenizer

NUM_MERGES = 49408 - 2 * 256 - 2
"""CLIP has 49,408 tokens: 256 bytes, the same ending a word, these merges, and two special ones."""


def clip_tokenizer(folder: Path) -> CLIPTokenizerFast:
    """Write it to ``folder`` and load it."""
    packed = Path(find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    _header, *lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[:NUM_MERGES]]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*characters, *(f"{character}</w>" for character in characters)]
    return save_clip_tokenizer(folder, [*pieces, *("".join(pair) for pair in merges)], merges, 77)
