"""What a run is trained with in the end."""

import subprocess
import sys
from dataclasses import replace

import pytest

from twostage.training.options import TrainOptions
from twostage.training.recipe import FINETUNE, PAPER, RECIPES, SCRATCH, Recipe, epochs_of, recipe_name, resolve
from twostage.training.schedule import factor


def test_rate_is_scaled_linearly_with_the_images_of_an_update(options: TrainOptions) -> None:
    # Detectron: 0.02 for 16 images.
    chosen = resolve(replace(options, batch=4, accumulate=2), FINETUNE, freezable=5, bf16=False)
    assert chosen.lr == pytest.approx(0.01)


def test_a_rate_that_is_given_stays(options: TrainOptions) -> None:
    assert resolve(replace(options, batch=4, lr=0.5), FINETUNE, freezable=5, bf16=False).lr == 0.5


def test_random_layers_are_not_frozen_unless_asked(options: TrainOptions) -> None:
    assert resolve(options, FINETUNE, freezable=5, bf16=False).freeze == 2
    assert resolve(options, FINETUNE, freezable=1, bf16=False).freeze == 1
    assert resolve(options, FINETUNE, freezable=0, bf16=False).freeze == 0
    assert resolve(replace(options, freeze=1), FINETUNE, freezable=0, bf16=False).freeze == 1


def test_options_win_over_the_recipe(options: TrainOptions) -> None:
    given = replace(options, optimizer="sgd", schedule="multistep", ema=0.0, flip=0.0, epochs=3)
    chosen = resolve(given, SCRATCH, freezable=0, bf16=False)
    assert (chosen.optimizer, chosen.schedule, chosen.ema, chosen.flip, chosen.epochs) == ("sgd", "multistep", 0, 0, 3)


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_the_rate_falls_by_either_schedule_of_any_recipe(options: TrainOptions, recipe: Recipe) -> None:
    for kind in ("multistep", "cosine"):
        chosen = resolve(replace(options, schedule=kind), recipe, freezable=0, bf16=False)
        assert factor(99, 100, kind=kind, warmup=0, milestones=chosen.milestones) <= 0.11


def test_few_images_are_passed_over_more_often(options: TrainOptions) -> None:
    options = replace(options, epochs=None, batch=None)
    recipe = replace(SCRATCH, epochs=60, least_updates=1000, batch=8)
    assert epochs_of(options, recipe, 40) == 200
    assert epochs_of(replace(options, batch=4), recipe, 40) == 100
    assert epochs_of(replace(options, batch=4, accumulate=2), recipe, 40) == 200
    assert epochs_of(options, recipe, 41) == 167  # of six steps each, the last one filled up
    assert epochs_of(options, recipe, 3) == 1000
    assert epochs_of(options, recipe, 10_000) == 60
    assert epochs_of(replace(options, epochs=3), recipe, 40) == 3


@pytest.mark.parametrize(
    ("model", "given", "recipe"),
    [
        ("faster_rcnn_tiny_fpn", {}, "scratch"),
        ("faster_rcnn_tiny_fpn", {"weights": "none"}, "scratch"),
        ("faster_rcnn_tiny_fpn", {"weights": "run/weights/best.safetensors"}, "finetune_small"),
        ("faster_rcnn_tiny_fpn", {"backbone": "timm:resnet18"}, "finetune_small"),
        ("faster_rcnn_tiny_fpn", {"backbone": "timm:resnet18", "weights": "none"}, "scratch"),
        ("mask_rcnn_lite0_fpn", {}, "finetune_small"),
        ("mask_rcnn_lite0_fpn", {"weights": "none"}, "scratch"),
        ("mask_rcnn_resnet50_fpn", {}, "finetune"),
        ("faster_rcnn_tiny_fpn", {"weights": "a.safetensors", "recipe": "scratch"}, "scratch"),
    ],
)
def test_small_nets_are_fine_tuned_at_other_rates_than_from_nothing(
    options: TrainOptions, model: str, given: dict, recipe: str
) -> None:
    assert recipe_name(replace(options, model=model, **given)) == recipe


def test_the_papers_lengths_hold_for_any_number_of_images(options: TrainOptions) -> None:
    assert epochs_of(replace(options, epochs=None), PAPER, 1) == PAPER.epochs


def test_small_nets_train_in_bf16_where_the_device_is_built_for_it(options: TrainOptions) -> None:
    for recipe, bf16, given, expected in [
        (SCRATCH, True, None, "bf16"),
        (SCRATCH, False, None, "fp32"),
        (SCRATCH, True, "fp32", "fp32"),
        (SCRATCH, False, "bf16", "bf16"),
        (FINETUNE, True, None, "fp32"),
        (FINETUNE, True, "auto", "bf16"),
        (SCRATCH, False, "auto", "fp32"),
    ]:
        assert resolve(replace(options, precision=given), recipe, freezable=0, bf16=bf16).precision == expected


def test_the_papers_numbers() -> None:
    # Faster R-CNN, section 3.1.3.
    assert (PAPER.lr, PAPER.momentum, PAPER.weight_decay, PAPER.milestones) == (0.001, 0.9, 0.0005, (0.75,))


def test_scale_is_two_numbers() -> None:
    """Found by the fuzzer; in a process of its own, for here the types of all arguments are checked before."""
    code = "from twostage.training import TrainOptions; TrainOptions('data', scale=(1.0,))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: scale is (1.0,), and must be a list of 2, each a number" in ended.stderr.replace(
        "twostage.errors.", ""
    )
