// From a detection to its region, its proposal and its anchor, and back: what a selection holds at each step.

/**
 * @typedef {{pair?: number, region?: number, candidate?: number, anchor?: number, truth?: number}} Chain
 * The same object at every step, as far as it is known. `candidate` is a ranked anchor; of a single stage regions are
 * the candidates.
 */

/** The steps of a chain from the end of the detector to its begin, as far as the detector has them. */
const STEPS = ["truth", "pair", "region", "proposal", "anchor"];

/** The chain of a box, and forwards what became of it. */
function chainOf(data, live, kind, index) {
  if (kind === "truth") return { truth: index };
  const chain = { [kind === "proposal" ? "region" : kind]: index };
  if (kind === "pair") chain.region = data.pairs.regions[index];
  if (kind === "candidate") chain.anchor = data.anchors.ranked.anchors[index];
  if (chain.anchor !== undefined) {
    const region = data.regions.ofAnchor.get(chain.anchor);
    if (region !== undefined) chain.region = region;
  } else if (data.anchors && chain.region !== undefined) chain.anchor = data.regions.anchors[chain.region];
  const candidate = data.anchors?.ranked?.ofAnchor.get(chain.anchor);
  if (candidate !== undefined) chain.candidate = candidate;
  if (chain.pair === undefined && chain.region !== undefined) {
    const [best] = pairsOf(data, live, chain.region);
    if (best !== undefined) chain.pair = best;
  }
  return chain;
}

/** The pairs of a region above the threshold, those kept first. */
function pairsOf(data, live, region) {
  const own = live.last.above.filter((i) => data.pairs.regions[i] === region);
  return own.sort((i, j) => live.last.fate[j] - live.last.fate[i] || data.pairs.scores[j] - data.pairs.scores[i]);
}

/** The steps that a chain has, nearest to the detections first. */
function stepsOf(data, chain) {
  return STEPS.filter((step) => {
    if (step === "proposal") return chain.region !== undefined && !data.oneStage;
    return chain[step] !== undefined;
  });
}

/** The stage at which a step of a chain is seen. */
function stageOf(data, live, stages, chain, step) {
  const find = (id) => stages.findIndex((stage) => stage.id === id);
  switch (step) {
    case "pair":
      return find(live.last.fate[chain.pair] === FATE.KEPT ? "detections" : "class-nms");
    case "region":
      return data.oneStage ? find("decoded") : find(`refined-${data.regions.refined.length}`);
    case "proposal":
      return find("proposals");
    case "anchor":
      return find(chain.candidate === undefined && !data.oneStage ? "objectness" : "top");
    default:
      return -1;
  }
}

/** The step of a chain that a stage shows, or null where it has no box there. */
function stepAt(data, stage, chain) {
  const has = stepsOf(data, chain);
  const wanted = {
    objectness: ["anchor"], top: ["anchor"], decoded: data.oneStage ? ["region"] : ["anchor"], "rpn-nms": ["anchor"],
    proposals: ["proposal"], above: ["pair"], "class-nms": ["pair"], detections: ["pair"], masks: ["pair"],
  }[stage.id] ?? (stage.number === undefined ? has : ["region"]);
  return wanted.find((step) => has.includes(step)) ?? (has.includes("truth") ? "truth" : null);
}

/** The box of a chain at a stage, on the image, or null. */
function boxOf(data, stage, chain) {
  const step = stepAt(data, stage, chain), { regions, pairs, anchors } = data;
  if (step === "truth") return boxAt(data.truth.boxes, chain.truth);
  if (step === "pair") return boxAt(pairs.onImage, chain.pair);
  if (step === "region" && stage.number !== undefined) return boxAt(regions.refinedOnImage[stage.number], chain.region);
  if (step === "region" || step === "proposal") return boxAt(regions.onImage, chain.region);
  if (step !== "anchor") return null;
  const moved = (stage.id === "decoded" || stage.id === "rpn-nms") && chain.candidate !== undefined;
  return moved ? boxAt(anchors.ranked.onImage, chain.candidate) : anchorAt(data, chain.anchor).box;
}

/** What a pair or a candidate suppressed and what suppressed it: {by, dropped}, each [index, IoU], best first. */
function suppressionOf(data, live, kind, index) {
  const [boxes, by] =
    kind === "pair" ? [data.pairs.boxes, live.last.by] : [data.anchors.ranked.boxes, live.rpn.by];
  const iou = (other) => iouOf(boxAt(boxes, index), boxAt(boxes, other));
  const better = by[index], dropped = [];
  for (let i = 0; i < by.length; i++) if (by[i] === index) dropped.push([i, iou(i)]);
  dropped.sort((a, b) => b[1] - a[1]);
  return { by: better < 0 ? null : [better, iou(better)], dropped };
}

/** The detection that hits an object of the truth: the best of its class with an IoU of at least 0.5, or undefined. */
function hitOf(data, live, truth) {
  const box = boxAt(data.truth.boxes, truth), label = data.truth.labels[truth];
  return live.last.kept.find((i) => data.pairs.labels[i] === label && iouOf(boxAt(data.pairs.onImage, i), box) >= 0.5);
}
