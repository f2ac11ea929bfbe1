// The panel beside the picture: what is selected, where it comes from, how it is scored, what it competes with.

/** An element with attributes, listeners (`onclick`) and children; text is always text, never markup. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, one]) => element.style.setProperty(key, one));
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const sizeOf = ([x1, y1, x2, y2]) => `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} px`;

/** The score of a pair from 0 to 1, after soft-NMS where there is one. */
function pairScore(data, live, pair) {
  const score = live.last.scores[pair];
  return data.pairs.logits ? sigmoid(score) : score;
}

const labelOf = (data, pair) => data.names[data.pairs.labels[pair]];

const PAIR_FATES = ["", "below the threshold", "too small", "suppressed", "past the maximum", "detection"];
const ANCHOR_FATES = ["on padding", "below top-k", "too small", "suppressed", "cut by top-n", "proposal"];

/** A step of the way back in words: [name, what it is]. */
function stepWords(data, live, chain, step) {
  const { regions, anchors, truth } = data;
  if (step === "truth") {
    const miss = truth.missed[chain.truth];
    return [data.names[truth.labels[chain.truth]], miss ? `missed: ${miss.words}` : foundWords(data, live, chain.truth)];
  }
  if (step === "pair") {
    const fate = live.last.fate[chain.pair], rank = live.last.kept.indexOf(chain.pair);
    const what = fate === FATE.KEPT ? `detection ${count(rank + 1)} of ${count(live.last.kept.length)}` : PAIR_FATES[fate];
    return [labelOf(data, chain.pair), `${percent(pairScore(data, live, chain.pair))}, ${what}`];
  }
  if (step === "region") {
    const boxes = data.oneStage ? regions.onImage : regions.refinedOnImage.at(-1);
    return [data.oneStage ? "Candidate" : "Region", `${sizeOf(boxAt(boxes, chain.region))}${learnedWords(data, chain.region)}`];
  }
  if (step === "proposal") {
    const score = anchors ? `, objectness ${percent(sigmoid(regions.scores[chain.region]))}` : "";
    return ["Proposal", `${count(chain.region + 1)} of ${count(regions.count)}, ${sizeOf(boxAt(regions.onImage, chain.region))}${score}`];
  }
  const { level, row, column, box } = anchorAt(data, chain.anchor), name = anchors.levels[level].name;
  return ["Anchor", `${name}, row ${row}, column ${column}, ${sizeOf(box)}, ${anchorWords(data, live, chain)}`];
}

/** The score of an anchor and what became of it. */
function anchorWords(data, live, chain) {
  const score = anchorScore(data, chain.anchor);
  if (score === null) return ANCHOR_FATES[0];
  const fate = !live.rpn ? null : chain.candidate === undefined ? FATE.LOW : live.rpn.fate[chain.candidate];
  return [`score ${percent(score)}`, fate === null ? null : ANCHOR_FATES[fate]].filter(Boolean).join(", ");
}

/** Whether an object of the truth is found under the present settings. */
function foundWords(data, live, truth) {
  const hit = hitOf(data, live, truth);
  if (hit !== undefined) return `found, score ${percent(pairScore(data, live, hit))}`;
  return data.truth.counted[truth] ? "missed under these settings" : "not counted";
}

/** What a region would learn in training. */
function learnedWords(data, region) {
  const { learned } = data.regions;
  if (!learned) return "";
  const match = learned.matches[region], overlap = `IoU ${(learned.overlap[region] / 65535).toFixed(2)}`;
  const what = match >= 0 ? `learns ${data.names[data.truth.labels[match]]}` : match === -1 ? "learns background" : "is ignored";
  return `; in training it ${what} (${overlap}${learned.sampled[region] ? ", sampled" : ""})`;
}

const ANCHOR_TARGETS = ["background", "ignored", "object"];

