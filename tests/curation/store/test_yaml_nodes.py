"""Documents that unfold without end are refused at once; all others are read as PyYAML reads them."""

import pytest
import yaml

from granary.curation.store import yaml_nodes
from granary.pipelines import command


def bomb(levels, width=9):
    """As the well-known one: every level names the one below `width` times."""
    lines = [f"a0: &a0 [{', '.join(['lol'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"pool: *a{levels - 1}", "out: x"])


BOMBS = {
    "sequences": bomb(8),
    "more levels": bomb(60),
    "mappings": "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 18)),
    "merge keys": "a: &a {x: [" + "1, " * 200 + "]}\n" + "\n".join(f"b{n}: {{<<: *a, y: 1}}" for n in range(600)),
    "itself": "pool: &a [*a]",
    "itself, deeper": "pool: &a {b: [{c: *a}]}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_nodes_are_refused_at_once(name, tmp_path, capsys):
    with pytest.raises(yaml.YAMLError, match=r"more than 100,000 values|what it stands in"):
        yaml_nodes.load(BOMBS[name])
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[name])
    assert command.main(["curate", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("granary: config: ")
    assert len(said) < 1000


def test_the_limit_is_the_number_of_values(monkeypatch):
    monkeypatch.setattr(yaml_nodes, "MOST_NODES", 10)
    assert yaml_nodes.load("[1, 2, 3, 4, 5, 6, 7, 8, 9]") == list(range(1, 10))
    with pytest.raises(yaml.YAMLError, match="more than 10 values"):
        yaml_nodes.load("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")


@pytest.mark.parametrize("text", ["a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "", "[1, 2, 3]", "x: 2020-01-01", bomb(3)])
def test_others_are_read_as_ever(text):
    assert yaml_nodes.load(text) == yaml.safe_load(text)
