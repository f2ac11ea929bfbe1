// What is drawn at a stage: a list of shapes in pixels of the image, for the canvas, the PNG and the SVG alike.
//
// Shapes: {type: "raster", canvas, box, alpha}, {type: "boxes", boxes, stroke, width, dash, casing, alpha},
// {type: "crowd", groups: [{boxes, alphas, stroke, width, dash}]}, {type: "points", points, gap, fill},
// {type: "labels", labels: [{x, y, room, text, fill, ink}]}. Widths and radii are pixels of the screen.

// Okabe and Ito 2008; each goes with a dash, so that no meaning lies in the colour alone.
const STYLES = {
  kept: { stroke: "#56b4e9", width: 1.5, dash: [] },
  dropped: { stroke: "#e69f00", width: 1.25, dash: [4, 3] },
  selected: { stroke: "#f0e442", width: 3, dash: [] },
  suppressor: { stroke: "#cc79a7", width: 2.5, dash: [9, 3, 2, 3] },
  truth: { stroke: "#009e73", width: 2, dash: [10, 5] },
  missed: { stroke: "#d55e00", width: 2.5, dash: [10, 5] },
  before: { stroke: "#ffffff", width: 1.5, dash: [3, 3] },
  hovered: { stroke: "#ffffff", width: 1.5, dash: [] },
};

// Dark to light as cividis, which has the same order for every colour vision.
const RAMP = [[0, 32, 77], [56, 75, 108], [107, 110, 115], [165, 150, 110], [222, 194, 85], [255, 234, 70]];

/** The colours of the ramp for shares from 0 to 1 in 256 steps. */
const SHADES_OF_RAMP = Array.from({ length: 256 }, (_, step) => {
  const place = (step / 255) * (RAMP.length - 1), i = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[i].map((low, k) => Math.round(low + (RAMP[i + 1][k] - low) * (place - i)));
});

const rasters = new Map();

/** A picture of cells, made once for each key; `shareOf` gives a share from 0 to 1, or null for nothing. */
function raster(key, rows, columns, shareOf, alphaOf = () => 1) {
  if (rasters.has(key)) return rasters.get(key);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const share = shareOf(i);
    if (share === null) continue;
    pixels.data.set(SHADES_OF_RAMP[Math.round(255 * share)], 4 * i);
    pixels.data[4 * i + 3] = Math.round(255 * alphaOf(share));
  }
  context.putImageData(pixels, 0, 0);
  rasters.set(key, canvas);
  return canvas;
}

const extentOf = (level) => [0, 0, level.columns * level.step[1], level.rows * level.step[0]];

/** The best score of the anchors of each cell of a level. */
function cellScores(data, number) {
  const { anchors } = data, level = anchors.levels[number], scores = new Float32Array(level.rows * level.columns);
  for (let i = 0; i < scores.length; i++) {
    let best = 0;
    for (let k = 0; k < level.each; k++) best = Math.max(best, anchors.logits[level.first + i * level.each + k]);
    scores[i] = best ? sigmoid(anchors.low + ((best - 1) * Math.max(anchors.high - anchors.low, 1e-6)) / 254) : -1;
  }
  return scores;
}

/** The objectness of one level, or of all: the best level at each cell of the finest. Small scores are spread out. */
function objectnessShape(data, number) {
  const { levels } = data.anchors, finest = levels[Math.max(number, 0)];
  const some = number < 0 ? levels.map((_, i) => i) : [number];
  const scores = () => some.map((i) => cellScores(data, i));
  let each = null;
  const shareOf = (i) => {
    each ??= scores();
    const [row, column] = [Math.floor(i / finest.columns), i % finest.columns];
    let best = -1;
    some.forEach((l, k) => {
      const level = levels[l];
      const y = Math.min(Math.floor(((row + 0.5) * finest.step[0]) / level.step[0]), level.rows - 1);
      const x = Math.min(Math.floor(((column + 0.5) * finest.step[1]) / level.step[1]), level.columns - 1);
      best = Math.max(best, each[k][y * level.columns + x]);
    });
    return best < 0 ? null : Math.sqrt(best);
  };
  const canvas = raster(`objectness ${number}`, finest.rows, finest.columns, shareOf, (share) => 0.35 + 0.5 * share);
  return { type: "raster", canvas, box: scaled(extentOf(finest), data.batch.factors), alpha: 1 };
}

