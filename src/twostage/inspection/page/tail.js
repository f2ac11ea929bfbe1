// The tail of a prediction: the selection of proposals and the last step, on what the forward pass computed.
//
// The one copy of a stage outside the library; a test holds it equal on random cases. Numbers are float32, rounded
// after each operation in the library's order: ops/cpu/nms.py, ops/cpu/soft_nms.py, models/proposals/rpn.py and
// models/heads/postprocess.py. Boxes are flat Float32Arrays: x1, y1, x2, y2 of each.

const f32 = Math.fround;

/** Boxes from which on soft-NMS ends with the last detection: what would be left behind them is not computed. */
const MANY = 3000;

/** What became of a box: `inspection.fates.Fate`. */
const FATE = { OUTSIDE: 0, LOW: 1, SMALL: 2, SUPPRESSED: 3, CUT: 4, KEPT: 5 };

/** The areas of all boxes. */
function areas(boxes) {
  const out = new Float32Array(boxes.length / 4);
  for (let i = 0, b = 0; i < out.length; i++, b += 4) {
    out[i] = f32(f32(boxes[b + 2] - boxes[b]) * f32(boxes[b + 3] - boxes[b + 1]));
  }
  return out;
}

/** The areas as `ops.boxes.area` has them: 0 for inverted boxes. */
function softAreas(boxes) {
  const out = new Float32Array(boxes.length / 4);
  for (let i = 0, b = 0; i < out.length; i++, b += 4) {
    out[i] = f32(Math.max(f32(boxes[b + 2] - boxes[b]), 0) * Math.max(f32(boxes[b + 3] - boxes[b + 1]), 0));
  }
  return out;
}

/** IoU of boxes i and j, as NMS compares it. */
function overlap(boxes, area, i, j) {
  const a = 4 * i, b = 4 * j;
  const width = f32(Math.min(boxes[a + 2], boxes[b + 2]) - Math.max(boxes[a], boxes[b]));
  const height = f32(Math.min(boxes[a + 3], boxes[b + 3]) - Math.max(boxes[a + 1], boxes[b + 1]));
  if (!(width > 0 && height > 0)) return 0;
  const intersection = f32(width * height);
  return f32(intersection / f32(f32(area[i] + area[j]) - intersection));
}

/** IoU of boxes i and j, as soft-NMS computes it (`ops.boxes.iou`). */
function softOverlap(boxes, area, i, j) {
  const a = 4 * i, b = 4 * j;
  const width = Math.max(f32(Math.min(boxes[a + 2], boxes[b + 2]) - Math.max(boxes[a], boxes[b])), 0);
  const height = Math.max(f32(Math.min(boxes[a + 3], boxes[b + 3]) - Math.max(boxes[a + 1], boxes[b + 1])), 0);
  const intersection = f32(width * height);
  return f32(intersection / Math.max(f32(f32(area[i] + area[j]) - intersection), f32(1e-30)));
}

/** Indices by falling score; of equal scores in the given order. */
function byScore(indices, scores) {
  return Array.from(indices).sort((i, j) => scores[j] - scores[i]);
}

/**
 * Greedy NMS of the boxes `order`, best first, each among those of its group.
 * @returns {{kept: number[], by: Map<number, number>}} `by`: the first kept box that suppressed each of the others
 */
function greedy(boxes, order, groups, iou) {
  const area = areas(boxes), kept = [], by = new Map(), ofGroup = new Map();
  for (const i of order) {
    const b = 4 * i;
    if (boxes[b] > boxes[b + 2] || boxes[b + 1] > boxes[b + 3]) {
      kept.push(i);
      continue;
    }
    const group = groups ? groups[i] : 0;
    let own = ofGroup.get(group);
    if (!own) ofGroup.set(group, (own = []));
    let better = -1;
    for (let k = 0; k < own.length && better < 0; k++) {
      if (overlap(boxes, area, i, own[k]) > iou) better = own[k];
    }
    if (better < 0) {
      kept.push(i);
      own.push(i);
    } else by.set(i, better);
  }
  return { kept, by };
}

/**
 * The RPN's selection (Faster R-CNN, section 3.3): of each level the best `top`, NMS, then the best `keep` of all.
 * @param ranked {counts, boxes, scores, valid}: level after level, best first
 * @returns {{fate: Uint8Array, by: Int32Array, survivors: number[], kept: number[]}} of candidates; `kept` best first
 */
