// The data of the page as typed arrays, boxes also on the pixels of the image.

const ARRAYS = { f4: Float32Array, i4: Int32Array, i2: Int16Array, u2: Uint16Array, u1: Uint8Array };

/** A column of `page/columns.py` as a typed array. */
function decoded(column) {
  const text = atob(column.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[column.kind](bytes.buffer);
}

/** The same object with every column decoded. */
function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  if (typeof value.kind === "string" && typeof value.data === "string") return decoded(value);
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, unpacked(part)]));
}

/** Boxes of the batch on the pixels of the image: `inference.predictor.on_originals`, clipped. */
function toImage(boxes, data) {
  const [fy, fx] = data.batch.factors, { width, height } = data.image, out = new Float32Array(boxes.length);
  for (let i = 0; i < boxes.length; i += 2) {
    out[i] = Math.max(0, Math.min(f32(boxes[i] * f32(fx)), width));
    out[i + 1] = Math.max(0, Math.min(f32(boxes[i + 1] * f32(fy)), height));
  }
  return out;
}

/** A box of the batch that may reach beyond the image, on its pixels. */
const scaled = ([x1, y1, x2, y2], [fy, fx]) => [x1 * fx, y1 * fy, x2 * fx, y2 * fy];

/** The data of the script element, decoded, with boxes on the image and indices from one step to the next. */
function readData(text) {
  const data = unpacked(JSON.parse(text));
  const { regions, pairs, anchors } = data;
  regions.count = regions.scores.length;
  regions.onImage = toImage(regions.boxes, data);
  regions.refinedOnImage = regions.refined.map((boxes) => toImage(boxes, data));
  regions.ofAnchor = new Map();
  regions.anchors.forEach((anchor, i) => regions.ofAnchor.has(anchor) || regions.ofAnchor.set(anchor, i));
  pairs.onImage = toImage(pairs.boxes, data);
  if (anchors) indexAnchors(anchors, data);
  if (data.masks) data.masks.ofPair = indexMasks(data.masks, pairs);
  for (const grid of regions.grids) if (grid && grid.kind === "points") indexPoints(grid);
  data.oneStage = Boolean(regions.labels);
  return data;
}

/** Add the number of the first anchor of each level, and what ranked anchors need. */
function indexAnchors(anchors, data) {
  let first = 0;
  for (const level of anchors.levels) {
    level.each = level.cell.length;
    level.first = first;
    first += level.rows * level.columns * level.each;
  }
  anchors.count = first;
  const { ranked } = anchors;
  if (!ranked) return;
  ranked.onImage = toImage(ranked.boxes, data);
  ranked.ofAnchor = new Map();
  ranked.anchors.forEach((anchor, i) => ranked.ofAnchor.set(anchor, i));
}

/** Add where the positions of each region begin. */
function indexPoints(grid) {
  const [by, bx] = grid.bins, count = grid.levels.length;
  [grid.firstY, grid.firstX] = [new Int32Array(count + 1), new Int32Array(count + 1)];
  for (let i = 0; i < count; i++) {
    grid.firstY[i + 1] = grid.firstY[i] + by * grid.samples[2 * i];
    grid.firstX[i + 1] = grid.firstX[i] + bx * grid.samples[2 * i + 1];
  }
}

/** The number of each pair's mask; pairs without a mask are missing. */
function indexMasks(masks, pairs) {
  const key = (region, label) => region * 65536 + label, numbers = new Map(), out = new Map();
  masks.regions.forEach((region, i) => numbers.set(key(region, masks.labels[i]), i));
  pairs.regions.forEach((region, i) => {
    const number = numbers.get(key(region, pairs.labels[i]));
    if (number !== undefined) out.set(i, number);
  });
  return out;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** Where an anchor is: its level, row, column and place in the cell, and its box on the image. */
function anchorAt(data, anchor) {
  const { levels } = data.anchors;
  let number = levels.length - 1;
  while (number > 0 && levels[number].first > anchor) number--;
  const level = levels[number], position = Math.floor((anchor - level.first) / level.each);
  const [row, column] = [Math.floor(position / level.columns), position % level.columns];
  const place = (anchor - level.first) % level.each, [x1, y1, x2, y2] = level.cell[place];
  const [dy, dx] = [row * level.step[0], column * level.step[1]];
  const box = scaled([x1 + dx, y1 + dy, x2 + dx, y2 + dy], data.batch.factors);
  return { level: number, row, column, place, box };
}

/** The score of an anchor from 0 to 1, from its byte or, ranked, exactly; null where it may not propose. */
function anchorScore(data, anchor) {
  const { anchors } = data, place = anchors.ranked?.ofAnchor.get(anchor);
  if (place !== undefined) return sigmoid(anchors.ranked.scores[place]);
  const code = anchors.logits[anchor];
  return code ? sigmoid(anchors.low + ((code - 1) * Math.max(anchors.high - anchors.low, 1e-6)) / 254) : null;
}

/** The box at a place of a flat array. */
const boxAt = (boxes, i) => Array.from(boxes.subarray(4 * i, 4 * i + 4));

/** IoU of two boxes, for display. */
function iouOf(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (!(width > 0 && height > 0)) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** The object of the truth that a box overlaps most: {index, iou}, or null. */
function nearestTruth(data, box) {
  let best = null;
  if (!data.truth) return best;
  for (let i = 0; i < data.truth.labels.length; i++) {
    const iou = iouOf(box, boxAt(data.truth.boxes, i));
    if (!best || iou > best.iou) best = { index: i, iou };
  }
  return best;
}
