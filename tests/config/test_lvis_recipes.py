"""docs/lvis.md against the configs: what its table of recipes names composes with the LVIS experiment."""

import re

import pytest

from tests.config.test_configs import CONF, RUNTIME, compose_with

TABLE = [
    line.split("|")[1:3]
    for line in (CONF.parent / "docs" / "lvis.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| Question")
]
RECIPES = [text for _, settings in TABLE for text in re.findall(r"`([^`]+)`", settings) if "=" in text]


def test_the_table_is_read():
    assert len(TABLE) == 13 and len(RECIPES) >= 15


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes(recipe):
    overrides = [part if "=" in part else f"{part}=1" for part in recipe.split()]
    cfg = compose_with([*RUNTIME, "experiment=lvis_rare", *overrides])
    assert cfg.name == "lvis_rare"
