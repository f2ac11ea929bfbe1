// The panel beside the picture: what is selected, where it comes from, how it is scored, what it competes with.

/** An element with attributes, listeners (`onclick`) and children; text is always text, never markup. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, one]) => element.style.setProperty(key, one));
    else if (![null, undefined, false].includes(value)) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const note = (text) => h("p", { class: "note" }, text);

/** A row of a list: a button with a text at its left and one at its right. */
function rowOf(text, value, onclick, { colour = null, ...attributes } = {}) {
  const swatch = colour ? h("i", { class: "swatch", style: { "--colour": colour } }) : null;
  const content = [swatch, h("span", {}, text), h("span", { class: "value" }, value)];
  return h("li", {}, h("button", { class: "row", ...attributes, onclick }, content));
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
    const words = miss ? `missed: ${miss.words}` : foundWords(data, live, chain.truth);
    return [data.names[truth.labels[chain.truth]], words];
  }
  if (step === "pair") {
    const { kept, fate } = live.last, rank = kept.indexOf(chain.pair);
    const what = rank >= 0 ? `detection ${count(rank + 1)} of ${count(kept.length)}` : PAIR_FATES[fate[chain.pair]];
    return [labelOf(data, chain.pair), `${percent(pairScore(data, live, chain.pair))}, ${what}`];
  }
  if (step === "region") {
    const boxes = data.oneStage ? regions.onImage : regions.refinedOnImage.at(-1);
    const words = `${sizeOf(boxAt(boxes, chain.region))}${learnedWords(data, chain.region)}`;
    return [data.oneStage ? "Candidate" : "Region", words];
  }
  if (step === "proposal") {
    const score = anchors ? `, objectness ${percent(sigmoid(regions.scores[chain.region]))}` : "";
    const size = sizeOf(boxAt(regions.onImage, chain.region));
    return ["Proposal", `${count(chain.region + 1)} of ${count(regions.count)}, ${size}${score}`];
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
  const others = match === -1 ? "learns background" : "is ignored";
  const what = match >= 0 && data.truth ? `learns ${data.names[data.truth.labels[match]]}` : others;
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
      { class: "step", "data-step": step, "aria-current": step === current && "step", onclick: () => act.step(step) },
      h("b", {}, name), h("span", {}, words),
    );
    return h("li", {}, button, step === "region" ? refinementLinks(data, stage, act) : null);
  });
  const clear = h("button", { class: "quiet", onclick: act.clear, title: "Clear (Escape)" }, "Clear");
  return [
    h("div", { class: "head" }, h("h2", {}, "Way back"), clear),
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
    const pressed = String(stage.id === id);
    return h("button", { class: "chip", "aria-pressed": pressed, onclick: () => act.go(id) }, String(i + 1));
  };
  return h("div", { class: "chips" }, "Refinements", refined.map(one));
}

/** What an anchor would learn. */
function targetLine(data, anchor) {
  const code = data.anchors.learned[anchor], nearest = nearestTruth(data, anchorAt(data, anchor).box);
  const best = nearest ? `, IoU ${nearest.iou.toFixed(2)} with the nearest object` : "";
  return note(`The anchor's target in training: ${ANCHOR_TARGETS[code & 3]}${code & 4 ? ", sampled" : ""}${best}.`);
}

