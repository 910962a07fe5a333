"""What a check has found wrong, gathered by rule; or the first of it, raised at once."""

from collections import Counter
from dataclasses import dataclass, field

_NUM_EXAMPLES = 3


@dataclass
class Findings:
    """Counts breaches of rules and keeps the first examples of each.

    Attributes:
        counts: by the sentence of the rule.
        examples: of each, three at most.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, example: object) -> None:
        """Note one breach."""
        self.counts[rule] += 1
        if self.counts[rule] <= _NUM_EXAMPLES:
            self.examples.setdefault(rule, []).append(str(example))

    def extend(self, other: "Findings") -> None:
        """Take over the breaches that another check has found."""
        for rule, count in other.counts.items():
            self.counts[rule] += count
            self.examples[rule] = (self.examples.get(rule, []) + other.examples[rule])[:_NUM_EXAMPLES]

    def lines(self) -> list[str]:
        """Return a sentence for each rule, such as ``boxes are empty: 5, 8, 9, ... (1,204 in all)``."""
        lines = []
        for rule, count in self.counts.items():
            more = f", ... ({count:,} in all)" if count > _NUM_EXAMPLES else ""
            lines.append(f"{rule}: {', '.join(self.examples[rule])}{more}")
        return lines


class Faults:
    """Takes what makes an input unusable: a reader refuses it there and then.

    Args:
        place: of the input, the start of the sentence.
    """

    def __init__(self, place: object) -> None:
        self.place = place

    def refuse(self, rule: str, example: object) -> None:
        """Raise a ValueError with the place, the rule and what breaks it."""
        raise ValueError(f"{self.place}: {rule}: {example}")


class GatheredFaults(Faults):
    """Lets the reader go on without what is faulty, so that a check names everything.

    Args:
        place: of the input.
    """

    def __init__(self, place: object) -> None:
        super().__init__(place)
        self.findings = Findings()

    def refuse(self, rule: str, example: object) -> None:
        """Note the breach."""
        self.findings.add(rule, example)
