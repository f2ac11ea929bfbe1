"""Why one object was missed: the box that came furthest, what ended it, and settings that may have kept it."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.inspection.account import HIT, View
from twostage.inspection.causes import Cause, Change, Miss
from twostage.inspection.fates import Fate, decayed_scores
from twostage.models.config import OneStageConfig, TwoStageConfig
from twostage.models.heads.retinanet import Candidates
from twostage.ops.boxes import iou

_THRESHOLD = "postprocess.score_threshold"
_TRIED = 3  # boxes of an object for which a setting is proposed


def why(view: View, place: int, anchor_iou: float) -> Miss:
    """The cause for the object at this place, from the last step backwards: the first that has boxes of it."""
    box, label = view.objects.boxes[place], int(view.objects.labels[place])
    found = _among_pairs(view, box, label) or _among_regions(view, box, label) or _among_anchors(view, box, label)
    if found is None:
        found = Miss(Cause.NO_PROPOSAL if view.anchors is None else Cause.NO_ANCHOR, {})
    return found._replace(detail={"anchor_iou": anchor_iou, **found.detail})


def _among_pairs(view: View, box: Float[Tensor, "4"], label: int) -> Miss | None:
    """Of boxes of its class above the threshold; those that were counted for other objects come last."""
    pairs, config = view.pairs, view.config
    overlap = iou(view.pair_boxes, box[None])[:, 0]
    hits = (overlap >= HIT) & (pairs.labels == label)
    mine = (hits & (view.owner < 0)).nonzero()[:, 0]
    if not len(mine):
        others = hits.nonzero()[:, 0]
        return Miss(Cause.OTHER_OBJECT, _pair(view, others[0], overlap)) if len(others) else None
    furthest = mine[pairs.fate[mine] == pairs.fate[mine].max()]
    best = furthest[0]  # pairs are in the order of their scores
    detail = _pair(view, best, overlap)
    match Fate(int(pairs.fate[best])):
        case Fate.SMALL:
            sides = pairs.boxes[best][2:] - pairs.boxes[best][:2]
            least = Change("postprocess.min_box_size", _below(float(sides.min())), config.min_box_size)
            return Miss(Cause.TOO_SMALL, detail, (least,))
        case Fate.SUPPRESSED:
            over = iou(pairs.boxes[furthest][:, None], pairs.boxes[pairs.by[furthest]][:, None])[:, 0, 0]
            needed = sorted(_above(float(value)) for value in over)[:_TRIED]
            by = pairs.by[best]
            weakened = decayed_scores(pairs, config)[furthest]
            lower = sorted((_below(float(score)) for score in weakened if score > 0), reverse=True)[:_TRIED]
            detail |= {
                "by_box": view.pair_boxes[by].tolist(),
                "by_label": int(pairs.labels[by]),
                "by_score": _score(view, pairs.scores[by]),
                "by_iou": float(iou(pairs.boxes[best][None], pairs.boxes[by][None])[0, 0]),
            }
            changes = () if config.soft_nms == "off" else _changes(_THRESHOLD, lower, config.score_threshold)
            if config.soft_nms != "gaussian":  # which has no threshold of overlap
                changes += _changes("postprocess.nms", needed, config.nms)
            return Miss(Cause.CLASS_NMS, detail, changes)
        case _:
            rank = int(pairs.rank[furthest].min()) + 1
            more = _changes("postprocess.max_det", [rank], config.max_det)
            return Miss(Cause.BEYOND_MAX_DET, detail | {"rank": rank}, more)


def _pair(view: View, place: Int[Tensor, ""], overlap: Float[Tensor, " c"]) -> dict[str, Any]:
    return {
        "box": view.pair_boxes[place].tolist(),
        "iou": float(overlap[place]),
        "score": _score(view, view.pairs.scores[place]),
        "region": int(view.pairs.regions[place]),
    }


def _score(view: View, score: Float[Tensor, ""]) -> float:
    scored = view.trace.scored
    return float(score.sigmoid() if scored is not None and scored.logits else score)


def _among_regions(view: View, box: Float[Tensor, "4"], label: int) -> Miss | None:
    """Of proposals, and what the head makes of them."""
    if view.one_stage:
        return _among_candidates(view, box, label)
    refined = iou(view.refined(label), box[None])[:, 0]
    hits = (refined >= HIT).nonzero()[:, 0]
    scores = view.scores()
    if len(hits):
        hits = hits[scores[hits, label].argsort(descending=True)]
        region, own = hits[0], scores[hits[0], label]
        detail = {
            "box": view.refined(label)[region].tolist(),
            "iou": float(refined[region]),
            "score": float(own),
            "region": int(region),
        }
        return _judged(view, detail, label, scores[region], _lower(view, scores[hits[:_TRIED], label].tolist()))
    before = iou(view.regions, box[None])[:, 0]
    nearest = int(before.argmax())
    if before[nearest] < HIT:
        return None
    detail = {
        "box": view.regions[nearest].tolist(),
        "iou": float(before[nearest]),
        "refined": view.refined(label)[nearest].tolist(),
        "refined_iou": float(refined[nearest]),
        "region": nearest,
        "score": float(scores[nearest, label]),
    }
    return Miss(Cause.REFINED_AWAY, detail)


def _lower(view: View, scores: list[float]) -> tuple[Change, ...]:
    """Thresholds below these scores."""
    return _changes(_THRESHOLD, [_below(score) for score in scores], view.config.score_threshold)


def _judged(
    view: View, detail: dict[str, Any], label: int, scores: Float[Tensor, " k"], changes: tuple[Change, ...]
) -> Miss:
    """Of a box that is in place but below the threshold: what it was seen as instead."""
    scored = view.trace.scored
    softmax = scored is not None and isinstance(view.trace.config, TwoStageConfig)
    background = max(0.0, 1 - float(scores.sum())) if softmax else 0.5
    other = int(scores.argmax())
    if other != label and float(scores[other]) > background:
        seen = {"seen_as": other, "seen_score": float(scores[other])}
        return Miss(Cause.OTHER_CLASS, detail | seen, changes)
    if float(scores[label]) < background:
        return Miss(Cause.BACKGROUND, detail | ({"seen_score": background} if softmax else {}), changes)
    return Miss(Cause.BELOW_THRESHOLD, detail, changes)


def _among_candidates(view: View, box: Float[Tensor, "4"], label: int) -> Miss | None:
    """Of the candidates of a single stage: of its class, or else of others, as their boxes were ranked too."""
    candidates = view.trace.stages.proposals
    assert isinstance(candidates, Candidates)
    labels, anchors = candidates.labels[0], candidates.anchors[0]
    overlap = iou(view.regions, box[None])[:, 0]
    hits = (overlap >= HIT).nonzero()[:, 0]
    own = hits[labels[hits] == label]
    hits = own if len(own) else hits
    if not len(hits):
        return None
    scores = view.pair_logits[anchors[hits]].sigmoid()
    order = scores[:, label].argsort(descending=True, stable=True)
    best, scores = hits[order[0]], scores[order]
    score = float(scores[0, label])
    detail = {"box": view.regions[best].tolist(), "iou": float(overlap[best]), "score": score, "region": int(best)}
    if len(own):
        return _judged(view, detail, label, scores[0], _lower(view, scores[:_TRIED, label].tolist()))
    changes = _more_candidates(view, anchors[hits].unique(), label)
    if score <= view.config.score_threshold:
        return _judged(view, detail, label, scores[0], changes)
    seen = {"seen_as": int(labels[best]), "seen_score": float(candidates.scores[0, best].sigmoid())}
    return Miss(Cause.OTHER_CLASS, detail | seen, changes)


def _more_candidates(view: View, anchors: Int[Tensor, " h"], label: int) -> tuple[Change, ...]:
    """More candidates of each level, as many as the best of these anchors' pairs with the class need."""
    config = view.trace.config
    assert isinstance(config, OneStageConfig)
    best = anchors[view.pair_logits[anchors, label].argsort(descending=True)][:_TRIED]
    needed = sorted(_rank_of_pair(view, anchor, label)[1] for anchor in best.tolist())
    return _changes("retinanet.top", needed, config.retinanet.top)