/** The panel for a selection. `act` has `step(name)`, `select(kind, index)`, `go(stage id)` and `clear()`. */
function selectionPanel(data, live, state, stage, act) {
  const { chain } = state, current = stepAt(data, stage, chain), steps = stepsOf(data, chain);
  const way = steps.map((step) => {
    const [name, words] = stepWords(data, live, chain, step);
    const button = h(
      "button",
      { class: "step", "data-step": step, "aria-current": step === current ? "step" : null, onclick: () => act.step(step) },
      h("b", {}, name), h("span", {}, words),
    );
    return h("li", {}, button, step === "region" ? refinementLinks(data, stage, act) : null);
  });
  return [
    h("div", { class: "head" }, h("h2", {}, "Way back"), h("button", { class: "quiet", onclick: act.clear, title: "Clear (Escape)" }, "Clear")),
    h("ol", { class: "way" }, way),
    chain.anchor !== undefined && data.anchors.learned ? targetLine(data, chain.anchor) : null,
    missNote(data, chain),
    ...(chain.region === undefined ? [] : [scoreBars(data, chain.region)]),
    ...competition(data, live, chain, current, act),
    ...gridPanel(data, chain, stage),
  ];
}

/** Buttons to the refinements of a cascade. */
function refinementLinks(data, stage, act) {
  const { refined } = data.regions;
  if (refined.length < 2) return null;
  const one = (_, i) => {
    const id = `refined-${i + 1}`;
    return h("button", { class: "chip", "aria-pressed": String(stage.id === id), onclick: () => act.go(id) }, String(i + 1));
  };
  return h("div", { class: "chips" }, "Refinements", refined.map(one));
}

/** What an anchor would learn. */
function targetLine(data, anchor) {
  const code = data.anchors.learned[anchor], nearest = nearestTruth(data, anchorAt(data, anchor).box);
  const best = nearest ? `, IoU ${nearest.iou.toFixed(2)} with the nearest object` : "";
  return h("p", { class: "note" }, `The anchor's target in training: ${ANCHOR_TARGETS[code & 3]}${code & 4 ? ", sampled" : ""}${best}.`);
}

/** The setting that would keep the box of a missed object. */
function missNote(data, chain) {
  const change = chain.truth === undefined ? null : data.truth.missed[chain.truth]?.change;
  if (!change) return null;
  return h("p", { class: "note" }, `The box that came furthest passes with ${change.field} = ${change.value} (now ${change.now}).`);
}

/** The classes of a region as bars, best first. */
function scoreBars(data, region) {
  const { shown, labels, scores, background } = data.regions.classes;
  const rows = Array.from({ length: shown }, (_, i) => {
    const place = region * shown + i, label = labels[place];
    return { name: data.names[label], share: scores[place] / 65535, colour: data.colours[label] };
  });
  if (background) rows.push({ name: "background", share: background[region] / 65535, colour: null });
  const best = rows.sort((a, b) => b.share - a.share).slice(0, 9);
  const bar = ({ name, share, colour }) =>
    h(
      "li", {},
      h("span", { class: "name" }, name),
      h("span", { class: colour ? "bar" : "bar plain", style: { "--share": `${100 * share}%`, ...(colour ? { "--colour": colour } : {}) } }),
      h("span", { class: "value" }, share.toFixed(3)),
    );
  const more = data.names.length > shown ? `, the best ${shown} of ${count(data.names.length)}` : "";
  return h("section", {}, h("h3", {}, `Class scores${more}`), h("ul", { class: "bars" }, best.map(bar)));
}

