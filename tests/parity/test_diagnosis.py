"""Faults that are planted are named: the issue's ten, and the other conventions."""

import pytest
import torch

from twostage.models.configure import configure
from twostage.models.zoo import ZOO
from twostage.parity.agreement import FLOAT32
from twostage.parity.conventions import Convention, conventions
from twostage.parity.diagnosis import compare, diagnose
from twostage.parity.divergence import first_difference, first_divergence
from twostage.parity.variants import Pixels, Variant, detect

# What is planted, and where two models first differ.
FAULTS = {
    "channels swapped": "image.normalised",
    "first convolution swapped": "backbone.body.conv1",
    "roi.aligned": "head.regions",
    "roi.sampling_ratio": "head.regions",
    "anchors of ratios reversed": "objectness.level0",
    "background first": "head.classes",
    "background last": "head.classes",
    "backbone.stride_in_1x1": "backbone.body.layer2.0.conv1",
    "backbone.norm.eps": "backbone.body.layer1.0.bn1",
    "box_head.delta_clamp_two_sided and rpn.delta_clamp_two_sided": "proposals.boxes",
    "image.resize_by": "image.resized",
    "regions flattened channel first": "head.body.fc6",
    "deltas in the order y, x": "deltas.level0",
    "stage.delta_weights": "detections.boxes",
}


def named(variant: Variant, name: str) -> Convention:
    """The last of this name: eps 1e-3 and no more points than one."""
    return [each for each in conventions(variant) if each.name == name][-1]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(variant: Variant, photos: list[Pixels], name: str) -> None:
    planted = named(variant, name)
    if "clamp" in name:  # with deltas so large that the clamp cuts some
        state = {key: 60 * x if key.startswith("rpn.deltas") else x for key, x in variant.state.items()}
        variant = variant._replace(state=state)
    faulty = planted.change(variant).build()
    expected = detect(faulty, photos[:1])
    found = diagnose(variant, photos[:1], expected)
    assert [each.says for each in found.found] == [planted.says]
    assert not found.before.same()
    assert found.after.same()
    place = first_divergence(faulty, variant.build(), photos[0])
    assert place is not None
    assert place.place == FAULTS[name]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_side_without_finite_values_is_a_difference(value: float) -> None:
    """As of a file with a tensor of NaN, whose detections are then none."""
    trace = {"image": torch.arange(3.0), "maps.level0": torch.arange(3.0), "detections.scores": torch.zeros(0)}
    other = {**trace, "maps.level0": torch.tensor([0.0, value, 2.0])}
    for sides in ((trace, other), (other, trace)):
        place = first_difference(*sides)
        assert place is not None
        assert place.place == "maps.level0"
    assert first_difference(other, other) is None


def test_two_faults_are_both_named(variant: Variant, photos: list[Pixels]) -> None:
    planted = [named(variant, "roi.aligned"), named(variant, "postprocess.nms")]
    faulty = planted[1].change(planted[0].change(variant)).build()
    found = diagnose(variant, photos[:1], detect(faulty, photos[:1]))
    assert {each.name for each in found.found} == {"roi.aligned", "postprocess.nms"}
    assert found.after.same()


def test_a_fault_of_masks_alone_is_named(mask_variant: Variant, photos: list[Pixels]) -> None:
    """Boxes are equal to the last bit, and only masks are not."""
    planted = named(mask_variant, "mask.paste")
    expected = detect(planted.change(mask_variant).build(), photos[:1])
    found = diagnose(mask_variant, photos[:1], expected)
    assert not found.before.same()
    assert [each.name for each in found.found] == ["mask.paste"]
    assert found.after.same()


def test_the_search_is_in_an_image_that_differs(variant: Variant, photos: list[Pixels]) -> None:
    """Only the last has a side whose half pixel is rounded in two ways."""
    own = variant._replace(config=configure(variant.config, {"size": 70, "max_size": 200}))
    planted = named(own, "image.rounding")
    other = planted.change(own)
    shapes = [[each.config.image.resizing.shape(*photo.shape[:2]) for photo in photos] for each in (own, other)]
    assert [a == b for a, b in zip(*shapes, strict=True)] == [True, True, False]
    found = diagnose(own, photos, detect(other.build(), photos))
    assert not found.before.same()
    assert [each.name for each in found.found] == ["image.rounding"]
    assert found.after.same()


def test_equal_sides_have_no_fault(variant: Variant, photos: list[Pixels]) -> None:
    model = variant.build()
    expected = detect(model, photos, batch=3)
    assert compare(model, photos, expected, FLOAT32, batch=3).same()
    assert first_divergence(model, variant.build(), photos[0]) is None


@pytest.mark.parametrize("name", ZOO)
def test_every_model_has_conventions_that_change_it(name: str) -> None:
    own = Variant(ZOO[name], {"first": torch.zeros(2, 3, 1, 1)}, 5)
    found = conventions(own)
    assert len({(each.name, each.says) for each in found}) == len(found) > 10
    assert all(each.change(own) != own for each in found if each.name.startswith(("image.", "postprocess.")))
