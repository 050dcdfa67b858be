"""docs/loadtests.md and the command's help say what the code does."""

from pathlib import Path

import pytest

from muxserve.loadtest.scenario import shapes
from muxserve.loadtest.scenario.scenario import Scenario, ServerSpec, TextsSpec, read_scenario

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "loadtests.md").read_text()
SHAPES = (
    shapes.Constant,
    shapes.Soak,
    shapes.Burst,
    shapes.Diurnal,
    shapes.Saturate,
    shapes.Search,
)


@pytest.mark.parametrize(
    "model", [Scenario, ServerSpec, TextsSpec, *SHAPES], ids=lambda model: model.__name__
)
def test_every_field_stands_in_the_docs_with_its_meaning_and_default(model):
    for name, field in model.model_fields.items():
        if name == "shape":
            continue
        default = "required" if field.is_required() else field.default
        default = "as below" if isinstance(default, TextsSpec) else default
        assert f"| `{name}` | {default} | {field.description} |" in PAGE


def test_every_shipped_scenario_stands_in_the_docs():
    for file in (ROOT / "loadtests" / "scenarios").glob("*.yaml"):
        assert f"`{file.name}`" in PAGE, file.name


def test_the_example_of_a_scenario_is_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(PAGE.split("```yaml\n")[1].split("```")[0])
    assert read_scenario(file).texts.file == tmp_path / "reviews.csv"
