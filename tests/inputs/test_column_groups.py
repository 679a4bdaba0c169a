"""Groups of columns that carry the same information, against a search by hand; exact combinations by name."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_sloppy.inputs.column_groups import column_groups, hierarchical_order, natural
from lightning_sloppy.inputs.dependencies import exact_dependencies

RNG = np.random.default_rng(0)


def components(strength: np.ndarray, threshold: float) -> set[frozenset[int]]:
    """Depth-first search."""
    left, found = set(range(len(strength))), set()
    while left:
        stack, group = [left.pop()], set()
        while stack:
            one = stack.pop()
            group.add(one)
            near = {other for other in left if strength[one, other] > threshold}
            left -= near
            stack += near
        if len(group) > 1:
            found.add(frozenset(group))
    return found


def blocks() -> np.ndarray:
    factors = RNG.standard_normal((400, 6))
    return np.concatenate([factors[:, [i]] + 0.15 * RNG.standard_normal((400, i + 1)) for i in range(6)], axis=1)


def test_groups_are_connected_components_whatever_the_order() -> None:
    r = np.corrcoef(blocks().T)
    d = len(r)
    names = [f"c{index}" for index in range(d)]
    counts = np.full(d, 400.0)
    found = column_groups(r, names, counts)
    assert {frozenset(names.index(name) for name in group.names) for group in found} == components(np.abs(r), 0.95)
    assert [len(group.names) for group in found] == sorted((len(group.names) for group in found), reverse=True)
    for group in found:
        own = [names.index(name) for name in group.names]
        assert group.lowest == pytest.approx(np.abs(r[own[0], own[1:]]).min())
        for name, stays, value in group.drop:
            assert value == pytest.approx(r[names.index(name), names.index(stays)])
            assert abs(value) > 0.95
    order = RNG.permutation(d)
    again = column_groups(r[np.ix_(order, order)], [names[index] for index in order], counts)
    assert [(g.representative, set(g.names), set(g.drop)) for g in again] == [
        (g.representative, set(g.names), set(g.drop)) for g in found
    ]


def test_of_a_chain_only_neighbours_are_dropped() -> None:
    r = np.array([[1, 0.96, 0.9, 0.8], [0.96, 1, 0.96, 0.9], [0.9, 0.96, 1, 0.96], [0.8, 0.9, 0.96, 1.0]])
    (group,) = column_groups(r, list("abcd"), np.array([9.0, 9, 9, 9]))
    assert set(group.names) == set("abcd")
    assert group.representative == "b"
    assert group.lowest == 0.9
    assert {name for name, _, _ in group.drop} == {"a", "c"}  # d is linked through c alone, and stays


def test_what_is_left_of_a_long_chain_is_searched_again() -> None:
    r = np.eye(6)
    for near in range(5):
        r[near, near + 1] = r[near + 1, near] = 0.96 + 0.001 * near
    (group,) = column_groups(r, list("abcdef"), np.full(6, 9.0))
    stays = set("abcdef") - {name for name, _, _ in group.drop}
    assert stays == {"b", "e"}  # e has the strongest two links and takes d and f; of what is left b takes a and c


def test_among_equals_the_one_that_is_observed_most_often_stays() -> None:
    r = np.array([[1.0, -0.99], [-0.99, 1.0]])
    assert column_groups(r, ["a", "b"], np.array([5.0, 9.0]))[0].representative == "b"
    assert column_groups(r, ["sensor 10", "sensor 9"], np.array([9.0, 9.0]))[0].representative == "sensor 9"
    assert natural("sensor 9") < natural("sensor 10")


def test_hierarchical_order_puts_groups_side_by_side() -> None:
    rows = blocks()
    mixed = RNG.permutation(rows.shape[1])
    r = np.corrcoef(rows[:, mixed].T)
    order = hierarchical_order(r)
    assert sorted(order) == list(range(len(r)))
    for group in components(np.abs(r), 0.95):
        places = sorted(order.index(index) for index in group)
        assert places == list(range(places[0], places[0] + len(group)))


def test_combinations_are_found_with_their_weights() -> None:
    rows = RNG.standard_normal((300, 4)) * [1, 10, 0.1, 3] + [0, 100, 5, -2]
    total = rows[:, 0] - 2.5 * rows[:, 1] + 7
    table = np.column_stack([rows, total, 3 * rows[:, 3]])
    names = ["a", "b", "c", "d", "total", "d3"]
    found = exact_dependencies(table, names)
    assert (found.columns, found.rows) == (6, 300)
    assert {frozenset([one.column, *one.names]) for one in found.found} == {
        frozenset({"a", "b", "total"}),
        frozenset({"d", "d3"}),
    }
    for one in found.found:
        made = one.constant + sum(
            weight * table[:, names.index(name)] for weight, name in zip(one.weights, one.names, strict=True)
        )
        np.testing.assert_allclose(made, table[:, names.index(one.column)], rtol=0, atol=1e-9)


def test_float32_sums_count_and_noisy_ones_do_not() -> None:
    rows = RNG.standard_normal((500, 3))
    rounded = (rows[:, 0] + rows[:, 1]).astype(np.float32)
    noisy = rows[:, 0] + rows[:, 2] + 1e-4 * RNG.standard_normal(500)
    found = exact_dependencies(np.column_stack([rows, rounded, noisy]), list("abcde"))
    assert [{one.column, *one.names} for one in found.found] == [{"a", "b", "d"}]


def test_nearly_dependent_columns_do_not_get_into_the_equations_of_others() -> None:
    rows = RNG.standard_normal((500, 3))
    rounded = (rows[:, 0] + rows[:, 1]).astype(np.float32)
    near = rows[:, 0] + rows[:, 2] + 2e-5 * RNG.standard_normal(500)
    found = exact_dependencies(np.column_stack([near, rows[:, 0], rounded, rows[:, 2], rows[:, 1]]), list("nacdb"))
    assert [{one.column, *one.names} for one in found.found] == [{"a", "b", "c"}]


def test_missing_values_leave_the_columns_that_are_observed() -> None:
    rows = RNG.standard_normal((400, 3))
    table = np.column_stack([rows, rows[:, 0] + rows[:, 1], RNG.standard_normal((400, 2))])
    table[RNG.random(400) < 0.9, 5] = np.nan
    table[:3, 2] = np.nan
    found = exact_dependencies(table, list("abcdef"))
    assert found.columns == 6
    assert found.rows == int((~np.isnan(table).any(1)).sum()) > 22
    table[RNG.random(400) < 0.99, 4] = np.nan
    found = exact_dependencies(table, list("abcdef"))
    assert (found.columns, found.rows) == (4, 397)
    assert [{one.column, *one.names} for one in found.found] == [{"a", "b", "d"}]


def test_more_columns_than_rows_say_nothing() -> None:
    found = exact_dependencies(RNG.standard_normal((20, 30)), [str(index) for index in range(30)])
    assert (found.found, found.rows) == ((), 0)
