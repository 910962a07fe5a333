"""The classes of a dataset: LVIS's ids and words on one side, the detector's labels ``1..C`` on the other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

from mflight.data.class_names import normalized_name
from mflight.data.findings import Faults

Frequency = Literal["rare", "common", "frequent"]
FREQUENCIES: tuple[Frequency, ...] = get_args(Frequency)

FREQUENCY_OF_LETTER: dict[str, Frequency] = {"r": "rare", "c": "common", "f": "frequent"}
"""What the letters of LVIS files mean."""

PLACEHOLDERS = ("_background_", "__ignore__")
"""What labelme's files begin with in the place of a class."""


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

    @property
    def names(self) -> dict[int, str]:
        """The names by ``category_id``."""
        return {category.category_id: category.name for category in self}

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
        cleaned = clean_entries(entries, Faults("categories"))
        return cls(_category_from_lvis(e, image_counts or {}, instance_counts or {}) for e in cleaned)

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


def clean_entries(entries: Iterable[Any], faults: Faults) -> list[dict[str, Any]]:
    """Check the ``categories`` list of an LVIS- or COCO-format file, and put right what can be.

    Args:
        entries: the list; ids may be texts, or floats without a fraction, ``synonyms`` one text,
            ``frequency`` a word, and what is null counts as absent. labelme's ``_background_`` and
            ``__ignore__`` are no classes.
        faults: takes what is wrong: an id or a name that is missing or listed twice, a frequency, count or
            synonym that is none.

    Returns:
        The good entries in file order, without keys that are null.
    """
    cleaned: list[dict[str, Any]] = []
    ids: set[int] = set()
    names: dict[str, str] = {}
    for entry in entries:
        found = _clean_entry(entry, faults)
        if found is None or found["name"] in PLACEHOLDERS:
            continue
        name = found["name"]
        other = names.setdefault(normalized_name(name), name)
        if found["id"] in ids:
            faults.refuse("category ids are listed twice", found["id"])
            continue
        if other is not name:
            faults.refuse("category names are alike", f"{other!r} and {name!r} of category {found['id']}")
            continue
        ids.add(found["id"])
        cleaned.append(found)
    return cleaned


def _clean_entry(entry: Any, faults: Faults) -> dict[str, Any] | None:
    entry = (
        {key: value for key, value in entry.items() if value is not None}
        if isinstance(entry, Mapping)
        else {}
    )
    category_id, name = entry.get("id"), entry.get("name")
    is_text = isinstance(category_id, str) and category_id.isdecimal()
    if is_text or (isinstance(category_id, float) and category_id.is_integer()):
        category_id = int(category_id)
    if type(category_id) is not int or not -(1 << 63) <= category_id < 1 << 63:
        faults.refuse("categories lack a whole number of 64 bits as id", entry)
        return None
    if not isinstance(name, str) or not normalized_name(name):
        faults.refuse("categories lack a name", f"category {category_id}, name {name!r}")
        return None
    entry |= {"id": category_id, "name": name.strip()}
    synonyms = entry.get("synonyms", [])
    entry["synonyms"] = [synonyms] if isinstance(synonyms, str) else synonyms
    listed = entry["synonyms"] if isinstance(entry["synonyms"], list | tuple) else [entry["synonyms"]]
    texts = (*listed, *(entry.get(key, "") for key in ("def", "synset")))
    if odd := [each for each in texts if not isinstance(each, str)]:
        faults.refuse("definitions and synonyms are no text", f"{odd[0]!r} of category {name!r}")
        return None
    if "frequency" in entry:
        word = entry["frequency"]
        entry["frequency"] = next((k for k, v in FREQUENCY_OF_LETTER.items() if word in (k, v)), None)
        if entry["frequency"] is None:
            faults.refuse('frequencies are none of "r", "c", "f"', f"{word!r} of category {name!r}")
            del entry["frequency"]
    for key in ("image_count", "instance_count"):
        count = entry.get(key, 0)
        if isinstance(count, bool) or not isinstance(count, int | float) or count < 0 or count != int(count):
            faults.refuse(
                "counts of categories are no whole numbers", f"{key} {count!r} of category {name!r}"
            )
            del entry[key]
        elif key in entry:
            entry[key] = int(count)
    return entry


def _category_from_lvis(
    entry: Mapping[str, Any], image_counts: Mapping[int, int], instance_counts: Mapping[int, int]
) -> Category:
    category_id, letter = entry["id"], entry.get("frequency")
    image_count = entry.get("image_count", image_counts.get(category_id, 0))
    return Category(
        category_id=category_id,
        name=entry["name"],
        definition=entry.get("def", ""),
        synonyms=tuple(entry["synonyms"]),
        synset=entry.get("synset", ""),
        frequency=frequency_of(image_count) if letter is None else FREQUENCY_OF_LETTER[letter],
        image_count=image_count,
        instance_count=entry.get("instance_count", instance_counts.get(category_id, 0)),
    )
