"""Names of classes: which are the same, and how those of two files differ."""

import unicodedata
from collections.abc import Mapping


def normalized_name(name: str) -> str:
    """Return the form by which two names are the same, without case, ``_``, width of spaces and unseen signs.

    Args:
        name: as written in a file.

    Returns:
        It in small letters.

    Example:
        >>> normalized_name(" Traffic_Light")
        'traffic light'
    """
    text = unicodedata.normalize("NFKC", name).casefold().replace("_", " ")
    return " ".join("".join(one for one in text if unicodedata.category(one) != "Cf").split())


def name_conflict(known: Mapping[int, str], other: Mapping[int, str]) -> str:
    """Say which id has another name in the second place than in the first; empty if none has.

    Args:
        known: names by ``category_id``.
        other: the same; ids that only one of both has are left aside.

    Returns:
        Such as ``category 3 is 'cup' and 'plate'``.
    """
    for category_id in sorted(known.keys() & other.keys()):
        names = known[category_id], other[category_id]
        if normalized_name(names[0]) != normalized_name(names[1]):
            return f"category {category_id} is {names[0]!r} and {names[1]!r}"
    return ""


def classes_apart(known: Mapping[int, str], other: Mapping[int, str]) -> str:
    """Say how two lists of classes differ, whose labels are places in the order of their ids.

    Args:
        known: names by ``category_id``.
        other: the same, of the second place.

    Returns:
        The end of a sentence about both, empty if they are the same classes.
    """
    if odd := sorted(known.keys() ^ other.keys()):
        return f"list the same category ids, {odd[:10]} are in one of them only"
    conflict = name_conflict(known, other)
    return conflict and f"name the same classes: {conflict}"
