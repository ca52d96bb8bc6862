"""Recipes: YAML and options into one validated object."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given
from hypothesis import strategies as st
from places import CONFIGS

from granary.curation.errors import UserError
from granary.curation.recipe import CurateRecipe
from granary.pipelines.engine.profiles import check_beam_options, load_profile
from granary.pipelines.engine.recipe import dump_recipe, fields, load_recipe, parse_overrides, shipped

WORDS = ["--pool", "p", "--out", "o"]


def recipe(*words: str, config: str | None = None) -> CurateRecipe:
    return load_recipe(CurateRecipe, config, [*WORDS, *words])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("curate/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_parses_and_says_how_it_is_run(path):
    written = yaml.safe_load(path.read_text())
    dumped = yaml.safe_load(dump_recipe(recipe(config=str(path))))
    for key in written.keys() - {"pool", "seeds", "references", "out"}:
        value, found = written[key], dumped[key]
        assert value.items() <= found.items() if isinstance(value, dict) else value == found
    assert "#   granary " in path.read_text()
    assert path.samefile(shipped(f"curate/{path.name}"))


def test_the_recipe_of_lvd_142m_has_the_numbers_of_the_paper():
    found = recipe(config="configs/curate/lvd142m.yaml")
    assert (found.dedup.threshold, found.dedup.neighbours, found.leaks.threshold) == (0.6, 64, 0.45)
    assert found.leaks.through_pool
    cells = found.retrieval
    assert (cells.k, cells.clusters, cells.min_seeds, cells.per_cell, cells.cap) == (4, 100_000, 3, 10_000, 1_000_000)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("runners/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_profile_is_beam_options(path):
    if path.stem == "dask":  # whose options are those of its runner
        pytest.importorskip("apache_beam.runners.dask.dask_runner")
    options = yaml.safe_load(path.read_text())["options"]
    left = [f"--{key}=9" for key, value in options.items() if value is None]
    words = load_profile(str(path), left)
    assert words[0].startswith("--")
    assert words[len(words) - len(left) :] == left
    assert load_profile(path.stem, left) == load_profile(f"configs/runners/{path.name}", left) == words
    parsed = PipelineOptions(words)
    known = parsed.get_all_options(drop_default=True)
    assert parsed.get_all_options(drop_default=True, retain_unknown_options=True) == known  # Beam knows every option
    if left:
        with pytest.raises(UserError, match=f"leaves options open.* {left[-1].partition('=')[0]}="):
            load_profile(str(path), left[:-1])


def test_every_option_of_a_shipped_profile_is_one_of_beam():
    for path in sorted((CONFIGS / "runners").glob("*.yaml")):
        options = yaml.safe_load(path.read_text())["options"]
        check_beam_options(load_profile(str(path), [f"--{key}=1" for key, value in options.items() if value is None]))


@pytest.mark.parametrize("options", [
    ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner", "--dask_client_address=tcp://127.0.0.1:1"],
    ["--runner", "PortableRunner", "--an_option_of_the_server=1"],
    ["--direct_num_workers", "3"],
    ["--direct_num_workers=3", "--runner"],
    [],
])  # fmt: skip
def test_options_that_somebody_knows_are_taken(options):
    check_beam_options(options)


@pytest.mark.parametrize("options", [
    ["--direct_num_worker=3"],
    ["--runner=FnApiRunner", "--job_endpointt=x"],
])  # fmt: skip
def test_options_that_nobody_knows_are_refused_with_what_was_meant(options):
    with pytest.raises(UserError, match="is no option of Apache Beam; did you mean --"):
        check_beam_options(options)


def test_profiles_write_flags_and_lists_as_beam_wants_them(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("options: {runner: FlinkRunner, streaming: true, off: false, experiments: [a, b], workers: 0}")
    assert load_profile(str(path), ["--runner=X"]) == [
        "--runner=FlinkRunner",
        "--streaming",
        "--experiments=a",
        "--experiments=b",
        "--workers=0",
        "--runner=X",
    ]


def test_overrides():
    found = dict(
        parse_overrides(
            [
                "--a.b",
                "1",
                "--c=x=y",
                "--d-e",
                "-5",
                "--f",
                "p",
                "--f",
                "q",
                "--g",
                "[1, 2]",
                "--h",
                "none",
                "--i",
                "{k: v}",
            ]
        )
    )
    assert found == {"a.b": "1", "c": "x=y", "d_e": "-5", "f": ["p", "q"], "g": [1, 2], "h": None, "i": {"k": "v"}}


@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_words_are_overrides_or_one_sentence(words):
    with contextlib.suppress(UserError):
        assert isinstance(load_recipe(CurateRecipe, None, words), CurateRecipe)


def test_a_source_is_a_path_or_fields_or_several_of_either():
    assert [(s.name, s.path) for s in recipe().pool] == [("pool", "p")]
    assert [(s.name, s.path) for s in recipe("--pool", "q").pool] == [("pool-1", "p"), ("pool-2", "q")]
    seeds = recipe("--seeds", "[{path: s, name: cars, k: 3}, t]").seeds
    assert [(s.name, s.path, s.k) for s in seeds] == [("cars", "s", 3), ("seeds-2", "t", None)]


@pytest.mark.parametrize("words", [["--seeds", "s", "--seeds.k", "7"], ["--seeds.k", "7", "--seeds", "s"]])
def test_a_field_of_a_source_holds_whatever_the_order_of_the_options(words):
    (seeds,) = recipe(*words).seeds
    assert (seeds.path, seeds.k) == ("s", 7)


def test_a_field_of_a_list_of_sources_is_set_on_each(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("references: [a, {path: b, name: tests}]")
    found = recipe("--references.labels", "folder", config=str(path)).references
    assert [(s.name, s.path, s.labels) for s in found] == [("references-1", "a", "folder"), ("tests", "b", "folder")]


def test_options_win_over_the_file_and_the_rest_of_a_group_stays(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("retrieval: {k: 7, clusters: 20}\nseed: 3\n")
    found = recipe("--retrieval.k", "8", config=str(path))
    assert (found.retrieval.k, found.retrieval.clusters, found.seed) == (8, 20, 3)


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("retrieval: 3", ["--retrieval.k", "4"], "retrieval.k: it would be set in 3"),
        ("pool: [3]", ["--pool.name", "x"], "pool.name: it would be set in 3"),
        ("1: 2", [], "keys should be strings"),
        ("pool: {path: p, pth: q}", [], "pool.pth: there is no such key; did you mean pool.path?"),
        ("treshold: 0.9", [], "treshold: there is no such key; did you mean leaks.threshold?"),
        ("seeds: 4", [], "seeds"),
        ("name: 'a/b'", [], "name: 'a/b' is not right"),
        ("decode: {max_pixels: -1}", [], "decode.max_pixels: -1 is not right"),
        ("seed: -1", [], "seed: -1 is not right"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, words, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(CurateRecipe, str(path), [*([] if "pool:" in text else ["--pool", "p"]), "--out", "o", *words])
    assert said in str(error.value)


def test_every_mistake_of_a_recipe_is_named_at_once():
    with pytest.raises(UserError) as error:
        recipe("--seed", "x", "--retrieval.k", "0", "--nonsense", "1")
    assert all(key in str(error.value) for key in ("seed:", "retrieval.k:", "nonsense:"))


def test_the_dump_of_a_recipe_is_the_recipe():
    first = recipe("--seeds", "s", "--balance.levels", "[9, 3]", "--dedup.threshold", "0.7", "--name", "set 1")
    assert CurateRecipe.model_validate(yaml.safe_load(dump_recipe(first))) == first


def test_fields_are_those_of_the_dump():
    def leaves(tree, prefix=""):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key]

    keys = [field.key for field in fields(CurateRecipe)]
    assert len(keys) == len(set(keys))
    assert set(leaves(yaml.safe_load(dump_recipe(recipe())))) <= set(keys)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--balance.levels", "90,8"], (90, 8)),
        (["--balance.levels", " 90, 8 "], (90, 8)),
        (["--balance.levels", "90"], (90,)),
        (["--balance.levels", "90", "--balance.levels", "8"], (90, 8)),
        (["--balance.levels=[90, 8]"], (90, 8)),
    ],
)
def test_a_list_is_written_with_commas_in_brackets_or_by_repeating(words, value):
    assert recipe(*words).balance.levels == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "1", "--seed", "2"], "seed: ['1', '2'] is not right: it takes one value, and 2 are given"),
        (["--retrieval.k", "[1, 2]"], "retrieval.k: [1, 2] is not right: it takes one value, and 2 are given"),
        (["--balance.levels", "9,x"], "balance.levels: 'x' is not right: input should be a valid integer"),
    ],
)
def test_a_list_where_one_value_is_right_is_one_sentence(words, said):
    with pytest.raises(UserError) as error:
        recipe(*words)
    assert str(error.value).startswith(said)
    assert ";" not in str(error.value)


def test_the_word_none_is_a_word_where_it_is_a_choice_and_nothing_elsewhere():
    found = recipe("--pool.labels", "none", "--pool.split", "none")
    assert (found.pool[0].labels, found.pool[0].split) == ("none", None)
