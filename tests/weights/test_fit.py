from collections.abc import Callable

import pytest
import torch
import torchvision
from detectors import fields_of, make_model
from torch import Tensor, nn

from twostage.errors import DataError
from twostage.models.zoo import ZOO
from twostage.weights.fit import Unfilled, as_backbone, load_all, load_fitting, of_deeper_network


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_all_of_it() -> None:
    source, target = net(), net()
    load_all(target, source.state_dict(), "a.safetensors")
    assert torch.equal(source[0].weight, target[0].weight)


def test_counters_may_be_missing_or_too_many() -> None:
    """Old torchvision files have none, frozen models want none."""
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    target = net()
    load_all(target, state | {"7.num_batches_tracked": torch.tensor(3)}, "a.safetensors")
    assert torch.equal(target[0].weight, state["0.weight"])


def change(**changes: Tensor | None) -> dict[str, Tensor]:
    state = net().state_dict() | {k.replace("_", "."): v for k, v in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (change(**{"2_bias": None}), r"they lack 2\.bias\."),
        (change(extra=torch.zeros(1)), r"they have unknown extra\."),
        (
            change(**{"1.bias": None, "1.biased": torch.zeros(1)}),
            r"they lack 1\.bias; they have unknown 1\.biased \(is it 1\.bias\?\)",
        ),
        (change(**{"2_weight": torch.zeros(3, 4)}), r"differ: 2\.weight is \(3, 4\), the model has \(2, 4\)"),
        (
            {},
            r"they lack 0\.weight, 0\.bias, 1\.weight, 1\.bias, 1\.running_mean, 1\.running_var, 2\.weight, 2\.bias\.",
        ),
    ],
    ids=["missing", "unknown", "nearest", "shape", "empty"],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(state: dict, message: str) -> None:
    target = net()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(DataError, match=r"^a\.pth: these weights are not this model's: .*" + message):
        load_all(target, state, "a.pth")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_many_unknown_tensors_are_counted() -> None:
    more = {f"other.{k}": torch.zeros(1) for k in range(45)}
    with pytest.raises(DataError, match=r"they have unknown other\.0, .*other\.39 and 5 more\."):
        load_all(net(), net().state_dict() | more, "a.pth")


def test_what_fits() -> None:
    """From a detector of other classes all but the last layers."""
    source, target = net(), net()
    source[2] = nn.Linear(4, 9)
    loaded, left = load_fitting(target, {**source.state_dict(), "strange": torch.zeros(1)})
    assert left == ["2.weight", "2.bias"]
    assert set(loaded) == {name for name in source.state_dict() if name[0] in "01"}
    assert torch.equal(source[0].weight, target[0].weight)


CLASSIFIERS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("faster_rcnn_vgg16", torchvision.models.vgg16),
    ("faster_rcnn_resnet50_c4", torchvision.models.resnet50),
    ("faster_rcnn_resnet50_dc5", torchvision.models.resnet50),
    ("mask_rcnn_resnet50_c4", torchvision.models.resnet50),
    ("faster_rcnn_resnet18_fpn", torchvision.models.resnet18),
    ("faster_rcnn_resnet34_fpn", torchvision.models.resnet34),
    ("faster_rcnn_resnet50_fpn", torchvision.models.resnet50),
    ("faster_rcnn_resnet50_fpn_v2", torchvision.models.resnet50),
    ("faster_rcnn_resnet101_fpn", torchvision.models.resnet101),
    ("faster_rcnn_mobilenet_v3_large_fpn", torchvision.models.mobilenet_v3_large),
    ("faster_rcnn_mobilenet_v3_large_320_fpn", torchvision.models.mobilenet_v3_large),
]
NEW = ("rpn.", "head.classes.", "head.deltas.", "backbone.laterals.", "backbone.outputs.", "head.body.fc")


# torch makes up a counter for a state dict without versions, and warns that it is none of the meta device's.
@pytest.mark.filterwarnings("ignore:for .*num_batches_tracked")
@pytest.mark.parametrize(("name", "classifier"), CLASSIFIERS, ids=[name for name, _ in CLASSIFIERS])
def test_an_image_net_file_fills_the_whole_backbone(name: str, classifier: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        model, state = make_model(name, 3), classifier().state_dict()
    loaded, left = load_fitting(model, as_backbone(model, state))
    assert all(key.startswith("backbone.") or "c4" in name or "vgg" in name for key in loaded)
    assert all(key.replace("head.box.", "head.").startswith((*NEW, "head.body.convs.", "head.mask.")) for key in left)
    if "vgg" in name:
        assert {key for key in loaded if key.startswith("head.")} == {
            f"head.body.fc{i}.{kind}" for i in (6, 7) for kind in ("weight", "bias")
        }
    if "c4" in name:
        assert not [key for key in left if key.startswith(("head.body.", "head.box.body."))]
        assert any("body.layer4" in key for key in loaded)
        assert not [key for key in loaded if key.startswith("backbone.layer4")]


def test_values_arrive_where_their_names_say() -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    model = make_model("faster_rcnn_resnet18_fpn", 3)
    load_fitting(model, as_backbone(model, state))
    for name in ("conv1.weight", "layer3.1.bn2.running_var", "layer4.0.downsample.0.weight"):
        assert torch.equal(model.state_dict()[f"backbone.body.{name}"], state[name])


def test_vggs_hidden_layer_reads_a_region_as_the_classifier_does() -> None:
    """fc6 of Fast R-CNN is ImageNet's first hidden layer, on a pooled region instead of the pooled image."""
    model = make_model("faster_rcnn_vgg16", 3, head_channels=6, dropout=0.0).eval()
    theirs = nn.Sequential(nn.Linear(512 * 7 * 7, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 6)).eval()
    state = {f"classifier.{name}": tensor for name, tensor in theirs.state_dict().items()}
    loaded, _ = load_fitting(model, as_backbone(model, state))
    assert len(loaded) == 4
    region = torch.rand(1, 2, 512, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(model.head.body(region), theirs(region.flatten(2)).relu())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_model_built_to_be_filled_draws_nothing_and_ends_with_the_files_weights(name: str) -> None:
    full = make_model(name, 3, **fields_of(name, head_channels=8))
    before = torch.get_rng_state()
    with Unfilled():
        model = make_model(name, 3, **fields_of(name, head_channels=8))
    assert torch.equal(torch.get_rng_state(), before)
    load_all(model, full.state_dict(), "file")
    assert all(torch.equal(value, full.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_deeper_network_is_not_taken_for_the_one_that_it_begins_as() -> None:
    """ResNet-34 has every tensor of ResNet-18, and each block after the second belongs elsewhere."""
    model = make_model("faster_rcnn_resnet18_fpn", 1)
    deeper = as_backbone(model, torchvision.models.resnet34().state_dict())
    assert of_deeper_network(deeper, model.state_dict())[:2] == [
        "backbone.body.layer1.2.conv1.weight",
        "backbone.body.layer1.2.conv2.weight",
    ]
    assert not of_deeper_network(as_backbone(model, torchvision.models.resnet18().state_dict()), model.state_dict())


@pytest.mark.parametrize("name", ["faster_rcnn_resnet18_fpn", "faster_rcnn_mobilenet_v3_large_fpn"])
def test_stages_that_a_model_leaves_out_are_no_deeper_network(name: str) -> None:
    model = make_model(name, 1, pyramid="single") if "resnet" in name else make_model(name, 1)
    net = torchvision.models.resnet18() if "resnet" in name else torchvision.models.mobilenet_v3_large()
    assert not of_deeper_network(as_backbone(model, net.state_dict()), model.state_dict())
