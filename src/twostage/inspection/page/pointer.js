// The pointer: what is under it, and what a click does.

/** The box under a point of the image: the nearest edge within some pixels of the screen, else the smallest box. */
function hit([x, y], reach) {
  let best = null;
  for (const { kind, indices, boxes } of layers) {
    for (let k = 0; k < indices.length; k++) {
      const [x1, y1, x2, y2] = [boxes[4 * k], boxes[4 * k + 1], boxes[4 * k + 2], boxes[4 * k + 3]];
      if (x < x1 - reach || x > x2 + reach || y < y1 - reach || y > y2 + reach) continue;
      const inside = x >= x1 && x <= x2 && y >= y1 && y <= y2;
      const edge = Math.min(Math.abs(x - x1), Math.abs(x - x2), Math.abs(y - y1), Math.abs(y - y2));
      const cost = edge <= reach ? edge / reach : inside ? 1 + (x2 - x1) * (y2 - y1) : Infinity;
      if (cost < (best?.cost ?? Infinity)) best = { cost, kind, index: indices[k], box: [x1, y1, x2, y2] };
    }
    if (best) return best;
  }
  return best;
}

/** The anchors of the cell under a point; of all levels those of the cell with the best score. */
function cellUnder([x, y]) {
  const [fy, fx] = data.batch.factors;
  let best = null;
  data.anchors.levels.forEach((level, number) => {
    if (state.level >= 0 && state.level !== number) return;
    const row = Math.floor(y / fy / level.step[0]), column = Math.floor(x / fx / level.step[1]);
    if (row < 0 || column < 0 || row >= level.rows || column >= level.columns) return;
    const first = level.first + (row * level.columns + column) * level.each;
    const anchors = Array.from({ length: level.each }, (_, k) => first + k);
    const top = anchors.reduce((a, b) => (data.anchors.logits[b] > data.anchors.logits[a] ? b : a));
    const code = data.anchors.logits[top];
    if (!best || code > best.code) best = { anchors, top, code };
  });
  return best;
}

/** A point of the screen on the image, or null beside it. */
function pointOf(event) {
  const frame = canvas.getBoundingClientRect(), { scale, x, y } = view();
  const point = [(event.clientX - frame.left - x) / scale, (event.clientY - frame.top - y) / scale];
  const inside = point[0] >= 0 && point[1] >= 0 && point[0] < data.image.width && point[1] < data.image.height;
  return inside ? point : null;
}

/** What is under the pointer. */
function hoverAt(point) {
  if (!point) return null;
  if (stageNow().id === "objectness") return cellUnder(point);
  const found = hit(point, 6 / view().scale);
  if (!found) return null;
  const words = {
    pair: (i) => `${labelOf(data, i)} ${percent(pairScore(data, live, i))}`,
    candidate: (i) => `Anchor, score ${percent(sigmoid(data.anchors.ranked.scores[i]))}`,
    proposal: (i) => `Proposal ${count(i + 1)}`,
    region: (i) => `${data.oneStage ? "Candidate" : "Region"} ${count(i + 1)}`,
  };
  return { box: found.box, words: words[found.kind](found.index) };
}

function showTip(event) {
  const tip = $("tip"), frame = $("frame").getBoundingClientRect();
  tip.hidden = !state.hover;
  if (!state.hover) return;
  tip.replaceChildren(...tipContent(data, live, state.hover));
  const x = Math.min(event.clientX - frame.left + 14, frame.width - tip.offsetWidth - 4);
  const below = event.clientY - frame.top + 18, above = event.clientY - frame.top - tip.offsetHeight - 10;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, below + tip.offsetHeight > frame.height ? above : below)}px`;
}

/** Clicks select; drags move the enlarged picture. */
function listenToPointer() {
  let from = null;
  canvas.addEventListener("pointerdown", ({ clientX, clientY }) => {
    from = { x: clientX, y: clientY, centre: state.centre, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (from && event.buttons && state.zoom > 1) {
      const [dx, dy] = [event.clientX - from.x, event.clientY - from.y], { scale } = view();
      if (Math.hypot(dx, dy) > 4) from.moved = true;
      if (from.moved) zoomTo(state.zoom, [from.centre[0] - dx / scale, from.centre[1] - dy / scale]);
      return;
    }
    if (event.pointerType === "touch") return;
    state.hover = hoverAt(pointOf(event));
    draw();
    showTip(event);
  });
  canvas.addEventListener("pointerleave", () => {
    state.hover = null;
    $("tip").hidden = true;
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const dragged = from?.moved, point = pointOf(event);
    from = null;
    if (dragged) return;
    const cell = point && stageNow().id === "objectness" ? cellUnder(point) : null;
    const found = cell ? { kind: "anchor", index: cell.top } : point && hit(point, 6 / view().scale);
    const object = found || !point ? null : objectUnder(point);
    if (found) act.select(found.kind, found.index);
    else if (object !== null) act.select("truth", object);
    else act.clear();
  });
  canvas.addEventListener("dblclick", (event) => zoomTo(state.zoom > 1 ? 1 : 3, pointOf(event) ?? state.centre));
}

/** The smallest object of the truth under a point, or null. */
function objectUnder([x, y]) {
  if (!data.truth || !state.truth) return null;
  const areaOf = (box) => (box[2] - box[0]) * (box[3] - box[1]), boxOfObject = (i) => boxAt(data.truth.boxes, i);
  const under = Array.from(data.truth.labels.keys()).filter((i) => {
    const [x1, y1, x2, y2] = boxOfObject(i);
    return x >= x1 && x <= x2 && y >= y1 && y <= y2;
  });
  return under.length ? under.reduce((a, b) => (areaOf(boxOfObject(b)) < areaOf(boxOfObject(a)) ? b : a)) : null;
}