/** The strength of the features of a map. */
function mapShape(data, number, alpha = 0.85) {
  const map = data.maps[number], [height, width] = map.extent;
  const canvas = raster(`map ${number}`, map.rows, map.columns, (i) => map.cells[i] / 255);
  return { type: "raster", canvas, box: scaled([0, 0, width, height], data.batch.factors), alpha };
}

/** The mask of a pair in the colour of its class. */
function maskShape(data, pair) {
  const { masks } = data, number = masks.ofPair.get(pair);
  if (number === undefined) return null;
  const { side } = masks, first = number * side * side, least = 255 * masks.threshold;
  const key = `mask ${number}`;
  if (!rasters.has(key)) {
    const canvas = document.createElement("canvas"), rgb = rgbOf(data.colours[data.pairs.labels[pair]]);
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), pixels = context.createImageData(side, side);
    for (let i = 0; i < side * side; i++) if (masks.cells[first + i] > least) pixels.data.set([...rgb, 150], 4 * i);
    context.putImageData(pixels, 0, 0);
    rasters.set(key, canvas);
  }
  return { type: "raster", canvas: rasters.get(key), box: boxAt(data.pairs.onImage, pair), alpha: 1 };
}

const rgbOf = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** Some boxes of a flat array, one after the other. */
function gathered(boxes, indices) {
  const out = new Float32Array(4 * indices.length);
  indices.forEach((i, k) => out.set(boxes.subarray(4 * i, 4 * i + 4), 4 * k));
  return out;
}

/**
 * The boxes of a stage by what became of them, those that matter most first: {kind, style, indices, boxes, faint}.
 * They are what the pointer hits and the arrow keys walk through.
 */
function layersOf(data, live, stage, level) {
  const { regions, pairs } = data, ranked = data.anchors?.ranked;
  const make = (kind, style, indices, boxes, faint = false) => {
    return { kind, style, indices, boxes: gathered(boxes, indices), faint };
  };
  const ofLevel = (anchor) => level < 0 || anchorAt(data, anchor).level === level;
  if (stage.id === "top" || stage.id === "decoded") {
    const [kind, anchors, moved] = data.oneStage
      ? ["region", regions.anchors, regions.onImage] : ["candidate", ranked.anchors, ranked.onImage];
    const { scores } = data.oneStage ? regions : ranked;
    const indices = byScore(rankedNow(data, live).filter((i) => ofLevel(anchors[i])), scores);
    if (stage.id === "decoded") return [make(kind, "kept", indices, moved)];
    const boxes = Float32Array.from(indices.flatMap((i) => anchorAt(data, anchors[i]).box));
    return [{ kind, style: "kept", indices, boxes, faint: false }];
  }
  if (stage.id === "rpn-nms") {
    const of = (...fates) => byScore(
      Array.from(live.rpn.fate.keys()).filter((i) => fates.includes(live.rpn.fate[i]) && ofLevel(ranked.anchors[i])),
      ranked.scores,
    );
    return [
      make("candidate", "kept", of(FATE.KEPT, FATE.CUT), ranked.onImage),
      make("candidate", "dropped", of(FATE.SUPPRESSED, FATE.SMALL), ranked.onImage, true),
    ];
  }
  if (stage.id === "proposals" || stage.number !== undefined) {
    const own = stage.number === undefined ? regions.onImage : regions.refinedOnImage[stage.number];
    return [make(stage.number === undefined ? "proposal" : "region", "kept", proposalsNow(data, live), own)];
  }
  const { last } = live;
  if (stage.id === "above") return [make("pair", "class", last.above, pairs.onImage)];
  if (stage.id === "class-nms") {
    const dropped = last.above.filter((i) => last.fate[i] === FATE.SUPPRESSED || last.fate[i] === FATE.SMALL);
    return [make("pair", "class", last.left, pairs.onImage), make("pair", "dropped", dropped, pairs.onImage, true)];
  }
  if (stage.id === "detections" || stage.id === "masks") return [make("pair", "class", last.kept, pairs.onImage)];
  return [];
}

const FEW = 150; // boxes that are drawn with a dark edge, and with labels

/** The score of a box from 0 to 1, for how strongly it is drawn among many; 0.3 where there is no such score. */
function strength(data, kind, index) {
  const { regions, pairs, anchors } = data;
  if (kind === "candidate") return sigmoid(anchors.ranked.scores[index]);
  if (kind === "region") return regions.classes.scores[index * regions.classes.shown] / 65535;
  if (kind === "proposal") return anchors ? sigmoid(regions.scores[index]) : 0.3;
  return pairs.logits ? sigmoid(pairs.scores[index]) : pairs.scores[index];
}

