"""The classes of a dataset: LVIS's ids and words on one side, the detector's labels ``1..C`` on the other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

Frequency = Literal["rare", "common", "frequent"]
FREQUENCIES: tuple[Frequency, ...] = get_args(Frequency)

FREQUENCY_OF_LETTER: dict[str, Frequency] = {"r": "rare", "c": "common", "f": "frequent"}
"""What the letters of LVIS files mean."""


@dataclass(frozen=True)
class Category:
    """One class as the annotation file describes it.

    Attributes:
        category_id: its id in the file; ids may have gaps.
        name: as written there, with ``_`` between words.
        definition: one sentence, or empty.
        synonyms: other names of it, ``name`` among them where the file says so.
        synset: its WordNet synset, or empty.
        frequency: how often it appears in the training set.
        image_count: in how many images of the training set it is.
        instance_count: how many instances of it the training set has.
    """

    category_id: int
    name: str
    definition: str = ""
    synonyms: tuple[str, ...] = ()
    synset: str = ""
    frequency: Frequency = "frequent"
    image_count: int = 0
    instance_count: int = 0

    @property
    def spoken_name(self) -> str:
        """The name as one would say it: ``_`` becomes a space."""
        return self.name.replace("_", " ")


def frequency_of(image_count: int) -> Frequency:
    """Return LVIS's group of a class by its training images: rare <= 10, common 11..100, frequent > 100."""
    if image_count <= 10:
        return "rare"
    return "common" if image_count <= 100 else "frequent"


class Categories(Sequence[Category]):
    """All classes of a dataset in ``category_id`` order; the label of a class is its index plus one.

    Args:
        categories: the classes, in any order.

    Raises:
        ValueError: if there is none, or if two share a ``category_id``.

    Example:
        >>> classes = Categories([Category(7, "sea_horse"), Category(3, "cup")])
        >>> classes.label_of(7), classes.category_id_of(1), classes[1].spoken_name
        (2, 3, 'sea horse')
    """

    def __init__(self, categories: Iterable[Category]) -> None:
        self._categories = tuple(sorted(categories, key=lambda category: category.category_id))
        if not self._categories:
            raise ValueError("categories is empty, expected at least one class")
        self._labels = {c.category_id: label for label, c in enumerate(self._categories, start=1)}
        if len(self._labels) < len(self._categories):
            ids = [c.category_id for c in self._categories]
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"every category_id must be used once, got {twice} more than once")

    @overload
    def __getitem__(self, index: int) -> Category: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Category, ...]: ...
    def __getitem__(self, index: int | slice) -> Category | tuple[Category, ...]:
        """Return the class with label ``index + 1``."""
        return self._categories[index]

    def __len__(self) -> int:
        """Return ``C``, without the background."""
        return len(self._categories)

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same classes."""
        return isinstance(other, Categories) and self._categories == other._categories

    def __hash__(self) -> int:
        """Return a hash that agrees with ``==``."""
        return hash(self._categories)

    def __repr__(self) -> str:
        """Return a short text with the number of classes of each frequency."""
        counts = ", ".join(f"{len(self.with_frequency(f))} {f}" for f in FREQUENCIES)
        return f"Categories({len(self)}: {counts})"

    def label_of(self, category_id: int) -> int:
        """Return the label, in ``1..C``, of a ``category_id``."""
        if category_id not in self._labels:
            raise KeyError(f"category_id {category_id} is none of the {len(self)} categories")
        return self._labels[category_id]

    def category_id_of(self, label: int) -> int:
        """Return the ``category_id`` of a label in ``1..C``."""
        if not 1 <= label <= len(self):
            raise KeyError(f"label must lie in 1..{len(self)}, got {label}")
        return self._categories[label - 1].category_id

    def with_frequency(self, frequency: Frequency) -> tuple[Category, ...]:
        """Return the classes of one frequency, in label order."""
        if frequency not in FREQUENCIES:
            raise ValueError(f"frequency must be one of {list(FREQUENCIES)}, got {frequency!r}")
        return tuple(c for c in self._categories if c.frequency == frequency)

    @classmethod
    def from_lvis(
        cls,
        entries: Iterable[Mapping[str, Any]],
        image_counts: Mapping[int, int] | None = None,
        instance_counts: Mapping[int, int] | None = None,
    ) -> "Categories":
        """Read the ``categories`` list of an LVIS- or COCO-format file.

        Args:
            entries: the list, one mapping a class; only ``id`` and ``name`` are required.
            image_counts: images by ``category_id``, used where an entry has no ``image_count`` of its own.
            instance_counts: the same for ``instance_count``.

        Returns:
            The classes. A missing frequency is computed from the image count by LVIS's rule.
        """
        return cls(_category_from_lvis(e, image_counts or {}, instance_counts or {}) for e in entries)

    def to_lvis(self) -> list[dict[str, Any]]:
        """Return the ``categories`` list of an LVIS-format file, ready for JSON."""
        return [
            {
                "id": c.category_id,
                "name": c.name,
                "def": c.definition,
                "synonyms": list(c.synonyms),
                "synset": c.synset,
                "frequency": c.frequency[0],
                "image_count": c.image_count,
                "instance_count": c.instance_count,
            }
            for c in self._categories
        ]


def _category_from_lvis(
    entry: Mapping[str, Any], image_counts: Mapping[int, int], instance_counts: Mapping[int, int]
) -> Category:
    for key in ("id", "name"):
        if key not in entry:
            raise ValueError(f"every category needs {key!r}, got {dict(entry)}")
    category_id = int(entry["id"])
    image_count = int(entry.get("image_count", image_counts.get(category_id, 0)))
    letter = entry.get("frequency")
    if letter is not None and letter not in FREQUENCY_OF_LETTER:
        name = entry["name"]
        raise ValueError(f"frequency must be one of ['r', 'c', 'f'], got {letter!r} of category {name!r}")
    return Category(
        category_id=category_id,
        name=str(entry["name"]),
        definition=str(entry.get("def", "")),
        synonyms=tuple(entry.get("synonyms", ())),
        synset=str(entry.get("synset", "")),
        frequency=frequency_of(image_count) if letter is None else FREQUENCY_OF_LETTER[letter],
        image_count=image_count,
        instance_count=int(entry.get("instance_count", instance_counts.get(category_id, 0))),
    )