def _rank_of_pair(view: View, anchor: int, label: int) -> tuple[int, int]:
    """Of a single stage the level of an anchor, and the rank of its pair with a class there, from 1."""
    predictions = view.trace.stages.anchors
    assert predictions is not None
    ends = torch.tensor([len(level) for level in predictions.anchors]).cumsum(dim=0)
    level = int(torch.searchsorted(ends, anchor, right=True))
    first = int(ends[level - 1]) if level else 0
    pairs, place = view.pair_logits[first : ends[level]].flatten(), (anchor - first) * view.pair_logits.shape[1] + label
    ahead = int((pairs > pairs[place]).sum() + (pairs[:place] == pairs[place]).sum())
    return level, ahead + 1


def _among_anchors(view: View, box: Float[Tensor, "4"], label: int) -> Miss | None:
    """Of decoded anchors."""
    if view.decoded is None:
        return None
    overlap = iou(view.decoded, box[None])[:, 0]
    if view.one_stage:
        return _unranked_pairs(view, overlap, label)
    fates, config = view.trace.anchors, view.trace.config
    assert fates is not None
    assert isinstance(config, TwoStageConfig)
    assert config.rpn is not None
    rpn, proposals = config.rpn, config.proposals
    hits = ((overlap >= HIT) & (fates.fate > Fate.OUTSIDE)).nonzero()[:, 0]
    if not len(hits):
        return None
    furthest = hits[fates.fate[hits] == fates.fate[hits].max()]
    furthest = furthest[fates.scores[furthest].argsort(descending=True)]
    best = furthest[0]
    detail = {
        "box": view.decoded[best].tolist(),
        "iou": float(overlap[best]),
        "score": _objectness(fates.scores[best]),
        "level": int(fates.level[best]),
        "rank": int(fates.rank[best]) + 1,
        "anchor": int(best),
    }
    match Fate(int(fates.fate[best])):
        case Fate.LOW:
            needed = sorted((fates.rank[furthest] + 1).tolist())[:_TRIED]
            return Miss(Cause.BELOW_TOP_K, detail, _changes("rpn.top_test", needed, rpn.top_test))
        case Fate.SMALL:
            sides = fates.boxes[best][2:] - fates.boxes[best][:2]
            return Miss(Cause.TOO_SMALL, detail, (Change("rpn.min_size", _below(float(sides.min())), rpn.min_size),))
        case Fate.SUPPRESSED:
            over = iou(fates.boxes[furthest][:, None], fates.boxes[fates.by[furthest]][:, None])[:, 0, 0]
            needed = sorted(_above(float(value)) for value in over)[:_TRIED]
            by = fates.by[best]
            detail |= {
                "by_box": view.decoded[by].tolist(),
                "by_score": _objectness(fates.scores[by]),
                "by_iou": float(iou(fates.boxes[best][None], fates.boxes[by][None])[0, 0]),
            }
            return Miss(Cause.RPN_NMS, detail, _changes("rpn.nms", needed, rpn.nms))
        case _:
            ahead = _ahead(fates.scores, fates.fate >= Fate.CUT, best)
            return Miss(
                Cause.BELOW_TOP_N,
                detail | {"rank": ahead + 1},
                _changes("proposals.keep_test", [ahead + 1], proposals.keep_test),
            )


