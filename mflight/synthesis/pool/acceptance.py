"""How often each class passes the filter, as the index lines of a pool tell. No torch."""

from collections import Counter

from mflight.synthesis.pool.shards import DroppedLine, IndexLine, SampleLine


class AcceptanceCounts:
    """Counts regions by class while a reader follows the indexes: no image or sample is opened for it.

    ``num_images`` are the canvases kept; ``num_drawn`` and ``num_kept`` hold, by category_id, the regions
    drawn and the instances kept. With
    a canvas that is dropped all of its regions are lost, whichever broke a rule. An index that was cut and is
    read again counts again: for an estimate that is good enough. Lines written before classes were kept in
    them count nothing that they do not tell.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.num_drawn: Counter[int] = Counter()
        self.num_kept: Counter[int] = Counter()

    def add(self, line: IndexLine) -> None:
        """Count one line."""
        if isinstance(line, SampleLine):
            self.num_images += 1
            for category_id in line.category_ids:  # some times as fast as `Counter.update` for a few
                self.num_kept[category_id] += 1
                self.num_drawn[category_id] += 1
            for category_id in line.rejected_category_ids:
                self.num_drawn[category_id] += 1
        elif isinstance(line, DroppedLine):
            self.num_drawn.update(category_id for category_id, _ in line.regions)
