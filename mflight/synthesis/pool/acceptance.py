"""How often each class passes the filter, as the index lines of a pool tell. No torch."""

from collections import Counter

from mflight.synthesis.pool.shards import DroppedLine, IndexLine, SampleLine


class AcceptanceCounts:
    """Counts regions by class while a reader follows the indexes: no image or sample is opened for it.

    ``num_drawn`` and ``num_kept`` hold, by category_id, the regions drawn and the instances in the pool. With
    a canvas that is dropped all of its regions are lost, whichever broke a rule. An index that was cut and is
    read again counts again: for an estimate that is good enough. Lines written before classes were kept in
    them count nothing that they do not tell.
    """

    def __init__(self) -> None:
        self.num_drawn: Counter[int] = Counter()
        self.num_kept: Counter[int] = Counter()

    def add(self, line: IndexLine) -> None:
        """Count one line."""
        if isinstance(line, SampleLine):
            self.num_kept.update(line.category_ids)
            self.num_drawn.update(line.category_ids)
            self.num_drawn.update(line.rejected_category_ids)
        elif isinstance(line, DroppedLine):
            self.num_drawn.update(category_id for category_id, _ in line.regions)
