"""Training recipes: the hyperparameters of a run where its options leave them open.

`finetune` is Detectron's, for pretrained backbones, `finetune_dense` RetinaNet's, `paper` and `paper_zf` are Faster
R-CNN's, `paper_fast` and `paper_fast_zf` Fast R-CNN's; `scratch` is ours, for small nets from random weights, and
`finetune_small` for small pretrained ones.
"""

from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any, Literal

from twostage.data.order import steps_per_epoch
from twostage.errors import UsageError
from twostage.training.options import RANDOM, Recipes, TrainOptions


@dataclass(frozen=True)
class Recipe:
    """`lr` holds for `base_batch_size` images per update and is scaled linearly with them (Goyal et al. 2017).

    A run whose length is not given has `epochs`, and with few images as many more as make `least_updates`.
    `milestones` are the fractions of the run after which `multistep` divides the rate by 10. `validations` is how often
    a run is validated when `eval_every` is not given. `precision` is replaced by fp32 where bf16 is no faster.
    """

    epochs: int
    least_updates: int
    batch: int
    least_batch: int
    lr: float
    base_batch_size: int  # images per update that `lr` is meant for
    optimizer: Literal["sgd", "adamw"]
    schedule: Literal["multistep", "cosine"]
    milestones: tuple[float, ...]
    warmup: int
    momentum: float
    weight_decay: float
    layer_decay: float
    clip: float
    ema: float
    freeze: int
    flip: float
    vertical_flip: float
    colour: float
    scale: tuple[float, float]
    crop: float
    copy_paste: float
    repeat_threshold: float
    validations: int
    precision: Literal["fp32", "bf16", "fp16"]


FINETUNE = Recipe(
    epochs=12,
    least_updates=600,  # measured for the small nets alone: `benchmarks/results/tried.md`
    batch=2,
    least_batch=2,
    lr=0.02,
    base_batch_size=16,
    optimizer="sgd",
    schedule="multistep",
    milestones=(8 / 12, 11 / 12),
    warmup=500,
    momentum=0.9,
    weight_decay=1e-4,
    layer_decay=1.0,
    clip=0.0,
    ema=0.0,
    freeze=2,
    flip=0.5,
    vertical_flip=0.0,
    colour=0.0,
    scale=(1.0, 1.0),
    crop=0.0,
    copy_paste=0.0,
    repeat_threshold=0.001,  # of LVIS (Gupta et al. 2019)
    validations=12,
    precision="fp32",
)
# RetinaNet, section 4.1: the loss of a hundred thousand anchors takes half the rate.
FINETUNE_DENSE = replace(FINETUNE, lr=0.01)
# Section 3.1.3 and Fast R-CNN 4.4: 60 of 80 thousand steps at 0.001, the rest at a tenth; layers before conv3_1 fixed.
PAPER = replace(
    FINETUNE,
    batch=1,
    least_batch=1,
    lr=0.001,
    base_batch_size=1,
    milestones=(0.75,),
    least_updates=0,
    warmup=0,
    weight_decay=5e-4,
    clip=10.0,
)
# Section 3.1.3: "we tune all layers of the ZF net".
PAPER_ZF = replace(PAPER, freeze=0)
# Fast R-CNN, section 2.3: 2 images per step, 30 of 40 thousand steps at 0.001.
PAPER_FAST = replace(PAPER, batch=2, least_batch=2, base_batch_size=2)
PAPER_FAST_ZF = replace(PAPER_FAST, freeze=0)
SCRATCH = replace(
    FINETUNE,
    epochs=60,
    batch=8,
    least_batch=2,
    lr=4e-3,
    base_batch_size=8,
    optimizer="adamw",
    schedule="cosine",
    warmup=50,
    weight_decay=0.05,
    clip=10.0,
    ema=0.99,
    freeze=0,
    scale=(0.75, 1.33),
    validations=6,
    precision="bf16",
)
# For small nets with ImageNet weights, whose features suffer at the rate of random ones: on blood cells, after five
# minutes on one core, AP 0.56 at 3e-3, 0.59 at 1e-3, and 0.57 with all of the backbone frozen.
FINETUNE_SMALL = replace(SCRATCH, batch=4, lr=1e-3, base_batch_size=4, freeze=1, layer_decay=0.7)
RECIPES: dict[Recipes, Recipe] = {
    "finetune": FINETUNE,
    "finetune_dense": FINETUNE_DENSE,
    "finetune_small": FINETUNE_SMALL,
    "paper": PAPER,
    "paper_zf": PAPER_ZF,
    "paper_fast": PAPER_FAST,
    "paper_fast_zf": PAPER_FAST_ZF,
    "scratch": SCRATCH,
}


def recipe_name(options: TrainOptions) -> Recipes:
    """The recipe that the options name, or that of the model's name."""
    model = options.model
    if options.recipe is not None:
        return options.recipe
    if "_lite" in model or "_tiny" in model:
        begins = options.weights or options.backbone or (None if "_tiny" in model else model)
        return "scratch" if begins in (None, RANDOM) else "finetune_small"
    if model.endswith(("_vgg16", "_zf")):
        of_zf = model.endswith("_zf")
        if model.startswith("fast_"):
            return "paper_fast_zf" if of_zf else "paper_fast"
        return "paper_zf" if of_zf else "paper"
    return "finetune_dense" if model.startswith("retinanet_") else "finetune"


def epochs_of(options: TrainOptions, recipe: Recipe, images: int) -> int:
    """Passes over so many images: those that the options give, else the recipe's, and at least its `least_updates`."""
    if options.epochs is not None:
        return options.epochs
    steps = steps_per_epoch(images, options.batch or recipe.batch)
    return max(recipe.epochs, ceil(recipe.least_updates * options.accumulate / steps))


def resolve(options: TrainOptions, recipe: Recipe, *, freezable: int, bf16: bool, processes: int = 1) -> Recipe:
    """The recipe with the values of the options, and its learning rate scaled to the images of an update.

    Of the backbone's stages the recipe freezes the first `freezable` at most. `bf16`: whether the device computes
    faster in it. Each of the `processes` takes an equal share of a batch: the recipe's is raised to a multiple of them.
    Raises UsageError where a given one is none.
    """
    if options.batch is not None and options.batch % processes:
        raise UsageError(f"batch is {options.batch}: {processes} processes cannot share it evenly. Choose a multiple.")
    given: dict[str, Any] = {f.name: getattr(options, f.name, None) for f in fields(recipe)}
    given = {name: value for name, value in given.items() if value is not None}
    given.setdefault("batch", -(-recipe.batch // processes) * processes)
    given.setdefault("freeze", min(recipe.freeze, freezable))
    if options.precision == "auto":
        given["precision"] = "bf16" if bf16 else "fp32"
    given.setdefault("precision", recipe.precision if bf16 else "fp32")
    chosen = replace(recipe, **given)
    if options.lr is None:
        chosen = replace(chosen, lr=recipe.lr * chosen.batch * options.accumulate / recipe.base_batch_size)
    return chosen
