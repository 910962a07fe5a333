"""Whether a pool shows the classes of a dataset, looked at before it is trained from."""

from pathlib import Path

from mflight.data.categories import Categories
from mflight.data.class_names import name_conflict
from mflight.synthesis.lvis_export import categories_of
from mflight.synthesis.pool.index import PoolError
from mflight.synthesis.pool.reader import PoolReader

_NUM_SAMPLES = 100
_MAX_UNKNOWN = 0.1  # share of samples with a class that the dataset does not have


def check_pool_classes(pool_dir: str | Path, categories: Categories) -> None:
    """Raise if a pool was drawn for other classes: ids alone would train ``cup`` on pictures of plates.

    The first samples are looked at. Those that do not tell names, of a painter's pool for instance, are
    compared by their ids only.

    Args:
        pool_dir: the pool folder.
        categories: of the dataset.

    Raises:
        ValueError: if an id has another name in the pool, or if a tenth of the samples show an id that the
            dataset does not have.
    """
    reader = PoolReader(pool_dir)
    known = {category.category_id: category.name for category in categories}
    refs = reader.poll()[:_NUM_SAMPLES]
    unknown: set[int] = set()
    num_unknown = 0
    for ref in refs:
        try:
            sample = reader.read(ref)
        except PoolError:  # torn: the stream leaves it out and says so
            continue
        shown = {entry["id"]: entry["name"] for entry in categories_of(sample)}
        if sample.provenance.get("request", {}).get("names") and (conflict := name_conflict(known, shown)):
            raise ValueError(f"paths.pool_dir={pool_dir} must show the classes of the dataset: {conflict}")
        num_unknown += not shown.keys() <= known.keys()
        unknown |= shown.keys() - known.keys()
    if unknown and num_unknown >= _MAX_UNKNOWN * len(refs):
        raise ValueError(
            f"paths.pool_dir={pool_dir} must show the classes of the dataset: {num_unknown} of {len(refs)} "
            f"samples show category ids that it does not have, {sorted(unknown)[:10]}"
        )
