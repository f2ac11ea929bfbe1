import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from twostage.errors import UsageError
from twostage.models.proposals.anchors import AnchorConfig, Anchors
from twostage.models.zoo import named

RATIOS = (0.5, 1.0, 2.0)


def maps(*shapes: tuple[int, int]) -> list[Tensor]:
    return [torch.empty(1, 1, *shape) for shape in shapes]


def boxes_of(config: AnchorConfig, shape: tuple[int, int], stride: int) -> Tensor:
    """The anchors of one level on a map of this shape."""
    canvas = (shape[0] * stride, shape[1] * stride)
    (boxes,), _ = Anchors(config, (stride,))(maps(shape), canvas, torch.tensor([canvas]))
    return boxes


def one_level(sizes: tuple[float, ...], ratios: tuple[float, ...] = RATIOS, **fields) -> AnchorConfig:
    return AnchorConfig((tuple(map(float, sizes)),), ratios, **fields)


# --- counts


@pytest.mark.parametrize(
    ("image", "shape", "count"),
    [((600, 800), (38, 50), 17100), ((800, 800), (50, 50), 22500), ((224, 224), (14, 14), 1764)],
)
def test_papers_count(image: tuple[int, int], shape: tuple[int, int], count: int) -> None:
    """Faster R-CNN, section 3.1.1: nine anchors at every position of VGG's map."""
    (boxes,), (inside,) = Anchors(named("faster_rcnn_vgg16").anchors, (16,))(maps(shape), image, torch.tensor([image]))
    assert boxes.shape == (count, 4)
    assert inside.shape == (1, count)
    assert inside.all()


def test_sides_follow_size_and_ratio() -> None:
    boxes = boxes_of(one_level((30.0, 70.0), (0.25, 1.0, 3.0), rounding="none"), (1, 1), 8)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert torch.allclose(width * height, torch.tensor([900.0, 4900.0]).repeat(3))
    assert torch.allclose(height / width, torch.tensor([0.25, 1.0, 3.0]).repeat_interleave(2))


# --- literal anchors of other projects


def test_py_faster_rcnns_nine() -> None:
    """`lib/rpn/generate_anchors.py`, whose comment lists them counted from 1 with the last pixel included."""
    nine = [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]
    config = one_level((128, 256, 512), rounding="caffe", offset=8.0)
    from_one = torch.tensor([1, 1, 0, 0])
    assert torch.equal(boxes_of(config, (1, 1), 16) + from_one, torch.tensor(nine, dtype=torch.float32))


def test_chainercvs_nine() -> None:
    """`test_generate_anchor_base.py`: centred in a cell of 16, not rounded (there in the order y, x)."""
    nine = [
        [-120, -24, 136, 40],
        [-248, -56, 264, 72],
        [-504, -120, 520, 136],
        [-56, -56, 72, 72],
        [-120, -120, 136, 136],
        [-248, -248, 264, 264],
        [-24, -120, 40, 136],
        [-56, -248, 72, 264],
        [-120, -504, 136, 520],
    ]
    config = one_level((128, 256, 512), (0.25, 1.0, 4.0), rounding="none", offset=8.0)
    assert torch.equal(boxes_of(config, (1, 1), 16), torch.tensor(nine, dtype=torch.float32))


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_detectron2s_twelve(offset: float) -> None:
    """`test_anchor_generator.py`, at offset 0 and at half the stride; there sizes are outer and ratios inner."""
    at_corner = torch.tensor(
        [
            [-32, -8, 32, 8],
            [-16, -16, 16, 16],
            [-8, -32, 8, 32],
            [-64, -16, 64, 16],
            [-32, -32, 32, 32],
            [-16, -64, 16, 64],
            [-28, -8, 36, 8],
            [-12, -16, 20, 16],
            [-4, -32, 12, 32],
            [-60, -16, 68, 16],
            [-28, -32, 36, 32],
            [-12, -64, 20, 64],
        ],
        dtype=torch.float32,
    )
    config = one_level((32, 64), (0.25, 1.0, 4.0), rounding="none", offset=offset)
    ours = boxes_of(config, (1, 2), 4).view(2, 3, 2, 4).transpose(1, 2).reshape(-1, 4)
    assert torch.equal(ours, at_corner + offset)


