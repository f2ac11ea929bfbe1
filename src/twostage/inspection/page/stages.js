// The stages of the detector at hand, what they show, and one sentence for each.

const numbers = new Intl.NumberFormat("en");
const count = (n) => numbers.format(n);
const many = (n, word, words = `${word}s`) => `${count(n)} ${n === 1 ? word : words}`;
const percent = (x) => (x >= 0.0995 || x === 0 ? x.toFixed(2) : x >= 0.001 ? x.toFixed(3) : x.toExponential(1));

const SOURCES = {
  selective_search: "selective search", selective_search_quality: "selective search in its quality mode",
  sliding_window: "sliding windows", file: "a file",
};

/** The stages in order: {id, name, number}; `number` counts the refinements from 0. */
function stagesOf(data) {
  const list = [{ id: "image", name: "Image" }];
  if (data.maps.length) list.push({ id: "features", name: "Features" });
  if (data.anchors) list.push({ id: "objectness", name: data.oneStage ? "Class scores" : "Objectness" });
  if (data.anchors?.ranked || data.oneStage) {
    list.push({ id: "top", name: "Top-k" }, { id: "decoded", name: "Decoded" });
  }
  if (data.anchors?.ranked) list.push({ id: "rpn-nms", name: "RPN NMS" });
  if (!data.oneStage) list.push({ id: "proposals", name: "Proposals" });
  const { refined } = data.regions;
  refined.forEach((_, number) => {
    list.push({ id: `refined-${number + 1}`, name: refined.length > 1 ? `Refined ${number + 1}` : "Refined", number });
  });
  list.push({ id: "above", name: "Threshold" }, { id: "class-nms", name: "Class NMS" });
  list.push({ id: "detections", name: "Detections" });
  if (data.masks) list.push({ id: "masks", name: "Masks" });
  return list;
}

const sameRpn = (a, b) => ["top", "nms", "keep"].every((name) => a[name] === b[name]);

/**
 * Everything that follows from the settings: the RPN's selection, the pairs that take part, the last step.
 * @param before what followed from others: the RPN's selection is taken from it where its settings are the same
 */
function liveTail(data, settings, before = null) {
  const start = data.settings, { ranked } = data.anchors ?? {};
  const again = ranked && before && sameRpn(before.settings.rpn, settings.rpn);
  const rpn = again ? before.rpn : ranked ? selectProposals(ranked, settings.rpn) : null;
  const tightened = rpn && !sameRpn(settings.rpn, start.rpn);
  let allowed = null, missing = 0, proposals = null;
  if (tightened) {
    allowed = new Uint8Array(data.regions.count);
    for (const i of rpn.kept) {
      const region = data.regions.ofAnchor.get(ranked.anchors[i]);
      if (region === undefined) missing++;
      else allowed[region] = 1;
    }
  } else if (data.oneStage && settings.top < start.top) allowed = bestOfLevels(data, settings.top);
  proposals = allowed ? Array.from(allowed.keys()).filter((i) => allowed[i]) : null;
  const pairs = allowed ? Uint8Array.from(data.pairs.regions, (region) => allowed[region]) : null;
  return { settings, rpn, proposals, missing, last: lastStep(data.pairs, pairs, settings) };
}

/** Of a single stage: which candidates are among the best `top` of their level. */
function bestOfLevels(data, top) {
  const seen = new Map(), { anchors } = data.regions;
  return Uint8Array.from(anchors, (anchor) => {
    const { level } = anchorAt(data, anchor), rank = seen.get(level) ?? 0;
    seen.set(level, rank + 1);
    return rank < top ? 1 : 0;
  });
}

/** The candidates of the present settings that passed top-k, or those of a single stage. */
function rankedNow(data, live) {
  if (data.oneStage) return live.proposals ?? Array.from({ length: data.regions.count }, (_, i) => i);
  return Array.from(live.rpn.fate.keys()).filter((i) => live.rpn.fate[i] !== FATE.LOW);
}