const SHADES = 5;

/** Many boxes of one style, the better ones stronger: a group of a crowd. */
function crowdOf(data, layer, style, faint) {
  const alphas = Float32Array.from(layer.indices, (index) => {
    const shade = Math.min(SHADES - 1, Math.floor(SHADES * strength(data, layer.kind, index)));
    return (0.1 + (0.8 * shade) / (SHADES - 1)) * (faint ? 0.35 : 1);
  });
  return { boxes: layer.boxes, alphas, ...style };
}

/** The shapes of some boxes; the others of a crowd step back where one is selected. */
function boxShapes(data, layer, stageId, selected) {
  const few = layer.indices.length <= FEW, alpha = few ? (layer.faint ? 0.7 : 1) : 0.75;
  if (layer.style !== "class") {
    if (!few) return [{ type: "crowd", groups: [crowdOf(data, layer, STYLES[layer.style], layer.faint || selected)] }];
    return [{ type: "boxes", boxes: layer.boxes, ...STYLES[layer.style], casing: !layer.faint, alpha }];
  }
  const byLabel = new Map();
  layer.indices.forEach((pair, k) => {
    const label = data.pairs.labels[pair];
    if (!byLabel.has(label)) byLabel.set(label, []);
    byLabel.get(label).push(k);
  });
  const shapes = [], groups = [];
  for (const [label, places] of byLabel) {
    const boxes = gathered(layer.boxes, places), stroke = data.colours[label];
    if (!few) {
      const some = { ...layer, boxes, indices: places.map((k) => layer.indices[k]) };
      groups.push(crowdOf(data, some, { stroke, width: 1.5, dash: [] }, selected));
      continue;
    }
    shapes.push({ type: "boxes", boxes, stroke, width: 2, dash: [], casing: few, alpha });
  }
  if (groups.length) shapes.push({ type: "crowd", groups });
  if (few && (stageId === "detections" || stageId === "class-nms")) {
    const labels = layer.indices.map((pair, k) => labelOfBox(data, pair, layer.boxes.subarray(4 * k, 4 * k + 4)));
    shapes.push({ type: "labels", labels });
  }
  return shapes;
}

/** The name of a pair's class for the corner of its box. */
function labelOfBox(data, pair, box) {
  const fill = data.colours[data.pairs.labels[pair]], [r, g, b] = rgbOf(fill);
  const ink = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000000" : "#ffffff";
  return { x: box[0], y: box[1], room: box[2] - box[0], text: data.names[data.pairs.labels[pair]], fill, ink };
}

/** The shapes of a stage, from the bottom to the top; `layers` are those of `layersOf`. */
function stageShapes(data, live, state, stage, layers) {
  const shapes = [];
  if (stage.id === "features") shapes.push(mapShape(data, state.map));
  if (stage.id === "objectness") shapes.push(objectnessShape(data, state.level));
  const { pair } = state.chain ?? {};
  if (stage.id === "masks") {
    for (const i of live.last.kept) shapes.push(maskShape(data, i));
  } else if (stage.id === "detections" && data.masks && pair !== undefined) shapes.push(maskShape(data, pair));
  if (data.truth && state.truth) shapes.push(...truthShapes(data));
  for (const layer of [...layers].reverse()) shapes.push(...boxShapes(data, layer, stage.id, Boolean(state.chain)));
  return merged(shapes.filter(Boolean));
}

/** The same shapes, neighbouring crowds as one. */
function merged(shapes) {
  const out = [];
  for (const shape of shapes) {
    const before = out.at(-1);
    if (shape.type === "crowd" && before?.type === "crowd") before.groups.push(...shape.groups);
    else out.push(shape);
  }
  return out;
}

/** The shapes above them: what is selected, and what is under the pointer. */
function pointedShapes(data, live, state, stage) {
  const shapes = state.chain ? selectionShapes(data, live, state.chain, stage) : [];
  return state.hover ? [...shapes, ...hoverShapes(data, state.hover)] : shapes;
}

/** The objects of the truth, those that were missed in a style of their own. */
function truthShapes(data) {
  const all = Array.from(data.truth.labels.keys()), missed = (i) => data.truth.missed[i] !== undefined;
  return ["truth", "missed"].map((style) => {
    const indices = all.filter((i) => missed(i) === (style === "missed")), boxes = gathered(data.truth.boxes, indices);
    if (indices.length <= FEW) return { type: "boxes", boxes, ...STYLES[style], casing: true, alpha: 1 };
    return { type: "crowd", groups: [{ boxes, alphas: new Float32Array(indices.length).fill(0.8), ...STYLES[style] }] };
  });
}