function selectProposals(ranked, { top, nms, keep }) {
  const count = ranked.scores.length;
  const fate = new Uint8Array(count).fill(FATE.LOW), by = new Int32Array(count).fill(-1);
  const survivors = [];
  let first = 0;
  for (const size of ranked.counts) {
    const large = [];
    for (let i = first; i < first + Math.min(size, top); i++) {
      fate[i] = FATE.SMALL;
      if (ranked.valid[i]) large.push(i);
    }
    const left = greedy(ranked.boxes, byScore(large, ranked.scores), null, nms);
    for (const [i, better] of left.by) {
      fate[i] = FATE.SUPPRESSED;
      by[i] = better;
    }
    for (const i of left.kept) fate[i] = FATE.CUT;
    survivors.push(...left.kept.slice(0, Math.min(keep, top)));
    first += size;
  }
  const kept = byScore(survivors, ranked.scores).slice(0, keep);
  for (const i of kept) fate[i] = FATE.KEPT;
  return { fate, by, survivors, kept };
}

/** The threshold on the scale of the scores: of logits for the SVMs of R-CNN and SPPnet. */
function scoreFloor(threshold, logits) {
  if (!logits) return f32(threshold);
  return threshold <= 0 ? -Infinity : threshold >= 1 ? Infinity : f32(Math.log(threshold / (1 - threshold)));
}

/**
 * The last step: threshold, minimum size, NMS or soft-NMS, the best `most`.
 * @param pairs {boxes, scores, labels, logits}: of a region and a class, best first
 * @param allowed Uint8Array of the pairs that take part, or null for all
 * @returns {{above: number[], fate: Uint8Array, by: Int32Array, kept: number[], left: number[], scores: Float32Array}}
 *   of pairs: `above` the threshold, `left` by suppression, `kept` at the end, and the final scores of those left
 */
function lastStep(pairs, allowed, settings) {
  const count = pairs.scores.length, { boxes, scores } = pairs;
  const fate = new Uint8Array(count).fill(FATE.LOW), by = new Int32Array(count).fill(-1);
  const floor = scoreFloor(settings.score, pairs.logits), least = f32(settings.minSide);
  const above = [], large = [];
  const most = settings.candidates ?? Infinity;
  for (let i = 0; i < count && above.length < most; i++) {
    if (!(scores[i] > floor) || (allowed && !allowed[i])) continue;
    above.push(i);
    fate[i] = FATE.SMALL;
    const b = 4 * i;
    if (f32(boxes[b + 2] - boxes[b]) >= least && f32(boxes[b + 3] - boxes[b + 1]) >= least) large.push(i);
  }
  const groups = settings.across ? null : pairs.labels;
  const final = Float32Array.from(scores);
  let left;
  if (settings.soft === "off") {
    const result = greedy(boxes, byScore(large, scores), groups, settings.nms);
    left = result.kept;
    for (const [i, better] of result.by) by[i] = better;
  } else {
    left = softSuppress(boxes, final, large, groups, settings);
    suppressors(boxes, large, left, groups, settings.soft === "gaussian" ? 0 : settings.nms, by);
  }
  for (const i of large) fate[i] = FATE.SUPPRESSED;
  for (const i of left) fate[i] = FATE.CUT;
  const kept = left.slice(0, settings.most);
  for (const i of kept) fate[i] = FATE.KEPT;
  return { above, fate, by, kept, left, scores: final };
}

/**
 * Soft-NMS (Bodla et al. 2017, figure 2): the boxes in the order in which they are taken; `scores` become their own.
 */
function softSuppress(boxes, scores, large, groups, { soft, nms, sigma, softFloor, score, most }) {
  const area = softAreas(boxes);
  const waiting = new Set(large), floor = f32(softFloor ?? score), order = [];
  const gaussian = soft === "gaussian", limit = f32(nms), negative = f32(-sigma);
  const rounds = large.length > MANY ? most : Infinity;
  while (waiting.size && order.length < rounds) {
    let taken = -1;
    for (const i of waiting) if (taken < 0 || scores[i] > scores[taken]) taken = i;
    if (!(scores[taken] >= floor)) break;
    order.push(taken);
    waiting.delete(taken);
    for (const i of waiting) {
      if (groups && groups[i] !== groups[taken]) continue;
      const iou = softOverlap(boxes, area, i, taken);
      if (gaussian) scores[i] = f32(scores[i] * f32(Math.exp(f32(f32(iou * iou) / negative))));
      else if (iou > limit) scores[i] = f32(scores[i] * f32(1 - iou));
    }
  }
  return order;
}

/** Fill `by`: of each large box that is not left, the first of those left that overlaps it, or else the one most. */
function suppressors(boxes, large, left, groups, threshold, by) {
  const area = softAreas(boxes), isLeft = new Set(left);
  for (const i of large) {
    if (isLeft.has(i)) continue;
    let most = -1;
    for (const j of left) {
      if (groups && groups[i] !== groups[j]) continue;
      const iou = softOverlap(boxes, area, i, j);
      if (iou > threshold) {
        by[i] = j;
        break;
      }
      if (iou > most) [most, by[i]] = [iou, j];
    }
  }
}