/** The proposals of the present settings. */
const proposalsNow = (data, live) => live.proposals ?? Array.from({ length: data.regions.count }, (_, i) => i);

/** The numbers of boxes from step to step: [stage id, number]. */
function funnelOf(data, live) {
  const steps = [];
  if (data.anchors) {
    steps.push(["objectness", data.anchors.count], ["top", rankedNow(data, live).length]);
    if (live.rpn) steps.push(["rpn-nms", live.rpn.survivors.length]);
  }
  if (!data.oneStage) steps.push(["proposals", live.rpn ? live.rpn.kept.length : proposalsNow(data, live).length]);
  steps.push(["above", live.last.above.length], ["class-nms", live.last.left.length]);
  steps.push(["detections", live.last.kept.length]);
  return steps;
}

/** One sentence about a stage. */
function sentenceOf(data, live, stage, settings) {
  const { image, batch } = data, size = ([h, w]) => `${count(w)} × ${count(h)}`;
  const numbersOf = Object.fromEntries(funnelOf(data, live)), from = (id) => count(numbersOf[id]);
  switch (stage.id) {
    case "image": {
      const same = batch.size[0] === image.height && batch.size[1] === image.width;
      const own = size([image.height, image.width]);
      return `${own} pixels${same ? "" : `, resized to ${size(batch.size)} for the network`}.`;
    }
    case "features":
      return `${many(data.maps.length, "feature map")}: the mean strength of the features at each cell.`;
    case "objectness":
      return data.oneStage
        ? `Every anchor is scored for every class; shown is its best: ${count(data.anchors.count)} anchors.`
        : `Every anchor is scored as object or background: ${count(data.anchors.count)} anchors.`;
    case "top": {
      const [top, what] = data.oneStage ? [settings.top, "pairs of an anchor and a class"] : [settings.rpn.top, "anchors"];
      return `The best ${count(top)} ${what} of each level stay: ${count(data.anchors.count)} → ${count(numbersOf.top)}.`;
    }
    case "decoded":
      return `Each is moved by its predicted deltas${data.oneStage ? "" : " and clipped to the image"}.`;
    case "rpn-nms": {
      const dropped = `boxes that overlap a better one by more than ${settings.rpn.nms} are dropped`;
      return `NMS, each level by itself: ${dropped}: ${count(numbersOf.top)} → ${count(numbersOf["rpn-nms"])}.`;
    }
    case "proposals":
      if (!live.rpn) return `${many(numbersOf.proposals, "proposal")} from ${SOURCES[data.source] ?? data.source}.`;
      return `The best ${count(settings.rpn.keep)} of all levels: ${from("rpn-nms")} → ${from("proposals")}.`;
    case "above": {
      const what = `pairs of a ${data.oneStage ? "candidate" : "region"} and a class`;
      return `Score above ${percent(settings.score)}: ${many(numbersOf.above, "box", "boxes")}, ${what}.`;
    }
    case "class-nms": {
      const among = settings.across ? "all classes together" : "each class by itself";
      const hard = `NMS, ${among}: boxes that overlap a better one by more than ${percent(settings.nms)} are dropped`;
      const soft = `Soft-NMS (${settings.soft}), ${among}: boxes lose score by overlap with better ones`;
      const how = settings.soft === "off" ? hard : soft;
      return `${how}: ${count(numbersOf.above)} → ${count(numbersOf["class-nms"])}.`;
    }
    case "detections":
      return `The best ${count(settings.most)}: ${from("class-nms")} → ${many(numbersOf.detections, "detection")}.`;
    case "masks": {
      const shown = live.last.kept.filter((i) => data.masks.ofPair.has(i)).length, all = live.last.kept.length;
      const missing = shown < all ? `; ${count(all - shown)} were not predicted, and have none here` : "";
      return `A mask for each detection${missing}.`;
    }
    default: {
      const regions = many(proposalsNow(data, live).length, "region");
      const own = data.regions.refined.length > 1 ? "" : " by the deltas of its best class";
      return `Each region is pooled, classified and moved${own}: ${regions}.`;
    }
  }
}
