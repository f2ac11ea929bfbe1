import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.faster_rcnn import TwoMLPHead as TorchvisionTwoMLPHead
from torchvision.models.resnet import resnet50

from twostage.models.backbones.norm import NormConfig, norm_layer
from twostage.models.heads.bodies import FourConvHead, Res5Head, TwoMLPHead
from twostage.models.heads.box import BoxHead, BoxHeadConfig, StageConfig
from twostage.models.regions.pooling import RegionFeatures
from twostage.weights.fit import channel_last

N, P, C, S, WIDTH = 2, 3, 8, 7, 24


def regions(channels: int = C, size: int = S) -> Tensor:
    """Channels last in memory, as RoIAlign leaves them."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, P, size, size, channels, generator=g).permute(0, 1, 4, 2, 3)


def test_two_layers_are_torchvisions_with_turned_columns() -> None:
    theirs, ours = TorchvisionTwoMLPHead(C * S * S, WIDTH), TwoMLPHead(C, S, WIDTH, dropout=0.0)
    state = theirs.state_dict()
    state["fc6.weight"] = channel_last(state["fc6.weight"], C)
    ours.load_state_dict(state)
    expected = theirs(regions().flatten(0, 1)).unflatten(0, (N, P))
    torch.testing.assert_close(ours(regions()), expected)
    torch.testing.assert_close(ours(regions().contiguous()), expected)


def test_convs_and_layer_are_torchvisions() -> None:
    theirs = FastRCNNConvFCHead((C, S, S), [C] * 4, [WIDTH], norm_layer=nn.BatchNorm2d).eval()
    ours = FourConvHead(C, S, 4, WIDTH, norm_layer(NormConfig("batch"))).eval()
    values = [v for name, v in theirs.state_dict().items()]
    state = dict(zip(ours.state_dict(), values, strict=True))
    state["fc.weight"] = channel_last(state["fc.weight"], C)
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(regions()), theirs(regions().flatten(0, 1)).unflatten(0, (N, P)))


class Pooled(nn.Module):
    """In place of the pooling: fixed features."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, maps: object, boxes: object) -> torch.Tensor:
        return self.features


def test_stage_5_is_resnets_last_and_the_mean() -> None:
    with torch.device("meta"):
        theirs, ours = resnet50().layer4, Res5Head(1024, norm_layer(NormConfig()))
    names = {name for name in theirs.state_dict() if not name.endswith("num_batches_tracked")}
    assert {f"layer4.{name}" for name in names} == set(ours.state_dict())
    out = ours(torch.empty(N, P, 1024, 14, 14, device="meta"))
    assert out.shape == (N, P, Res5Head.channels)


@pytest.mark.parametrize("agnostic", [False, True])
def test_logits_and_deltas_are_torchvisions_less_the_background_row(agnostic: bool) -> None:
    k = 5
    pooled = regions()
    head = BoxHead(BoxHeadConfig(), StageConfig(class_agnostic=agnostic), Pooled(pooled), nn.Flatten(2), C * S * S, k)
    boxes, logits, deltas = head(RegionFeatures([]), torch.zeros(N, P, 4))
    assert boxes.shape == (N, P, 4)
    assert logits.shape == (N, P, k + 1)
    assert deltas.shape == (N, P, 1 if agnostic else k, 4)
    if not agnostic:
        theirs = FastRCNNPredictor(C * S * S, k + 1)
        theirs.cls_score.load_state_dict(head.classes.state_dict())
        theirs.bbox_pred.weight.data[4:] = head.deltas.weight.data
        theirs.bbox_pred.bias.data[4:] = head.deltas.bias.data
        scores, moves = theirs(pooled.flatten(2).flatten(0, 1))
        torch.testing.assert_close(logits.flatten(0, 1), scores)
        torch.testing.assert_close(deltas.flatten(0, 1), moves.view(N * P, k + 1, 4)[:, 1:])


def test_new_layers_begin_as_in_the_paper() -> None:
    """Fast R-CNN, section 2.3: N(0, 0.01) for classes, N(0, 0.001) for boxes, biases 0."""
    head = BoxHead(BoxHeadConfig(), StageConfig(), nn.Identity(), nn.Identity(), 1000, 100)
    assert float(head.classes.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert float(head.deltas.weight.detach().std()) == pytest.approx(0.001, rel=0.02)
    assert not head.classes.bias.any()
    assert not head.deltas.bias.any()


def test_dropout_only_in_training() -> None:
    body = TwoMLPHead(C, S, 4096, dropout=0.5)
    quiet = body.eval()(regions())
    assert torch.equal(quiet, body(regions()))
    dropped = body.train()(regions())
    zeros = float((dropped == 0).float().mean())
    assert zeros == pytest.approx(0.5 + 0.5 * float((quiet == 0).float().mean()), abs=0.05)


@pytest.mark.parametrize("count", [0, 1])
def test_no_regions(count: int) -> None:
    some = regions()[:, :count]
    for body in (TwoMLPHead(C, S, WIDTH, 0.5), FourConvHead(C, S, 2, WIDTH, norm_layer(NormConfig()))):
        assert body(some).shape == (N, count, WIDTH)
