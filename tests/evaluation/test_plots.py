"""Figures hold what they should show, and drawing them changes nothing global."""

import subprocess
import sys

import numpy as np
import pytest

from twostage.evaluation.confusion import Confusion
from twostage.evaluation.curves import Curves
from twostage.evaluation.plots import (
    plot_anchors,
    plot_confusion,
    plot_curves,
    plot_history,
    plot_labels,
    plot_recall,
    save_figure,
)
from twostage.evaluation.recall import ProposalRecall


def curves_of(classes, defined):
    grid = np.linspace(0, 1, 101)
    falling = np.tile(1 - grid, (classes, 1))
    names = tuple(f"class {k}" for k in range(classes))
    return Curves(0.5, names, grid, falling, grid, falling, np.array(defined))


def texts(axes):
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_curves_are_named_with_their_ap():
    left, _ = plot_curves(curves_of(3, [True, True, False])).axes
    assert texts(left) == ["class 0  0.500", "class 1  0.500", "all classes  0.500"]


def test_many_classes_are_drawn_without_names():
    left, _ = plot_curves(curves_of(80, [True] * 80)).axes
    assert texts(left) == ["all classes  0.500"]
    assert len(left.lines) == 81


def test_confusion_shows_counts():
    counts = np.array([[5, 1, 2], [0, 3, 0], [4, 0, 0]])
    (axes,) = plot_confusion(Confusion(("cat", "dog"), 0.5, 0.5, counts)).axes
    shown = {text.get_text().split("\n")[0] for text in axes.texts}
    assert shown == {"5", "1", "2", "3", "4"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "missed"]


def test_labels_of_ordinary_and_of_strange_data_sets(make_dataset, tmp_path):
    ordinary = make_dataset([[[0, 0, 20, 30]] * 3, []], [[0, 1, 1], []], names=("cat", "dog"))
    by_class = plot_labels(ordinary).axes[0]
    assert [label.get_text() for label in by_class.get_yticklabels()] == ["dog", "cat"]
    many = make_dataset(
        [[[k, k, k + 20, k + 30] for k in range(60)]], [list(range(60))], names=tuple(map(str, range(60)))
    )
    for name, dataset in {"ordinary": ordinary, "empty": make_dataset([[]], [[]]), "many": many}.items():
        save_figure(plot_labels(dataset), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_anchors_are_drawn_over_objects(tmp_path):
    sides, anchors = np.array([[10.0, 20.0], [30.0, 15.0]]), np.array([[16.0, 16.0]])
    (axes,) = plot_anchors(sides, anchors, 2 * anchors).axes
    assert texts(axes) == ["objects", "anchors", "proposed anchors"]
    (axes,) = plot_anchors(sides, anchors).axes
    assert texts(axes) == ["objects", "anchors"]
    save_figure(axes.figure, tmp_path / "anchors.png")


@pytest.mark.parametrize("as_text", [False, True])
def test_history_puts_losses_and_metrics_apart_and_bridges_gaps(as_text):
    rows = [
        {"epoch": e, "loss": 3 - e, "val/loss": 3, "AP": "" if e % 2 else e / 10, "lr": 0.1, "note": "x"}
        for e in range(4)
    ]
    if as_text:
        rows = [{k: str(v) for k, v in row.items()} for row in rows]
    losses, metrics, rates = plot_history(rows).axes
    assert [axes.get_ylabel() for axes in (losses, metrics, rates)] == ["loss", "metric", "learning rate"]
    assert [line.get_label() for line in losses.lines] == ["loss", "val/loss"]
    assert metrics.lines[0].get_xdata().tolist() == [0, 2]


def test_history_has_what_later_rows_measured_and_the_ap_of_masks():
    rows = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0, "val_loss": 2.5, "AP": 0.1, "segm_AP": 0.2}]
    losses, metrics = plot_history(rows).axes
    assert [line.get_label() for line in losses.lines] == ["loss", "val_loss"]
    assert [line.get_label() for line in metrics.lines] == ["AP", "segm_AP"]


def test_a_loss_has_one_colour_in_training_and_in_validation():
    names = ("train_loss", "train_loss_box", "val_loss", "val_loss_box")
    losses, *_ = plot_history([{"epoch": e, **dict.fromkeys(names, 1.0)} for e in (1, 2, 3)]).axes
    whole, box, val_whole, val_box = losses.lines
    assert whole.get_color() == val_whole.get_color() != box.get_color() == val_box.get_color()
    assert {line.get_linestyle() for line in (whole, box)} == {"-"}
    assert {line.get_linestyle() for line in (val_whole, val_box)} == {"--"}


def test_history_of_nothing():
    assert len(plot_history([]).axes) == 1


def test_recall_has_a_panel_for_every_number_of_proposals_and_a_line_for_every_source():
    ious, counts = (0.5, 0.75, 1.0), (10, 20, 40, 80)
    share = np.array([0.9, 0.5, 0.1])[:, None, None] * np.linspace(0.25, 1, 4)[None, None]
    recalls = {
        name: ProposalRecall(ious, counts, np.repeat(share * f, 4, axis=1)) for name, f in (("a", 1), ("b", 0.5))
    }
    figure = plot_recall(recalls)
    *by_iou, by_count = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in by_iou] == [f"{count} proposals" for count in counts]
    for axes, factor in zip(by_iou, np.linspace(0.25, 1, 4), strict=True):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), np.array([0.9, 0.5, 0.1]) * factor)
    np.testing.assert_allclose(by_count.lines[1].get_ydata(), 0.45 * np.linspace(0.25, 1, 4))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_pyplot_and_its_global_state_are_never_touched():
    code = "import sys, twostage.evaluation.plots as p; p.plot_history([{'epoch': 1, 'loss': 2.0}]); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_and_scoring_import_no_matplotlib():
    code = "import sys, twostage.evaluation.evaluate, twostage.evaluation.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