/** The anchors of the cell under the pointer, or the box there. */
function hoverShapes(data, hover) {
  const boxes = hover.anchors ? hover.anchors.flatMap((anchor) => anchorAt(data, anchor).box) : hover.box;
  return [boxesShape(boxes, STYLES.hovered)];
}

const boxesShape = (boxes, style) => {
  return { type: "boxes", boxes: Float32Array.from(boxes), ...style, casing: true, alpha: 1 };
};

/** The selected box, what suppressed it, and where the stage reads it. */
function selectionShapes(data, live, chain, stage) {
  const box = boxOf(data, stage, chain), shapes = [];
  if (!box) return shapes;
  const step = stepAt(data, stage, chain);
  const kind = step === "pair" ? "pair" : stage.id === "rpn-nms" && chain.candidate !== undefined ? "candidate" : null;
  if (kind) {
    const { by } = suppressionOf(data, live, kind, chain[kind]);
    const boxes = kind === "pair" ? data.pairs.onImage : data.anchors.ranked.onImage;
    if (by) shapes.push(boxesShape(boxAt(boxes, by[0]), STYLES.suppressor));
  }
  shapes.push(boxesShape(box, STYLES.selected));
  if ((stage.id === "proposals" || stage.number !== undefined) && chain.region !== undefined) {
    const grid = gridOf(data, chain.region, stage.number ?? 0);
    if (stage.number !== undefined) {
      const before = stage.number ? data.regions.refinedOnImage[stage.number - 1] : data.regions.onImage;
      shapes.unshift(boxesShape(boxAt(before, chain.region), STYLES.before));
    }
    if (grid) shapes.push(...gridShapes(grid));
  }
  return shapes;
}

/**
 * Where a stage reads a region: {kind, level, y, x: on the map, toImage}; of R-CNN {kind, box: of the window}.
 */
function gridOf(data, region, number) {
  const grid = data.regions.grids[number], { factors } = data.batch;
  if (!grid) return null;
  if (grid.kind === "window") {
    const source = number ? data.regions.refinedOnImage[number - 1] : data.regions.onImage;
    const [x1, y1, x2, y2] = boxAt(source, region), around = grid.context / (grid.size - 2 * grid.context);
    const [dx, dy] = [around * (x2 - x1), around * (y2 - y1)];
    return { kind: "window", size: grid.size, box: [x1 - dx, y1 - dy, x2 + dx, y2 + dy] };
  }
  const level = grid.levels[region], scale = grid.scales[level], [by, bx] = grid.bins;
  const first = (axis, bins) => (axis ? (r) => axis[r] : (r) => 2 * bins * r);
  const own = (values, begin) => Array.from(values.subarray(begin(region), begin(region + 1)));
  const [y, x] = [own(grid.y, first(grid.firstY, by)), own(grid.x, first(grid.firstX, bx))];
  const shift = grid.kind === "points" ? grid.offset : -grid.offset;
  const toImage = (cell, axis) => ((cell + shift) / scale) * factors[axis];
  return { kind: grid.kind, level, bins: grid.bins, y, x, toImage, pyramid: grid.pyramid };
}

/** The points or bins of a region's grid on the image. */
function gridShapes(grid) {
  if (grid.kind === "window") {
    return [boxesShape(grid.box, STYLES.before)];
  }
  const x = grid.x.map((cell) => grid.toImage(cell, 1)), y = grid.y.map((cell) => grid.toImage(cell, 0));
  if (grid.kind === "points") {
    const gap = Math.min((Math.max(...x) - Math.min(...x)) / x.length, (Math.max(...y) - Math.min(...y)) / y.length);
    return [{ type: "points", points: y.flatMap((v) => x.map((u) => [u, v])), gap, fill: STYLES.selected.stroke }];
  }
  const boxes = [];
  for (let i = 0; i < y.length; i += 2) {
    for (let j = 0; j < x.length; j += 2) boxes.push(x[j], y[i], x[j + 1], y[i + 1]);
  }
  return [{ type: "boxes", boxes: Float32Array.from(boxes), ...STYLES.hovered, width: 1, casing: false, alpha: 0.9 }];
}
