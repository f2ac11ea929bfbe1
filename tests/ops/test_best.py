"""The best entries of rows against sorting in plain Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from twostage.ops.best import best

# Few different scores: many are equal.
ROWS = st.integers(0, 12).flatmap(
    lambda m: st.lists(
        st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=m, max_size=m), min_size=1, max_size=4
    )
)


@given(ROWS, st.integers(1, 15), st.booleans())
def test_the_highest_first_and_of_equal_ones_the_first(rows: list, top: int, fits: bool) -> None:
    """`fits` is for exported programs: here it changes nothing."""
    scores = torch.tensor([[float(score) for score, _ in row] for row in rows]).reshape(len(rows), -1)
    among = torch.tensor([[taken for _, taken in row] for row in rows], dtype=torch.bool).reshape(len(rows), -1)
    index, valid = best(scores, among, top=top, fits=fits)
    assert index.shape == valid.shape == (len(rows), top)
    assert index.dtype == torch.int64
    for row, places, there in zip(rows, index, valid, strict=True):
        taken = [k for k, (_, one) in enumerate(row) if one]
        expected = sorted(taken, key=lambda k: -row[k][0])[:top]
        assert places[there].tolist() == expected
        assert there.tolist() == [k < len(expected) for k in range(top)]
        assert all(0 <= place < max(1, len(row)) for place in places.tolist())


def test_a_score_below_all_is_still_among_them() -> None:
    index, valid = best(torch.tensor([[1.0, -3e38, 2.0]]), torch.tensor([[False, True, True]]), top=4)
    assert index[0, :2].tolist() == [2, 1]
    assert valid.tolist() == [[True, True, False, False]]


def test_it_is_one_node_of_an_exported_program() -> None:
    """Runtimes have a translation of it, and none of a stable sort."""

    class Module(torch.nn.Module):
        def forward(self, scores: torch.Tensor, among: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(torch.ops.twostage.best(scores, among, 3, False))

    program = torch.export.export(Module(), (torch.rand(2, 5), torch.ones(2, 5, dtype=torch.bool)))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "twostage.best.default" in called
    assert not [name for name in called if "sort" in name]
