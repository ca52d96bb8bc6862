"""YAML that unfolds to more than it says: aliases of aliases name a billion values in ten lines."""

from __future__ import annotations

import yaml

MOST_NODES = 100_000  # of a document with its aliases written out; the largest shipped recipe has 300


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, for documents of at most MOST_NODES values."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the root of the document; raises ConstructorError where it has too many nodes, or holds itself."""
        root = super().get_single_node()
        if root is not None:
            unfolded(root, {})
        return root


def unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of nodes below and at a node, its aliases written out.

    Args:
        node: composed, its aliases the same objects.
        known: counts of nodes by their `id`; 0 while a node is being counted.

    Raises:
        ConstructorError: they are too many.
    """
    if id(node) not in known:
        known[id(node)] = 0
        known[id(node)] = 1 + sum(unfolded(child, known) for child in children(node))
    count = known[id(node)]
    if count == 0:
        raise yaml.constructor.ConstructorError(None, None, "an alias names what it stands in", node.start_mark)
    if count > MOST_NODES:
        problem = f"it holds more than {MOST_NODES:,} values, aliases written out"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return count


def children(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes right below a node."""
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def load(text: bytes | str) -> object:
    """Return what a YAML text holds, as `yaml.safe_load` does; raises YAMLError where it unfolds to too much."""
    return yaml.load(text, Loader=BoundedLoader)  # a SafeLoader