/** What suppressed the selected box, and what it suppressed. */
function competition(data, live, chain, current, act) {
  const kind = current === "anchor" || chain.pair === undefined ? "candidate" : "pair";
  if (chain[kind] === undefined || (kind === "candidate" && !live.rpn)) return [];
  const { by, dropped } = suppressionOf(data, live, kind, chain[kind]);
  const words = (index) =>
    kind === "pair"
      ? `${labelOf(data, index)} ${percent(pairScore(data, live, index))}`
      : `Anchor ${percent(sigmoid(data.anchors.ranked.scores[index]))}`;
  const row = ([index, iou]) =>
    h("li", {}, h("button", { class: "row", onclick: () => act.select(kind, index) }, h("span", {}, words(index)), h("span", { class: "value" }, `IoU ${iou.toFixed(2)}`)));
  const title = kind === "pair" ? "Class NMS" : "RPN NMS", list = (rows) => h("ul", { class: "rows" }, rows.map(row));
  const out = [h("h3", {}, title)];
  if (by) out.push(h("p", { class: "note" }, "Suppressed by"), list([by]));
  if (dropped.length) {
    const more = dropped.length > 8 ? `, the ${8} nearest` : "";
    out.push(h("p", { class: "note" }, `Suppressed ${many(dropped.length, kind === "pair" ? "box" : "anchor").replace("boxs", "boxes")}${more}`), list(dropped.slice(0, 8)));
  }
  if (!by && !dropped.length) out.push(h("p", { class: "note" }, "It suppressed no other box, and none suppressed it."));
  return [h("section", { class: "competition" }, out)];
}

/** Where the region is read: its grid on the map of its level. */
function gridPanel(data, chain, stage) {
  if (chain.region === undefined || !data.regions.grids.length) return [];
  const number = Math.min(stage.number ?? (stage.id === "proposals" ? 0 : data.regions.grids.length - 1), data.regions.grids.length - 1);
  const grid = gridOf(data, chain.region, number);
  if (!grid) return [];
  const stages = data.regions.grids.length > 1 ? `, stage ${number + 1}` : "";
  const canvas = h("canvas", { class: "grid", role: "img", "aria-label": gridWords(data, grid) });
  paintGrid(canvas, data, grid);
  return [h("section", {}, h("h3", {}, `Where it is read${stages}`), canvas, h("p", { class: "note" }, gridWords(data, grid)))];
}

/** A grid in words. */
function gridWords(data, grid) {
  if (grid.kind === "window") return `R-CNN: the box and what is around it, warped to ${grid.size} × ${grid.size} pixels.`;
  const [by, bx] = grid.bins, map = data.maps[grid.level]?.name, level = map ? ` on ${data.maps.length > 1 ? map : "the map"}` : "";
  if (grid.kind === "points") {
    const points = `${grid.y.length / by} × ${grid.x.length / bx}`;
    return `RoIAlign${level}: ${by} × ${bx} bins, ${points} points in each.`;
  }
  const what = grid.pyramid ? `Spatial pyramid, ${grid.pyramid.join(", ")} bins a side` : `RoIPool, ${by} × ${bx} bins`;
  return `${what}${level}: the maximum of each bin.`;
}

