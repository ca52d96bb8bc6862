"""Plans against the standard library's product, the published counts, and every recipe that ships."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import places
import pytest

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.synth.pug.plan.covering import TooManyTuples, covering_array
from granary.synth.pug.plan.factors import Factor, axes_of, inlined
from granary.synth.pug.plan.plans import Grid, permuted, row_id
from granary.synth.pug.planning import Planned, planned
from granary.synth.pug.recipe import RenderRecipe

CONFIGS = places.CONFIGS / "render"
BASE: dict[str, Any] = {
    "out": "-",
    "factors": {
        "world_name": ["Meadow", "Snow"],
        "character_name": ["Cat", "Dog", "Fox"],
        "character_scale": [0.5, 1, 2],
    },
}


def plan(**changes: Any) -> Planned:
    return planned(RenderRecipe.model_validate({**BASE, **changes}))


def shipped(name: str) -> Planned:
    return planned(load_recipe(RenderRecipe, str(CONFIGS / name), ["--out", "-"]))


def test_mixed_radix_agrees_with_the_product_of_the_standard_library() -> None:
    sizes = (7, 1, 5, 11, 3, 4)
    names = [f"character_{axis}" for axis in ("x", "y", "z")] + ["camera_yaw", "light_yaw", "camera_roll"]
    axes = axes_of({name: Factor(values=tuple(range(size))) for name, size in zip(names, sizes, strict=True)})
    grid = Grid(axes)
    rows = list(itertools.product(*map(range, sizes)))
    assert len(grid) == math.prod(sizes) == len(rows)
    for index in random.Random(0).choices(range(len(rows)), k=10_000):
        assert tuple(grid[index].values()) == rows[index]
    with pytest.raises(IndexError):
        grid[len(rows)]


def test_a_billion_rows_are_decoded_from_their_index() -> None:
    axes = axes_of({name: Factor(values=tuple(range(1000))) for name in ("character_x", "character_y", "character_z")})
    grid = Grid(axes)
    assert len(grid) == 10**9
    assert list(grid[123_456_789].values()) == [123, 456, 789]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *(("pug_animals.yaml", 215_040), ("pug_imagenet.yaml", 88_328), ("pug_spar.yaml", 43_560)),
        *(("pug_ar4t.yaml", 273_202), ("pug_animals_demo.yaml", 1_152), ("pug_imagenet_demo.yaml", 174)),
        *(("pug_spar_demo.yaml", 128), ("pug_ar4t_demo.yaml", 120), ("animals_demo.yaml", 96)),
    ],
)
def test_shipped_recipes_have_the_published_counts(name: str, rows: int) -> None:
    work = shipped(name)
    assert len(work.plan) == rows
    chosen = {work.row(i).id for i in range(0, rows, max(1, rows // 300))}
    assert len(chosen) == len(range(0, rows, max(1, rows // 300)))
    assert set(work.column_types) == set(work.plan.columns)


def test_animals_has_the_published_factors() -> None:
    work = shipped("pug_animals.yaml")
    assert [len(axis.levels) for axis in work.axes] == [64, 70, 3, 4, 4]
    assert sum(work.row(i).split == "test" for i in range(0, 215_040, 70 * 48)) == 10  # worlds


def test_spar_counts_as_the_paper() -> None:
    work = shipped("pug_spar.yaml")
    pairs = [(row["world_name"], row["character_name"], row["character2_name"]) for row in work.plan]
    blank = [pair[1:].count("blank") for pair in pairs]
    assert blank.count(2) == 40
    assert blank.count(1) == 2_560
    assert sum(pair[0] == "Desert" for pair in pairs) == 4_356


def test_imagenet_varies_one_factor_at_a_time() -> None:
    work = shipped("pug_imagenet.yaml")
    defaults = {name: next(iter(axis.default.values())) for axis in work.axes if axis.default for name in axis.columns}
    rows = work.plan[122 * 5 : 122 * 6]
    assert {row["character_name"] for row in rows} == {"asset-005"}
    counts: dict[str, int] = {}
    for row in rows:
        changed = [column for column, value in defaults.items() if row[column] != value]
        assert set(changed) <= {row["varied_factor"]}
        counts[str(row["varied_factor"])] = counts.get(str(row["varied_factor"]), 0) + 1
    rotations = {f"{who}_{angle}": 6 for who in ("character_rotation", "camera") for angle in ("yaw", "roll", "pitch")}
    assert counts == {
        **{"world_name": 64, "character_scale": 6, "character_texture": 9, "scene_light": 7},
        **rotations,
    }


def test_ar4t_has_the_published_split() -> None:
    work = shipped("pug_ar4t.yaml")
    rule = work.rules[0]
    assert sum(rule.holds(i, {}) for i in range(len(work.plan))) == 23_216
    assert len(work.axes[0].levels) == 28


def test_random_rows_are_distinct_and_depend_on_seed_and_index_alone() -> None:
    options = {"kind": "random", "count": 18}
    everything = [row_id(row) for row in plan(plan=options).plan]
    assert sorted(everything) == sorted(row_id(row) for row in plan().plan)
    assert everything != [row_id(row) for row in plan().plan]
    assert [row_id(row) for row in plan(plan={**options, "count": 5}).plan] == everything[:5]
    assert [row_id(row) for row in plan(plan=options, seed=1).plan] != everything


def test_permutation_is_one() -> None:
    for size in (1, 2, 3, 17, 64, 1000):
        assert sorted(permuted(i, size, "key") for i in range(size)) == list(range(size))


def test_continuous_factors_are_drawn_uniformly() -> None:
    factors = {**BASE["factors"], "camera_yaw": {"low": -30, "high": 60}}
    work = plan(factors=factors, plan={"kind": "random", "count": 900})
    yaws = [float(row["camera_yaw"]) for row in work.plan]
    assert min(yaws) >= -30
    assert max(yaws) <= 60
    quarters = [sum(-30 + 22.5 * i <= yaw < -30 + 22.5 * (i + 1) for yaw in yaws) for i in range(4)]
    assert min(quarters) > 180
    assert work.column_types["camera_yaw"] == "float64"
    cells = [(row["world_name"], row["character_name"], row["character_scale"]) for row in work.plan]
    assert all(cells.count(cell) == 50 for cell in set(cells))  # the grid of the others, gone through 50 times


@pytest.mark.parametrize(("sizes", "strength"), [([3] * 4, 2), ([2] * 8, 2), ([4, 3, 2, 5], 3), ([2, 3], 1), ([6], 1)])
def test_covering_arrays_hold_every_combination(sizes: list[int], strength: int) -> None:
    rows = covering_array(sizes, strength)
    for group in itertools.combinations(range(len(sizes)), strength):
        found = {tuple(row) for row in rows[:, list(group)].tolist()}
        assert found == set(itertools.product(*(range(sizes[i]) for i in group)))
    assert len(rows) >= math.prod(sorted(sizes)[-strength:])
    assert len(rows) <= 2 * math.prod(sorted(sizes)[-strength:]) + 4


def test_covering_arrays_have_a_limit() -> None:
    with pytest.raises(TooManyTuples):
        covering_array([10_000, 10_000], 2)


def test_row_ids_are_of_the_values_alone() -> None:
    assert row_id({"a": 1, "b": "x"}) == row_id({"b": "x", "a": 1})
    assert row_id({"a": 1}) != row_id({"a": 1.5}) != row_id({"a": "1"})
    ids = {work.row(i).values["character_name"]: work.row(i).id for work in [plan()] for i in (0, 3)}
    wider = plan(factors={**BASE["factors"], "character_name": ["Bear", "Cat", "Dog", "Fox"]})
    assert ids["Cat"] in {wider.row(i).id for i in range(len(wider.plan))}


def test_linked_values_set_their_columns_together(tmp_path: Path) -> None:
    (tmp_path / "assets.csv").write_text("character_name,character_label\nCat_1,cat\nCat_2,cat\nCar_9,sports car\n")
    work = plan(
        factors={"world_name": "Meadow", "character_name": {"file": str(tmp_path / "assets.csv")}, "camera_yaw": [0, 9]}
    )
    rows = [work.row(i) for i in range(len(work.plan))]
    assert [(row.values["character_name"], row.values["character_label"]) for row in rows[::2]] == [
        ("Cat_1", "cat"),
        ("Cat_2", "cat"),
        ("Car_9", "sports car"),
    ]
    assert work.label == "character_label"
    assert work.recipe.factors["character_name"].file is None  # the recipe holds the values, so that a digest sees them


def test_splits_hold_out_values_combinations_draws_and_rows() -> None:
    def held(**holdout: Any) -> list[dict[str, Any]]:
        work = plan(splits=[holdout])
        rows = [work.row(i) for i in range(len(work.plan))]
        assert {row.split for row in rows} == {"train", holdout.get("split", "test")}
        return [row.values for row in rows if row.split != "train"]

    assert {row["world_name"] for row in held(where={"world_name": "Snow"})} == {"Snow"}
    both = held(where={"character_name": ["Cat", "Dog"], "character_scale": [2]}, split="combinations")
    assert {(row["character_name"], row["character_scale"]) for row in both} == {("Cat", 2), ("Dog", 2)}
    assert len(both) == 4
    drawn = held(draw={"character_name": 2})
    assert len({row["character_name"] for row in drawn}) == 2
    assert len(drawn) == 12
    assert len(held(rows=7)) == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factors": {"character_colour": ["red"], **BASE["factors"]}}, "no renderer knows this factor"),
        ({"factors": {**BASE["factors"], "character_scale": [0]}}, "character_scale cannot be 0: give a number from"),
        ({"factors": {**BASE["factors"], "camera_pitch": ["steep"]}}, "camera_pitch cannot be 'steep'"),
        ({"factors": {**BASE["factors"], "character_scale": [1, 1]}}, "stands there twice"),
        ({"factors": {**BASE["factors"], "character_name": ["Big cat"]}}, "give a name without spaces"),
        ({"factors": {**BASE["factors"], "scene_light": ["Disco"]}}, "scene.lights has"),
        ({"factors": {**BASE["factors"], "character1_pos": ["under"]}}, "scene.places has"),
        ({"factors": {"character_name": ["Cat"]}}, "scene.world: missing"),
        ({"factors": {**BASE["factors"], "camera_yaw": {"low": 0, "high": 9}}}, "camera_yaw.steps: missing"),
        ({"factors": {**BASE["factors"], "x": [{"world_name": "Snow"}]}}, "it sets world_name, as world_name does"),
        ({"factors": {**BASE["factors"], "character_name": {"file": "/nowhere.txt"}}}, "cannot read /nowhere.txt"),
        ({"plan": {"kind": "random", "count": 19}}, "19 is more than the 18 combinations"),
        ({"plan": {"kind": "random"}}, "plan.count: missing"),
        ({"plan": {"kind": "covering", "strength": 4}}, "4 is more than the 3 factors"),
        ({"plan": {"kind": "one_factor", "each": ["character_name"]}}, "world_name.default: missing"),
        ({"plan": {"kind": "one_factor", "each": ["animal"]}}, "animal is no factor"),
        ({"plan": {"kind": "list"}}, "plan.rows: missing"),
        ({"plan": {"kind": "list", "rows": [{"world_name": "A"}, {"character_name": "B"}]}}, "row 1 has the columns"),
        ({"splits": [{"where": {"world_name": "Desert"}}]}, "'Desert' is no value of world_name"),
        ({"splits": [{"draw": {"character_name": 3}}]}, "3 of the 3 values"),
        ({"splits": [{"rows": 18}]}, "leaves nothing"),
        ({"label": "breed"}, "there is no column breed"),
        ({"captions": {"style": "templates", "templates": ["a {breed}"]}}, "{breed} is no column"),
        ({"captions": {"style": "templates", "templates": ["a {world_name.__class__}"]}}, "is no column"),
        ({"captions": {"style": "templates"}}, "captions.style"),
        ({"renderer": {"kind": "unrealcv"}}, "renderer.addresses: give"),
        ({"renderer": {"addresses": "localhost:9000"}}, "the embedded world has no addresses"),
        ({"renderer": {"kind": "unrealcv", "binary": "/nowhere/Game"}}, "renderer.binary"),
        ({"meshes": {"Mine": "/nowhere/mine.glb"}}, "there is no file"),
        ({"meshes": {"Mine": "mine.fbx"}}, "give a local file (.glb, .obj, .ply, .gltf, .stl, .off)"),
    ],
)
def test_impossible_recipes_stop_with_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_of_rows_and_one_character_without_a_factor() -> None:
    work = plan(
        factors={"world_name": ["Meadow"]},
        scene={"character": "Cat"},
        plan={"kind": "list", "rows": [{"camera_yaw": 10}, {"camera_yaw": 20}]},
    )
    assert [row["camera_yaw"] for row in work.plan] == [10, 20]
    assert work.row(0).values["world_name"] == "Meadow"
    assert [actor.asset for actor in work.scene(work.row(0)).actors] == ["Cat"]


def test_a_table_of_values_that_no_csv_reader_takes_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("character_name\n" + "x" * 200_000)
    factor = Factor(file=str(tmp_path / "names.csv"))
    with pytest.raises(UserError, match=r"^factors\.character_name\.file: cannot read .*names\.csv"):
        inlined("character_name", factor)
