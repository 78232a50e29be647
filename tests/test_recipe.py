"""Recipes are checked whole before any work."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.runner import Runner
from laionkit.recipe import find_recipe, load_recipe, run


def write(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return str(path)


def test_a_recipe_is_found_by_name_and_by_path(tmp_path):
    assert find_recipe("demo").name == "demo.yaml"
    assert str(find_recipe(write(tmp_path, ""))).endswith("r.yaml")


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(InputError, match=r"no recipe 'demmo' \(did you mean demo\?\)"):
        find_recipe("demmo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {fetch: 1}", "a list of one-key maps"),
        ("- fetch", "a list of one-key maps"),
        ("stages: []", "a list of one-key maps"),
        ("stage: []\nstages: [fetch]", "no key 'stage' in a recipe"),
        ("stages: [fetsh]", r"no stage is called 'fetsh' \(did you mean fetch\?\)"),
        ("stages: [fetch: {imge_size: 3}]", r"'imge_size' \(did you mean image_size\?\)"),
        ("stages: [fetch: {image_size: big}]", "image_size='big'"),
    ],
)
def test_a_malformed_recipe_is_one_line_before_any_work(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, text), str(tmp_path))


def test_what_is_no_yaml_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(write(tmp_path, "stages: ["), str(tmp_path))


def test_overrides_win_and_are_checked(tmp_path):
    path = write(tmp_path, "stages: [fetch: {image_size: 64}]")
    recipe = load_recipe(path, "d", ["fetch.image_size=384"])
    assert recipe.steps[0].config.image_size == 384
    for bad, message in [
        ("fetch.image_size", "give stage.key=value"),
        ("fetch.imge_size=1", "did you mean"),
        ("embed.model=tiny", "no stage 'embed' to set"),
        ("fetch.contact=[", r"-s fetch.contact=\[: '\[' is no YAML value; put text in quotes"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_recipe(path, "d", [bad])


def test_the_dataset_is_filled_in(tmp_path):
    path = write(tmp_path, "stages: [metadata: {sources: ['{dataset}/links.parquet']}]")
    assert load_recipe(path, "my/set").steps[0].operand == ["my/set/links.parquet"]


def test_metadata_without_sources_says_where_to_name_them(tmp_path):
    recipe = load_recipe(write(tmp_path, "stages: [metadata]"), str(tmp_path))
    with pytest.raises(ConfigError, match="laionkit run RECIPE DATASET SOURCE"):
        run(recipe, str(tmp_path))


def test_a_part_of_a_recipe_that_holds_one_piece_of_work_is_refused_before_any(tmp_path):
    recipe = load_recipe(write(tmp_path, "stages: [fetch, index]"), str(tmp_path))
    with pytest.raises(ConfigError, match="r: index is one piece of work, which no --part can do"):
        run(recipe, str(tmp_path), runner=Runner(part=(1, 2)))
    shared = write(tmp_path, "stages: [fetch]")  # by path, as a notebook would
    with pytest.raises(InputError, match="no work list"):
        run(shared, str(tmp_path), runner=Runner(part=(1, 2)))


@pytest.fixture
def links(tmp_path):
    table = pa.table({"URL": ["http://127.0.0.1:9/a.jpg"], "TEXT": ["a"]})
    pq.write_table(table, tmp_path / "links.parquet")
    return tmp_path / "links.parquet"


def test_fresh_starts_those_stages_over_whose_settings_differ(tmp_path, links):
    dataset, path = str(tmp_path / "set"), write(tmp_path, "stages: [metadata, fetch]")
    offline = ("fetch.allow_private=true", "fetch.retries=0")

    def go(*overrides: str, **how: bool) -> dict[str, int]:
        recipe = load_recipe(path, dataset, (*offline, *overrides))
        reports = run(recipe, dataset, sources=[str(links)], runner=Runner(workers=1, **how))
        return {report.stage: report.skipped for report in reports}

    assert go() == {"metadata": 0, "fetch": 0}
    smaller = 'fetch.encode_format="webp"'
    with pytest.raises(StaleOutput, match=r"A recipe keeps it with -s 'fetch.encode_format=\"jpg"):
        go(smaller)
    with pytest.raises(ConfigError, match="of fetch: add --yes"):
        go(smaller, fresh=True)
    assert go(smaller, fresh=True, yes=True) == {"metadata": 1, "fetch": 0}
    assert go(smaller, fresh=True, yes=True) == {"metadata": 1, "fetch": 1}
    assert [p.name[:5] for p in (tmp_path / "set/.laionkit/aside").iterdir()] == ["fetch"]
