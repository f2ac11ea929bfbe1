from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from twostage.data.batch import Targets
from twostage.models.configure import configure
from twostage.models.proposals.rpn import RPN, AnchorPredictions
from twostage.models.zoo import named
from twostage.ops.boxes import gather_boxes, iou
from twostage.ops.deltas import BoxCoder

CHANNELS = 16
STRIDES = (4, 8, 16)
SIZES = [(96, 128), (80, 100)]
CANVAS = (96, 128)
CONFIG = configure(
    named("faster_rcnn_resnet50_fpn"),
    {
        "anchor_sizes": [[8, 16], [32, 48], [64, 96]],
        "rpn_top_train": 400,
        "rpn_top_test": 200,
        "rpn_keep_train": 150,
        "rpn_keep_test": 60,
        "rpn_batch": 64,
    },
)


def spread(rpn: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough for scores and boxes to differ from each other."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in rpn.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.08)
    return rpn


def maps(batch: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(batch, CHANNELS, CANVAS[0] // s, CANVAS[1] // s, generator=g) for s in STRIDES]


def ours(**changes) -> RPN:
    config = configure(CONFIG, changes)
    return spread(RPN(config.rpn, config.anchors, config.proposals, CHANNELS, STRIDES))


def torchvisions(rpn: RPN) -> RegionProposalNetwork:
    """torchvision's network with the weights and the configuration of ours."""
    config, keeps = rpn.config, rpn.proposals
    top = config.top_train if rpn.training else config.top_test
    keep = keeps.keep_train if rpn.training else keeps.keep_test
    generator = AnchorGenerator(CONFIG.anchors.sizes, (CONFIG.anchors.ratios,) * len(STRIDES))
    theirs = RegionProposalNetwork(
        generator,
        RPNHead(CHANNELS, generator.num_anchors_per_location()[0], conv_depth=config.convs),
        fg_iou_thresh=config.positive_iou,
        bg_iou_thresh=config.negative_iou,
        batch_size_per_image=config.batch,
        positive_fraction=config.positive_fraction,
        pre_nms_top_n=dict.fromkeys(("training", "testing"), top),
        post_nms_top_n=dict.fromkeys(("training", "testing"), keep),
        nms_thresh=config.nms,
        score_thresh=config.score_threshold,
    )
    for target, source in zip(theirs.parameters(), rpn.parameters(), strict=True):
        target.data.copy_(source.data)
    theirs.min_size = config.min_size
    return theirs.train(rpn.training)


def images() -> ImageList:
    return ImageList(torch.zeros(2, 3, *CANVAS), SIZES)


def as_dicts(targets: Targets) -> list[dict[str, Tensor]]:
    return [{"boxes": targets.boxes[i][targets.valid[i]]} for i in range(len(targets.boxes))]


def predictions_of(rpn: RPN) -> AnchorPredictions:
    return rpn(maps(), CANVAS, torch.tensor(SIZES))


# --- proposals


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rpn_convs": 2},
        {"rpn_score_threshold": 0.5},
        {"rpn_min_size": 20.0},
        {"rpn_nms": 0.3},
        {"rpn_top_test": 5000},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_proposals_equal_torchvisions(changes: dict, training: bool) -> None:
    rpn = ours(**changes).train(training)
    theirs = torchvisions(rpn).eval()  # in training mode it would want targets; its numbers are those of ours
    expected, _ = theirs(images(), {str(i): m for i, m in enumerate(maps())})
    proposals = rpn.propose(predictions_of(rpn), torch.tensor(SIZES))
    for boxes, valid, wanted in zip(proposals.boxes, proposals.valid, expected, strict=True):
        assert len(wanted) > 5
        torch.testing.assert_close(boxes[valid], wanted, rtol=0, atol=1e-4)


def test_shapes_are_fixed() -> None:
    """For levels with few anchors, and any number of proposals left by NMS."""
    rpn = ours(rpn_keep_test=777, rpn_top_test=3000, rpn_nms=0.01).eval()
    proposals = rpn.propose(predictions_of(rpn), torch.tensor(SIZES))
    assert proposals.boxes.shape == (2, 777, 4)
    assert proposals.scores.shape == proposals.anchors.shape == proposals.valid.shape == (2, 777)
    assert 0 < proposals.valid.sum() < 2 * 777


def test_every_proposal_has_the_index_of_its_anchor() -> None:
    rpn = ours().eval()
    predictions = predictions_of(rpn)
    proposals = rpn.propose(predictions, torch.tensor(SIZES))
    logits, anchors, deltas = (
        torch.cat(predictions.logits, 1),
        torch.cat(predictions.anchors),
        torch.cat(predictions.deltas, 1),
    )
    for i in range(2):
        index = proposals.anchors[i][proposals.valid[i]]
        assert len(index.unique()) == len(index)
        assert torch.equal(logits[i, index], proposals.scores[i][proposals.valid[i]])
        # Where clipping changed nothing, box and anchor give back the deltas.
        boxes = proposals.boxes[i][proposals.valid[i]]
        free = ((boxes > 0) & (boxes < torch.tensor(SIZES[i]).flip(0).repeat(2))).all(dim=1)
        assert free.any()
        expected = deltas[i, index][free]
        torch.testing.assert_close(BoxCoder().encode(boxes[free], anchors[index][free]), expected, rtol=1e-4, atol=1e-4)


def test_proposals_lie_on_their_image_best_first() -> None:
    rpn = ours().eval()
    proposals = rpn.propose(predictions_of(rpn), torch.tensor(SIZES))
    for i, (height, width) in enumerate(SIZES):
        boxes = proposals.boxes[i][proposals.valid[i]]
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert proposals.scores[i][proposals.valid[i]].diff().le(0).all()


def test_in_padding_false_keeps_proposals_out_of_padding() -> None:
    rpn = ours(anchors_in_padding=False).eval()
    predictions = predictions_of(rpn)
    proposals = rpn.propose(predictions, torch.tensor(SIZES))
    inside = torch.cat(predictions.inside, dim=1)
    assert not inside[1].all()
    assert inside.gather(1, proposals.anchors)[proposals.valid].all()
    with_padding = ours().eval().propose(predictions_of(ours()), torch.tensor(SIZES))
    assert not inside.gather(1, with_padding.anchors)[with_padding.valid].all()


def test_softmax_of_two_is_the_sigmoid_of_their_difference() -> None:
    """2k outputs, background and object in turn for each anchor (Faster R-CNN, section 3.1.1)."""
    rpn = ours(rpn_objectness="softmax")
    assert rpn.objectness.out_channels == 2 * 6
    features = maps()
    scores = rpn.objectness(torch.relu(rpn.convs[0](features[2])))
    pairs = scores.permute(0, 2, 3, 1).reshape(2, -1, 2).softmax(dim=2)[..., 1]
    predictions = rpn(features, CANVAS, torch.tensor(SIZES))
    torch.testing.assert_close(predictions.logits[2].sigmoid(), pairs)


def test_gradients_do_not_flow_through_proposals() -> None:
    rpn = ours()
    proposals = rpn.propose(predictions_of(rpn), torch.tensor(SIZES))
    assert not proposals.boxes.requires_grad
    assert not proposals.scores.requires_grad


# --- losses


@pytest.mark.parametrize("counts", [[4, 7], [0, 3], [0, 0], [40, 1]])
def test_losses_equal_torchvisions(counts: list[int], make_targets: Callable[..., Targets], every_first: type) -> None:
    rpn, targets = ours(), make_targets(SIZES, counts)
    sampler = every_first(64, 0.5)
    theirs = torchvisions(rpn).train()
    theirs.fg_bg_sampler = sampler.for_torchvision
    _, expected = theirs(images(), {str(i): m for i, m in enumerate(maps())}, as_dicts(targets))
    losses = rpn.losses(predictions_of(rpn), torch.tensor(SIZES), targets, sampler)
    torch.testing.assert_close(losses["rpn_class"], expected["loss_objectness"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["rpn_box"], expected["loss_rpn_box_reg"], rtol=1e-5, atol=1e-6)
    assert (losses["rpn_box"] > 0) == (sum(counts) > 0)


@pytest.mark.parametrize("anew", [False, True])
def test_gradients_equal_torchvisions(anew: bool, make_targets: Callable[..., Targets], every_first: type) -> None:
    """Also where the sampled anchors are predicted anew, each from its window of the maps."""
    rpn, targets, sampler = ours(), make_targets(SIZES, [4, 7]), every_first(64, 0.5)
    theirs = torchvisions(rpn).train()
    theirs.fg_bg_sampler = sampler.for_torchvision
    sum(theirs(images(), {str(i): m for i, m in enumerate(maps())}, as_dicts(targets))[1].values()).backward()
    with torch.set_grad_enabled(not anew):
        predictions = predictions_of(rpn)
    if anew:
        predictions = predictions._replace(maps=maps())
    losses = rpn.losses(predictions, torch.tensor(SIZES), targets, sampler)
    sum(losses.values()).backward()
    for mine, other in zip(rpn.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objectness", ["sigmoid", "softmax"])
def test_sampled_anchors_are_predicted_as_among_all(objectness: str) -> None:
    rpn = ours(rpn_objectness=objectness)
    every = predictions_of(rpn)
    index = torch.randint(sum(x.shape[1] for x in every.logits), (2, 50), generator=torch.Generator().manual_seed(0))
    logits, deltas = rpn.predict_at(maps(), index)
    torch.testing.assert_close(logits, torch.cat(every.logits, dim=1).gather(1, index))
    torch.testing.assert_close(deltas, gather_boxes(torch.cat(every.deltas, dim=1), index))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"rpn_batch": 1000}, False), ({"rpn_convs": 2}, False), ({"proposal_gradient": True}, False)],
)
def test_few_samples_are_worth_predicting_anew(changes: dict, expected: bool) -> None:
    """1008 positions; not where other gradients reach all of them."""
    assert ours(**changes).samples_few(maps()) == expected


def test_hooks_see_what_the_loss_reads() -> None:
    """A layer that is looked at, or is another module, is computed at every position."""
    assert ours().samples_few(maps())
    for hooked in ("convs.0", "objectness", "deltas", ""):
        rpn = ours()
        rpn.get_submodule(hooked).register_forward_hook(lambda *_: None)
        assert not rpn.samples_few(maps())
    rpn = ours()
    rpn.convs[0] = nn.Sequential(rpn.convs[0], nn.Identity())
    assert not rpn.samples_few(maps())


@pytest.mark.parametrize("bf16", [False, True])
def test_every_parameter_learns_where_anchors_are_predicted_anew(
    bf16: bool, make_targets: Callable[..., Targets]
) -> None:
    """Autocast may not reuse the copies of weights that it made without a gradient."""
    rpn, features = ours().train(), [x.requires_grad_() for x in maps()]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        predictions = rpn.predict(features, CANVAS, torch.tensor(SIZES))
        losses = rpn.losses(predictions, torch.tensor(SIZES), make_targets(SIZES, [4, 7]))
        dense = rpn.losses(rpn(features, CANVAS, torch.tensor(SIZES)), torch.tensor(SIZES), make_targets(SIZES, [4, 7]))
    assert not any(x.requires_grad for x in predictions.logits)
    learning = [*rpn.parameters(), *features]
    gradients = (torch.autograd.grad(sum(each.values()), learning) for each in (losses, dense))
    for mine, other in zip(*gradients, strict=True):
        assert (mine - other).abs().max() <= (0.05 if bf16 else 1e-4) * other.abs().max()


def test_predictions_outside_of_training_keep_their_gradient() -> None:
    assert not ours().eval().predict(maps(), CANVAS, torch.tensor(SIZES)).maps
    with torch.no_grad():
        assert not ours().train().predict(maps(), CANVAS, torch.tensor(SIZES)).maps


def test_the_papers_normalisers(make_targets: Callable[..., Targets], every_first: type) -> None:
    """Equation 1: sum / N_cls + lambda * sum / N_reg, with N_cls 256 and N_reg the map's positions; mean of images."""
    targets, sampler = make_targets(SIZES, [4, 7]), every_first(64, 0.5)
    plain = ours()
    paper = ours(rpn_class_normaliser=256, rpn_box_normaliser="locations", rpn_lambda=10)
    sizes = torch.tensor(SIZES)
    sampled = plain.losses(predictions_of(plain), sizes, targets, sampler)
    normalised = paper.losses(predictions_of(paper), sizes, targets, sampler)
    count = 2 * 64  # what torchvision's mean divides by
    locations = sum((CANVAS[0] // s) * (CANVAS[1] // s) for s in STRIDES)
    torch.testing.assert_close(normalised["rpn_class"], sampled["rpn_class"] * count / (256 * 2))
    torch.testing.assert_close(normalised["rpn_box"], sampled["rpn_box"] * count * 10 / (locations * 2))


def test_locations_are_counted_on_each_image_not_on_the_canvas(make_targets: Callable[..., Targets]) -> None:
    """An image's loss is the same alone and beside a larger one."""
    changes = {"rpn_box_normaliser": "locations", "anchors_in_padding": False, "rpn_class_normaliser": 256}
    rpn = ours(**changes, rpn_batch=10_000)
    targets = make_targets(SIZES, [3, 3])
    sizes = torch.tensor(SIZES)
    predictions = rpn(maps(), CANVAS, sizes)
    both = rpn.losses(predictions, sizes, targets)
    inside = torch.cat(predictions.inside, dim=1)
    assert int(inside[1].sum()) == 6 * sum(-(-80 // s) * -(-100 // s) for s in STRIDES)
    each = []
    for i in range(2):
        one = AnchorPredictions(
            [x[i : i + 1] for x in predictions.logits],
            [x[i : i + 1] for x in predictions.deltas],
            predictions.anchors,
            [],
        )
        one = one._replace(inside=[x[i : i + 1] for x in predictions.inside])
        own = Targets(*(getattr(targets, n)[i : i + 1] for n in ("boxes", "labels", "valid", "seeds")))
        each.append(rpn.losses(one, sizes[i : i + 1], own))
    for name, value in both.items():
        torch.testing.assert_close(value, (each[0][name] + each[1][name]) / 2)


def test_cross_boundary_anchors_stay_out_of_training(make_targets: Callable[..., Targets]) -> None:
    """Section 3.1.3; at the border of each image, not of the canvas."""
    seen = []

    def record(matches: Tensor, seeds: Tensor):
        seen.append(matches)
        return rpn.sampler(matches, seeds)

    rpn = ours(rpn_cross_boundary=False)
    predictions = predictions_of(rpn)
    rpn.losses(predictions, torch.tensor(SIZES), make_targets(SIZES, [3, 3]), record)
    x1, y1, x2, y2 = torch.cat(predictions.anchors).unbind(1)
    for matches, (height, width) in zip(seen[0], SIZES, strict=True):
        within = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
        assert (matches[~within] == -2).all()
        assert (matches[within] != -2).any()


def test_only_boxes_with_an_object_move(make_targets: Callable[..., Targets]) -> None:
    """p* L_reg of equation 1: negatives give the deltas no gradient."""
    rpn = ours()
    predictions = predictions_of(rpn)
    for deltas in predictions.deltas:
        deltas.retain_grad()
    targets = make_targets(SIZES, [2, 2])
    rpn.losses(predictions, torch.tensor(SIZES), targets)["rpn_box"].backward()
    gradient = torch.cat([d.grad for d in predictions.deltas], dim=1)
    moved = gradient.abs().sum(dim=2) > 0
    overlap = iou(targets.boxes, torch.cat(predictions.anchors).expand(2, -1, -1)).amax(dim=1)
    assert moved.any(dim=1).all()
    assert overlap[moved].min() > 0.3