@pytest.mark.parametrize(
    ("size", "stride", "side"),
    [(10, 5, 3), (10, 10, 2)],
    ids=["torchvision test_anchor_generator", "mmdetection test_strides"],
)
def test_one_anchor_on_a_small_map(size: int, stride: int, side: int) -> None:
    """Both suites list x1 = -5, -5 + stride, ... row by row."""
    expected = [
        [-5 + x * stride, -5 + y * stride, 5 + x * stride, 5 + y * stride] for y in range(side) for x in range(side)
    ]
    boxes = boxes_of(one_level((size,), (1.0,)), (side, side), stride)
    assert boxes.tolist() == expected


# --- torchvision as the oracle


@pytest.mark.parametrize("canvas", [(800, 1088), (320, 480), (416, 608), (330, 470)])
@pytest.mark.parametrize("sizes", [((32,), (64,), (128,), (256,), (512,)), ((32, 64, 128, 256, 512),) * 3])
def test_equal_to_torchvision(canvas: tuple[int, int], sizes: tuple[tuple[int, ...], ...]) -> None:
    """The stride too: the canvas divided by the map, which is not a power of two for every canvas."""
    strides = (4, 8, 16, 32, 64)[-len(sizes) :]
    features = maps(*((-(-canvas[0] // s), -(-canvas[1] // s)) for s in strides))
    oracle = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    expected = oracle(ImageList(torch.empty(1, 3, *canvas), [canvas]), features)[0]
    boxes, _ = Anchors(AnchorConfig(sizes), strides)(features, canvas, torch.tensor([canvas]))
    assert torch.equal(torch.cat(boxes), expected)


def test_a_canvas_that_is_no_multiple_of_the_stride_shrinks_torchvisions_step() -> None:
    config = one_level((32,), (1.0,))
    canvas, features = (90, 90), maps((6, 6))
    (canvas_way,), _ = Anchors(config, (16,))(features, canvas, torch.tensor([canvas]))
    fixed = one_level((32,), (1.0,), stride="fixed")
    (fixed_way,), _ = Anchors(fixed, (16,))(features, canvas, torch.tensor([canvas]))
    assert (canvas_way[1] - canvas_way[0]).tolist() == [15, 0, 15, 0]
    assert (fixed_way[1] - fixed_way[0]).tolist() == [16, 0, 16, 0]


# --- padding


def test_anchors_in_padding_are_marked() -> None:
    """A 33 x 40 image on a 64 x 64 canvas has 3 x 3 cells of its own on a map of stride 16."""
    config = one_level((32,), RATIOS, in_padding=False)
    sizes = torch.tensor([[33, 40], [64, 64]])
    _, (inside,) = Anchors(config, (16,))([torch.empty(2, 1, 4, 4)], (64, 64), sizes)
    assert inside[0].view(4, 4, 3)[:3, :3].all()
    assert inside[0].sum() == 27
    assert inside[1].all()


def test_anchors_in_padding_count_by_default() -> None:
    _, (inside,) = Anchors(one_level((32,)), (16,))(maps((4, 4)), (64, 64), torch.tensor([[33, 40]]))
    assert inside.all()


# --- fields that do not fit the model


def test_a_pyramid_of_another_height_is_refused() -> None:
    with pytest.raises(UsageError, match=r"anchor_sizes.* 5 levels"):
        Anchors(AnchorConfig(sizes=((32.0,), (64.0,))), (4, 8, 16, 32, 64))


def test_levels_must_have_equally_many_anchors() -> None:
    """One head slides over all levels, so that its outputs have one number of channels."""
    with pytest.raises(UsageError, match="anchor_sizes"):
        Anchors(AnchorConfig(sizes=((32.0,), (64.0, 128.0))), (4, 8))
