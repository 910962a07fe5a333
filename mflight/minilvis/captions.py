"""Captions of MiniLVIS scenes, and the tokenizer that reads them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from mflight.minilvis.species import SPECIES, Species
from mflight.minilvis.textures import BACKGROUNDS

MAX_LENGTH = 32
"""Tokens of a prompt: begin, at most 30 pieces, end."""

_ONE_OBJECT = (
    ("a photo of a single {a}, {definition}, on {background}", 0.45),
    ("a photo of a single {a}, {definition}", 0.25),
    ("a photo of a {a} on {background}", 0.15),
    ("a photo of a single {a}", 0.1),
    ("{a}", 0.05),
)
_TWO_OBJECTS = (
    ("a photo of a {a} and a {b} on {background}", 0.7),
    ("a {a} beside a {b}", 0.3),
)
_NUM_MERGES = 228
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP cuts a text into words before it looks for pieces."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption with the character span of each object's name, in the order of the objects."""

    text: str
    name_spans: tuple[tuple[int, int], ...]


def spoken(species: Species) -> str:
    """Return the name as a prompt says it: ``_`` is read as a space."""
    return species.name.replace("_", " ")


def write_caption(objects: list[Species], background: str, draws: np.random.Generator) -> Caption:
    """Describe one or two objects on a background.

    Args:
        objects: one or two classes.
        background: name of the background.
        draws: the source of the choice of words.

    Returns:
        the caption.

    Raises:
        ValueError: if there are not one or two objects.

    """
    if len(objects) not in (1, 2):
        raise ValueError(f"a caption names 1 or 2 objects, got {len(objects)}")
    templates = _ONE_OBJECT if len(objects) == 1 else _TWO_OBJECTS
    template = templates[draws.choice(len(templates), p=[share for _, share in templates])][0]
    fields = {"definition": objects[0].definition, "background": background}
    text, spans = "", []
    for before, field in _pieces(template):
        text += before
        if field in ("a", "b"):
            name = spoken(objects["ab".index(field)])
            spans.append((len(text), len(text) + len(name)))
            text += name
        elif field:
            text += fields[field]
    return Caption(text, tuple(spans))


def _pieces(template: str) -> list[tuple[str, str]]:
    """Split a template into pairs of literal text and the field that follows it."""
    parts = template.replace("}", "{").split("{")
    parts += [""] * (len(parts) % 2)
    return list(zip(parts[::2], parts[1::2], strict=True))


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn a small byte-level BPE vocabulary in CLIP's form and write it to ``folder``.

    The merges are learned mostly from templates, definitions and backgrounds, and are few, so that class
    names take several pieces, as many LVIS names do with CLIP's vocabulary.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(r" {2,}", " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + 2 + _NUM_MERGES,
        initial_alphabet=alphabet,
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _save_as_clip(tokenizer, folder)


def _corpus() -> list[str]:
    lines = [spoken(species) for species in SPECIES]
    for species in SPECIES:
        for background in BACKGROUNDS:
            for template, _ in (*_ONE_OBJECT, *_TWO_OBJECTS):
                lines.append(
                    template.format(a="", b="", definition=species.definition, background=background)
                )
    return lines


def _save_as_clip(tokenizer: Tokenizer, folder: Path) -> CLIPTokenizer:
    """Write vocabulary and merges in CLIP's two files, and let transformers make the rest of them."""
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink(missing_ok=True)  # from_pretrained would prefer an older one
    clip = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH, pad_token="<|endoftext|>")
    clip.save_pretrained(folder)
    return clip