def _objectness(logit: Float[Tensor, ""]) -> float:
    """The probability of an anchor; 0 where it is no number."""
    return float(logit.sigmoid().nan_to_num(0.0))


def _unranked_pairs(view: View, overlap: Float[Tensor, " a"], label: int) -> Miss | None:
    """Of a single stage: the anchors' boxes, none of which is a candidate of any class."""
    logits = view.pair_logits[:, label]
    hits = ((overlap >= HIT) & (logits > -torch.inf)).nonzero()[:, 0]
    if not len(hits):
        return None
    best = int(hits[logits[hits].argmax()])
    level, rank = _rank_of_pair(view, best, label)
    detail = {
        "box": view.decoded[best].tolist(),  # type: ignore[index]
        "iou": float(overlap[best]),
        "score": float(logits[best].sigmoid()),
        "level": level,
        "rank": rank,
        "anchor": best,
    }
    return Miss(Cause.BELOW_TOP_K, detail, _more_candidates(view, hits, label))


def _ahead(scores: Float[Tensor, " a"], among: Bool[Tensor, " a"], place: Int[Tensor, ""]) -> int:
    return int((among & (scores > scores[place])).sum())


def _changes(field: str, values: list[Any], now: float) -> tuple[Change, ...]:
    return tuple(Change(field, value, now) for value in values)


def _above(value: float) -> float:
    """The next number of three decimals that is not below."""
    return min(1.0, math.floor(value * 1000 + 1) / 1000)


def _below(value: float) -> float:
    """The next lower number of four decimals, or a little less than a smaller one."""
    rounded = math.ceil(value * 1e4 - 1) / 1e4
    return rounded if rounded > 0 else value * 0.99