/** Paint the map's cells around a region, and the points or bins; of R-CNN the warped window. */
function paintGrid(canvas, data, grid) {
  const side = 480, context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [side, side];
  if (grid.kind === "window") {
    const [x1, y1, x2, y2] = grid.box, scale = data.picture.naturalWidth / data.image.width;
    context.drawImage(data.picture, x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale, 0, 0, side, side);
    return;
  }
  const bins = grid.kind === "bins" ? 0.5 : 0; // bins begin at the border of a cell, points count from its centre
  const [yLow, yHigh, xLow, xHigh] = [Math.min(...grid.y), Math.max(...grid.y), Math.min(...grid.x), Math.max(...grid.x)];
  const reach = Math.max(yHigh - yLow, xHigh - xLow, 2) * 1.3, cell = side / reach;
  const [left, top] = [(xLow + xHigh) / 2 - bins - reach / 2, (yLow + yHigh) / 2 - bins - reach / 2];
  const at = (x, y) => [(x - bins - left) * cell, (y - bins - top) * cell];
  const map = data.maps[grid.level];
  if (map) {
    const picture = mapShape(data, grid.level).canvas;
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, (-0.5 - left) * cell, (-0.5 - top) * cell, map.columns * cell, map.rows * cell);
  }
  context.fillStyle = STYLES.selected.stroke;
  context.strokeStyle = grid.kind === "points" ? "#000000" : STYLES.selected.stroke;
  context.lineWidth = 2;
  if (grid.kind === "points") {
    for (const y of grid.y) for (const x of grid.x) {
      const [u, v] = at(x, y);
      context.beginPath();
      context.arc(u, v, 4.5, 0, 7);
      context.fill();
      context.stroke();
    }
    return;
  }
  for (let i = 0; i < grid.y.length; i += 2) for (let j = 0; j < grid.x.length; j += 2) {
    const [x1, y1] = at(grid.x[j], grid.y[i]), [x2, y2] = at(grid.x[j + 1], grid.y[i + 1]);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

const ROWS = 200;

/** The panel while nothing is selected: the detections, and the objects that were missed. */
function overviewPanel(data, live, act) {
  const row = (kind, index, name, value, colour) =>
    h("li", {}, h("button", { class: "row", "data-kind": kind, onclick: () => act.select(kind, index) }, colour ? h("i", { class: "swatch", style: { "--colour": colour } }) : null, h("span", {}, name), h("span", { class: "value" }, value)));
  const { kept } = live.last, out = [h("h2", {}, many(kept.length, "detection"))];
  if (!kept.length) out.push(h("p", { class: "note" }, "No box is above the threshold: lower it in the settings, or look at the stages before."));
  else out.push(h("p", { class: "note" }, "Choose one, or click a box in the picture."));
  const rows = kept.slice(0, ROWS).map((i) => row("pair", i, labelOf(data, i), percent(pairScore(data, live, i)), data.colours[data.pairs.labels[i]]));
  out.push(h("ul", { class: "rows" }, rows));
  if (kept.length > ROWS) out.push(h("p", { class: "note" }, `and ${count(kept.length - ROWS)} more, in the picture.`));
  if (!data.truth) return out;
  const missed = Object.keys(data.truth.missed).map(Number), counted = data.truth.counted.filter(Boolean).length;
  out.push(h("h2", { class: "missed" }, `${count(missed.length)} of ${many(counted, "object")} missed`));
  if (missed.length) out.push(h("p", { class: "note" }, "Why, under the settings that this page was made with:"));
  out.push(h("ul", { class: "rows tall" }, missed.slice(0, ROWS).map((i) => row("truth", i, data.names[data.truth.labels[i]], data.truth.missed[i].words))));
  if (missed.length > ROWS) out.push(h("p", { class: "note" }, `and ${count(missed.length - ROWS)} more, in the picture.`));
  return out;
}

/** What is under the pointer: of a cell its anchors, of a box its name. */
function tipContent(data, live, hover) {
  if (!hover.anchors) return [h("b", {}, hover.words)];
  const { level, row, column } = anchorAt(data, hover.anchors[0]), { learned } = data.anchors;
  const head = ["size", "score", ...(data.truth?.labels.length ? ["IoU"] : []), ...(learned ? ["target"] : [])];
  const rows = hover.anchors.map((anchor) => {
    const { box } = anchorAt(data, anchor), score = anchorScore(data, anchor), nearest = nearestTruth(data, box);
    const cells = [sizeOf(box), score === null ? "padding" : percent(score)];
    if (nearest) cells.push(nearest.iou.toFixed(2));
    if (learned) cells.push(`${ANCHOR_TARGETS[learned[anchor] & 3]}${learned[anchor] & 4 ? ", sampled" : ""}`);
    return h("tr", {}, cells.map((cell) => h("td", {}, cell)));
  });
  const title = `${data.anchors.levels[level].name}, row ${row}, column ${column}`;
  return [h("b", {}, title), h("table", {}, h("tr", {}, head.map((name) => h("th", {}, name))), rows)];
}