/** What keeps a missed object, or why nothing does. */
function missNote(data, chain) {
  const remedy = chain.truth === undefined ? null : data.truth.missed[chain.truth]?.remedy;
  if (!remedy) return null;
  if (remedy.reason) return note(`${remedy.reason[0].toUpperCase()}${remedy.reason.slice(1)}.`);
  const values = remedy.changes.map(({ field, value, now }) => `${field} = ${value} (now ${now})`);
  return note(`Found in a trial with ${values.join(" and ")}.`);
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
  const bar = ({ name, share, colour }) => {
    const style = { "--share": `${100 * share}%`, "--colour": colour ?? "" };
    const line = h("span", { class: colour ? "bar" : "bar plain", style });
    return h("li", {}, h("span", { class: "name" }, name), line, h("span", { class: "value" }, share.toFixed(3)));
  };
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
  const row = ([index, iou]) => rowOf(words(index), `IoU ${iou.toFixed(2)}`, () => act.select(kind, index));
  const title = kind === "pair" ? "Class NMS" : "RPN NMS", list = (rows) => h("ul", { class: "rows" }, rows.map(row));
  const out = [h("h3", {}, title)];
  if (by) out.push(note("Suppressed by"), list([by]));
  if (dropped.length) {
    const more = dropped.length > 8 ? `, the ${8} nearest` : "";
    const all = kind === "pair" ? many(dropped.length, "box", "boxes") : many(dropped.length, "anchor");
    out.push(note(`Suppressed ${all}${more}`), list(dropped.slice(0, 8)));
  }
  if (!by && !dropped.length) out.push(note("It suppressed no other box, and none suppressed it."));
  return [h("section", { class: "competition" }, out)];
}

/** Where the region is read: its grid on the map of its level. */
function gridPanel(data, chain, stage) {
  if (chain.region === undefined || !data.regions.grids.length) return [];
  const number = stage.number ?? (stage.id === "proposals" ? 0 : data.regions.grids.length - 1);
  const grid = gridOf(data, chain.region, number);
  if (!grid) return [];
  const stages = data.regions.grids.length > 1 ? `, stage ${number + 1}` : "";
  const canvas = h("canvas", { class: "grid", role: "img", "aria-label": gridWords(data, grid) });
  paintGrid(canvas, data, grid);
  return [h("section", {}, h("h3", {}, `Where it is read${stages}`), canvas, note(gridWords(data, grid)))];
}

/** A grid in words. */
function gridWords(data, grid) {
  if (grid.kind === "window") return `The box and what is around it, warped to ${grid.size} × ${grid.size} pixels.`;
  const [by, bx] = grid.bins, map = data.maps[grid.level]?.name;
  const level = map ? ` on ${data.maps.length > 1 ? map : "the map"}` : "";
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
  const [yLow, yHigh] = [Math.min(...grid.y), Math.max(...grid.y)];
  const [xLow, xHigh] = [Math.min(...grid.x), Math.max(...grid.x)];
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
  const { kept } = live.last;
  const hint = kept.length
    ? "Choose one, or click a box in the picture."
    : "No box is above the threshold: lower it in the settings, or look at the stages before.";
  const row = (i) => {
    const attributes = { "data-kind": "pair", colour: data.colours[data.pairs.labels[i]] };
    return rowOf(labelOf(data, i), percent(pairScore(data, live, i)), () => act.select("pair", i), attributes);
  };
  const found = [h("h2", {}, many(kept.length, "detection")), note(hint), ...firstRows(kept, row)];
  return data.truth ? [...found, ...missedRows(data, act)] : found;
}

/** The objects that were missed, with their causes. */
function missedRows(data, act) {
  const { missed, counted, labels } = data.truth, places = Object.keys(missed).map(Number);
  const title = `${count(places.length)} of ${many(counted.filter(Boolean).length, "object")} missed`;
  const why = places.length ? note("Why, under the settings that this page was made with:") : null;
  const attributes = { "data-kind": "truth" };
  const row = (i) => rowOf(data.names[labels[i]], missed[i].words, () => act.select("truth", i), attributes);
  return [h("h2", { class: "missed" }, title), why, ...firstRows(places, row, "rows tall")];
}

/** A list of the first rows, and how many more there are. */
function firstRows(indices, row, kind = "rows") {
  const more = indices.length - ROWS;
  const list = h("ul", { class: kind }, indices.slice(0, ROWS).map(row));
  return more > 0 ? [list, note(`and ${count(more)} more, in the picture.`)] : [list];
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
