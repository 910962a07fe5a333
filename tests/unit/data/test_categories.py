import pytest

from mflight.data.categories import Categories, Category, frequency_of

ENTRIES = [
    {
        "id": 9,
        "name": "sea_horse",
        "def": "a small fish",
        "synonyms": ["sea_horse", "hippocampus"],
        "synset": "sea_horse.n.01",
        "frequency": "r",
        "image_count": 3,
        "instance_count": 4,
    },
    {"id": 4, "name": "cup"},
    {"id": 6, "name": "tray", "image_count": 60},
]


@pytest.mark.parametrize(
    ("images", "frequency"),
    [(0, "rare"), (10, "rare"), (11, "common"), (100, "common"), (101, "frequent")],
)
def test_frequency_changes_after_10_and_100_images(images, frequency):
    assert frequency_of(images) == frequency


def test_labels_count_from_one_in_the_order_of_the_ids():
    categories = Categories.from_lvis(ENTRIES)
    assert [c.category_id for c in categories] == [4, 6, 9]
    assert [categories.label_of(i) for i in (4, 6, 9)] == [1, 2, 3]
    assert [categories.category_id_of(label) for label in (1, 2, 3)] == [4, 6, 9]


def test_missing_counts_and_frequencies_are_filled_in():
    categories = Categories.from_lvis(ENTRIES, image_counts={4: 500, 6: 1}, instance_counts={4: 700})
    cup, tray, sea_horse = categories
    assert (cup.image_count, cup.instance_count, cup.frequency) == (500, 700, "frequent")
    assert (tray.image_count, tray.frequency) == (60, "common")  # the file's own count comes first
    assert (sea_horse.frequency, sea_horse.definition) == ("rare", "a small fish")


def test_lvis_entries_survive_a_round_trip():
    categories = Categories.from_lvis(ENTRIES)
    assert categories.to_lvis()[2] == ENTRIES[0]
    assert Categories.from_lvis(categories.to_lvis()) == categories


def test_spoken_name_reads_underscores_as_spaces():
    assert Category(1, "bow_(weapon)").spoken_name == "bow (weapon)"


def test_classes_of_one_frequency():
    categories = Categories.from_lvis(ENTRIES)
    assert [c.name for c in categories.with_frequency("common")] == ["tray"]
    with pytest.raises(ValueError, match="got 'tail'"):
        categories.with_frequency("tail")


def test_unknown_ids_and_labels_are_named():
    categories = Categories.from_lvis(ENTRIES)
    with pytest.raises(KeyError, match="category_id 5 is none of the 3"):
        categories.label_of(5)
    with pytest.raises(KeyError, match=r"1..3, got 0"):
        categories.category_id_of(0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "categories is empty"),
        ([{"id": 3, "name": "a"}, {"id": 3, "name": "b"}], r"ids are listed twice: 3"),
        ([{"id": 3}], "lack a name: category 3, name None"),
        ([{"id": 3, "name": "a", "frequency": "x"}], "'x' of category 'a'"),
    ],
)
def test_faulty_lists_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Categories.from_lvis(entries)
