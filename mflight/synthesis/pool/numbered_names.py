"""A set of numbered names that stays small however many it holds. No torch."""

from collections.abc import Iterable, Iterator, MutableSet

_BLOCK = 4096


class NumberedNames(MutableSet[str]):
    """A set of names that end in a number, such as ``7-00000042``: about a bit each, where they are dense.

    It takes every string; a name without a number at its end costs as much as in a ``set``.

    Args:
        names: to begin with.

    Example:
        >>> names = NumberedNames(["7-00000001", "7-00000002"])
        >>> "7-00000002" in names, "7-2" in names, len(names)
        (True, False, 2)
    """

    def __init__(self, names: Iterable[str] = ()):
        self._blocks: dict[tuple[str, int, int], int] = {}  # (prefix, digits, block) -> a bit for each number
        self._others: set[str] = set()
        self._count = 0
        self.update(names)

    def add(self, name: str) -> None:
        """Put a name into the set."""
        key, bit = _place(name)
        if key is None:
            self._others.add(name)
            return
        bits = self._blocks.get(key, 0)
        self._count += not bits & bit
        self._blocks[key] = bits | bit

    def discard(self, name: str) -> None:
        """Take a name out of the set, if it is there."""
        self._others.discard(name)
        key, bit = _place(name)
        bits = self._blocks.get(key, 0)
        if bits & bit:
            self._count -= 1
            self._blocks[key] = bits ^ bit

    def update(self, names: Iterable[str]) -> None:
        """Put several names into the set."""
        for name in names:
            self.add(name)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        key, bit = _place(name)
        return bool(self._blocks.get(key, 0) & bit) or name in self._others

    def __iter__(self) -> Iterator[str]:
        for (prefix, width, block), bits in self._blocks.items():
            for number in range(_BLOCK):
                if bits >> number & 1:
                    yield f"{prefix}{block * _BLOCK + number:0{width}d}"
        yield from self._others

    def __len__(self) -> int:
        return self._count + len(self._others)

    def __repr__(self) -> str:
        return f"NumberedNames({sorted(self)!r})"


def _place(name: str) -> tuple[tuple[str, int, int] | None, int]:
    prefix = name.rstrip("0123456789")
    digits = name[len(prefix) :]
    if not digits:
        return None, 0
    number = int(digits)
    return (prefix, len(digits), number // _BLOCK), 1 << number % _BLOCK
