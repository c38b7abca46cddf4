"""Leaf values: what is put into a range is found there, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nasfs.volume.blockmap import LeafValue, common_layer, expand, leaf_runs, with_range
from nasfs.volume.types import REGION_BLOCKS

edges = st.sampled_from([0, 1, 2, 3, 255, 256, 511, 1022, 1023, 1024]) | st.integers(0, 1024)
layers = st.sampled_from([0, 1, 2, 255, 256, 65_537, 1 << 24])


@st.composite
def values(draw: st.DrawFn) -> tuple[LeafValue, list[int]]:
    """A leaf value and the layers of its blocks."""
    first = draw(layers)
    value: LeafValue = first
    model = [first] * REGION_BLOCKS
    for start, stop, layer in draw(st.lists(st.tuples(edges, edges, layers), max_size=6)):
        start, stop = min(start, stop), max(start, stop)
        value = with_range(value, start, stop, layer)
        model[start:stop] = [layer] * (stop - start)
    return value, model


@given(values(), edges, edges)
def test_a_leaf_value_is_a_list_of_layers(
    made: tuple[LeafValue, list[int]], one: int, other: int
) -> None:
    value, model = made
    assert list(expand(value)) == model
    assert isinstance(value, int) == (len(set(model)) == 1)
    start, stop = min(one, other), max(one, other)
    runs = leaf_runs(3, value, 3 * REGION_BLOCKS + start, 3 * REGION_BLOCKS + stop)
    assert [run.layer for run in runs for _ in range(run.start, run.stop)] == model[start:stop]
    if start < stop:
        several = len(set(model[start:stop])) > 1
        assert common_layer(value, start, stop) == (None if several else model[start])
