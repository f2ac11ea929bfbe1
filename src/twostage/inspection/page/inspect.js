// The page: its state, what changes it, and how it is shown.

const $ = (id) => document.getElementById(id);
const data = readData($("data").textContent);
const stages = stagesOf(data), controls = controlsOf(data);
const canvas = $("canvas"), base = document.createElement("canvas");

const state = {
  stage: stages.findIndex((stage) => stage.id === "detections"),
  level: -1, // of the anchors; -1: all
  map: Math.min(1, data.maps.length - 1),
  chain: null, // chain.js
  hover: null,
  truth: true,
  settings: structuredClone(data.settings),
  zoom: 1,
  centre: [data.image.width / 2, data.image.height / 2],
};
let live = liveTail(data, state.settings);
let layers = [];
let size = { width: 1, height: 1 }; // of the canvas on the screen

const stageNow = () => stages[state.stage];

/** Where image pixels fall on the screen. */
function view() {
  const { width, height } = data.image, scale = Math.min(size.width / width, size.height / height) * state.zoom;
  const along = (extent, length, centre) => {
    const full = extent * scale;
    if (full <= length) return (length - full) / 2;
    return Math.min(0, Math.max(length - full, length / 2 - centre * scale));
  };
  return { scale, x: along(width, size.width, state.centre[0]), y: along(height, size.height, state.centre[1]) };
}

/** Fit the canvas to its frame. */
function resize() {
  const { width, height } = data.image, room = $("frame").clientWidth;
  const most = Math.max(280, window.innerHeight * (window.innerWidth < 900 ? 0.6 : 0.66));
  size = { width: room, height: Math.round(Math.min((room * height) / width, most)) };
  canvas.style.height = `${size.height}px`;
  for (const one of [canvas, base]) {
    one.width = Math.max(1, Math.round(size.width * devicePixelRatio));
    one.height = Math.max(1, Math.round(size.height * devicePixelRatio));
  }
  drawBase();
}

function contextOf(one) {
  const context = one.getContext("2d");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.clearRect(0, 0, size.width, size.height);
  return context;
}

/** Draw the stage, and what is above it. */
function drawBase() {
  if (!data.picture.complete) return;
  paint(contextOf(base), data.picture, stageShapes(data, live, state, stageNow(), layers), view(), data.image);
  draw();
}

/** Draw the stage as it is, with the selection and what is under the pointer. */
function draw() {
  const context = contextOf(canvas);
  context.drawImage(base, 0, 0, size.width, size.height);
  const { x, y, scale } = view();
  context.save();
  context.translate(x, y);
  for (const shape of pointedShapes(data, live, state, stageNow())) PAINTERS[shape.type](context, shape, scale, 1);
  context.restore();
}

/** Show the present state everywhere. */
function update() {
  const stage = stageNow();
  layers = layersOf(data, live, stage, state.level);
  state.hover = null;
  $("tip").hidden = true;
  drawBase();
  $("slider").value = state.stage;
  $("slider").setAttribute("aria-valuetext", stage.name);
  $("stage-name").textContent = stage.name;
  const sentence = sentenceOf(data, live, stage, state.settings);
  if ($("sentence").textContent !== sentence) $("sentence").textContent = sentence;
  canvas.setAttribute("aria-label", `${stage.name}. ${sentence}`);
  [...$("ticks").children].forEach((tick, i) => tick.classList.toggle("on", i === state.stage));
  $("back").disabled = state.stage === 0;
  $("next").disabled = state.stage === stages.length - 1;
  showFunnel();
  showLevels(stage);
  showLegend(stage);
  showControls(controls, state.settings, live);
  const panel = state.chain ? selectionPanel(data, live, state, stage, act) : overviewPanel(data, live, act);
  replace($("details"), panel.filter(Boolean));
  const step = state.chain && stepAt(data, stage, state.chain);
  $("status").textContent = step ? stepWords(data, live, state.chain, step).join(", ") : "";
}

/** New content of an element; the focus stays on the button of the same step, or else of the same place. */
function replace(element, children) {
  const buttons = () => [...element.querySelectorAll("button")];
  const place = buttons().indexOf(document.activeElement), { step } = document.activeElement?.dataset ?? {};
  element.replaceChildren(...children);
  if (place < 0) return;
  const same = step && element.querySelector(`[data-step=${step}]`);
  (same || buttons().slice(0, place + 1).at(-1))?.focus({ preventScroll: true });
}

const OF_FUNNEL = {
  objectness: "anchors", top: "top-k", "rpn-nms": "RPN NMS", proposals: "proposals", above: "above threshold",
  "class-nms": "class NMS", detections: "detections",
};

function showFunnel() {
  const steps = funnelOf(data, live);
  const place = (id) => stages.findIndex((one) => one.id === id);
  const reached = steps.filter(([id]) => place(id) <= state.stage).at(-1)?.[0];
  const parts = steps.map(([id, n], i) => {
    const now = id === reached ? "step" : null;
    const content = [h("b", {}, count(n)), ` ${OF_FUNNEL[id]}`];
    const button = h("button", { class: "count", "aria-current": now, onclick: () => act.go(id) }, content);
    return h("span", { class: "joined" }, i ? h("span", { "aria-hidden": "true" }, "→") : null, button);
  });
  replace($("funnel"), parts);
}

const OF_LEVELS = ["objectness", "top", "decoded", "rpn-nms"];

function showLevels(stage) {
  const ofMaps = stage.id === "features", all = ofMaps ? data.maps : data.anchors?.levels ?? [];
  const shown = ofMaps ? all.length > 1 : OF_LEVELS.includes(stage.id) && all.length > 1;
  const name = ofMaps ? "map" : "level";
  const button = (text, value) =>
    h("button", { "aria-pressed": String(state[name] === value), onclick: () => act.set({ [name]: value }) }, text);
  const buttons = shown ? all.map((level, i) => button(level.name, i)) : [];
  replace($("levels"), [...(shown && !ofMaps ? [button("All", -1)] : []), ...buttons]);
}

const MEANINGS = {
  kept: "kept", dropped: "suppressed", truth: "object", missed: "missed object", suppressor: "its suppressor",
  selected: "selected", before: "before",
};

/** A short line in a style, for the legend. */
function lineOf(name) {
  const { stroke, dash, width } = STYLES[name], space = "http://www.w3.org/2000/svg";
  const make = (tag, attributes) => {
    const element = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const svg = make("svg", { width: 26, height: 10, "aria-hidden": true }), ends = { x1: 0, y1: 5, x2: 26, y2: 5 };
  svg.append(make("line", { ...ends, stroke, "stroke-width": width + 0.5, "stroke-dasharray": dash.join(" ") }));
  return h("span", { class: "key" }, svg, MEANINGS[name]);
}

/** A line for each style of the stage, and the scale of its colours. */
function showLegend(stage) {
  const names = layers.map((layer) => layer.style).filter((style) => style !== "class");
  if (layers.length < 2 && names[0] === "kept") names.pop();
  if (data.truth && state.truth) names.push("truth", ...(Object.keys(data.truth.missed).length ? ["missed"] : []));
  const chosen = state.chain ? selectionShapes(data, live, state.chain, stage) : [];
  const drawn = (name) => chosen.some((shape) => shape.type === "boxes" && shape.stroke === STYLES[name].stroke);
  names.push(...["selected", "suppressor"].filter(drawn));
  if (chosen.length && stage.number !== undefined) names.push("before");
  const parts = names.map(lineOf), scale = { objectness: ["0", "1"], features: ["weak", "strong"] }[stage.id];
  const title = stage.id === "objectness" ? "Square root of the score" : null;
  if (scale) parts.unshift(h("span", { class: "key" }, scale[0], h("i", { class: "ramp", title }), scale[1]));
  $("legend").replaceChildren(...parts);
}

/** What changes the state. */
const act = {
  /** Replace some values of the state. */
  set(values) {
    Object.assign(state, values);
    update();
  },
  /** To a stage by its number or name. */
  go(stage) {
    const place = typeof stage === "number" ? stage : stages.findIndex((one) => one.id === stage);
    if (place < 0 || place >= stages.length) return;
    const begun = performance.now();
    act.set({ stage: place });
    window.inspector.lastChange = performance.now() - begun;
  },
  /** Select a box by its kind (truth, pair, region, proposal, candidate, anchor) and number. */
  select(kind, index) {
    let chain = chainOf(data, live, kind, index);
    if (kind === "truth") chain = truthChain(index);
    const stage = stageNow();
    state.chain = chain;
    const step = kind === "candidate" ? "anchor" : kind;
    const shows = stepAt(data, stage, chain) === step && boxOf(data, stage, chain);
    const own = kind === "truth" ? stepsOf(data, chain).find((one) => one !== "truth") : step;
    const place = stageOf(data, live, stages, chain, own);
    if (!shows && place >= 0) state.stage = place;
    update();
  },
  /** To the stage of a step of the selection. */
  step(step) {
    const place = stageOf(data, live, stages, state.chain, step);
    if (place >= 0) act.go(place);
  },
  clear: () => act.set({ chain: null }),
  /** Other settings of the tail. */
  settings(settings) {
    state.settings = settings;
    live = liveTail(data, settings, live);
    update();
  },
};

/** The chain of an object: its detection, or the box of it that came furthest. */
function truthChain(index) {
  const miss = data.truth.missed[index], hit = hitOf(data, live, index);
  if (!miss && hit !== undefined) return { ...chainOf(data, live, "pair", hit), truth: index };
  if (miss?.region !== undefined) {
    const label = data.truth.labels[index], { pairs } = data;
    const pair = pairs.regions.findIndex((region, i) => region === miss.region && pairs.labels[i] === label);
    return { ...chainOf(data, live, ...(pair < 0 ? ["region", miss.region] : ["pair", pair])), truth: index };
  }
  if (miss?.anchor !== undefined) return { ...chainOf(data, live, "anchor", miss.anchor), truth: index };
  return { truth: index };
}

/** The next box of the stage; where a stage has none, the next detection. */
function walk(by) {
  const other = stages.find((stage) => stage.id === (stageNow().id === "objectness" ? "top" : "detections"));
  const shown = layers.length ? layers : layersOf(data, live, other, state.level);
  const boxes = shown.flatMap(({ kind, indices }) => indices.map((index) => [kind, index]));
  if (!boxes.length) return;
  const same = ([kind, index]) => state.chain && state.chain[kind === "proposal" ? "region" : kind] === index;
  const now = boxes.findIndex(same), begin = by > 0 ? 0 : boxes.length - 1;
  const next = now < 0 ? begin : (now + by + boxes.length) % boxes.length;
  const keep = state.stage;
  act.select(...boxes[next]);
  if (!layers.length || state.stage !== keep) act.set({ stage: keep });
}

/** Along the chain: one step back towards the anchor, or forward. */
function along(by) {
  if (!state.chain) return;
  const steps = stepsOf(data, state.chain).filter((step) => step !== "truth");
  const next = steps[steps.indexOf(stepAt(data, stageNow(), state.chain)) + by];
  if (next) act.step(next);
}

function zoomTo(zoom, centre = state.centre) {
  state.zoom = Math.min(32, Math.max(1, zoom));
  state.centre = centre;
  canvas.style.touchAction = state.zoom > 1 ? "none" : "auto";
  drawBase();
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}

/** The shapes of the view without what is under the pointer. */
function allShapes() {
  const chosen = pointedShapes(data, live, { ...state, hover: null }, stageNow());
  return [...stageShapes(data, live, state, stageNow(), layers), ...chosen];
}

/** Make the pictures of all levels while nothing else is to be done, so that the first look at each is quick. */
function prepareRasters() {
  const jobs = [
    ...(data.anchors ? [-1, ...data.anchors.levels.keys()].map((i) => () => objectnessShape(data, i)) : []),
    ...data.maps.map((_, i) => () => mapShape(data, i)),
  ];
  const next = () => {
    const job = jobs.shift();
    if (!job) return;
    job();
    setTimeout(next, 20);
  };
  setTimeout(next, 200);
}

/** The present view as a file: PNG with the pixels of the picture, at least 900, or SVG. */
async function fileOf(kind) {
  const { width, height } = data.image;
  if (kind === "svg") return new Blob([svgOf(data.image.picture, allShapes(), data.image)], { type: "image/svg+xml" });
  const scale = Math.max(data.picture.naturalWidth, (900 * width) / Math.max(width, height)) / width;
  const one = document.createElement("canvas");
  [one.width, one.height] = [Math.round(width * scale), Math.round(height * scale)];
  const unit = Math.max(one.width, one.height) / 900;
  paint(one.getContext("2d"), data.picture, allShapes(), { scale, x: 0, y: 0 }, data.image, unit);
  return new Promise((done) => one.toBlob(done, "image/png"));
}

async function save(kind) {
  const url = URL.createObjectURL(await fileOf(kind)), name = data.title.replace(/[^\w.-]+/g, "_").slice(0, 80);
  h("a", { href: url, download: `${name}_${stageNow().id}.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const KEYS = {
  ArrowLeft: () => act.go(state.stage - 1),
  ArrowRight: () => act.go(state.stage + 1),
  ArrowUp: () => walk(-1),
  ArrowDown: () => walk(1),
  Enter: () => along(1),
  Backspace: () => along(-1),
  Escape: act.clear,
  t: () => data.truth && toggleTruth(),
  "+": () => zoomTo(state.zoom * 1.5),
  "-": () => zoomTo(state.zoom / 1.5),
  0: () => zoomTo(1),
};

function toggleTruth() {
  act.set({ truth: !state.truth });
  $("truth").setAttribute("aria-pressed", String(state.truth));
}

function onKey(event) {
  const action = KEYS[event.key] ?? KEYS[event.key.toLowerCase()]; // letters with Caps Lock too
  if (event.ctrlKey || event.metaKey || event.altKey || !action) return;
  const { target } = event, arrow = event.key.startsWith("Arrow");
  if (target.matches("input, summary") && (arrow || event.key === "Enter") && event.key !== "Escape") return;
  if (target.matches("button") && event.key === "Enter") return;
  event.preventDefault();
  action();
}

function start() {
  $("title").textContent = document.title = data.title;
  $("family").textContent = data.family;
  $("truth").hidden = !data.truth;
  $("slider").max = stages.length - 1;
  $("slider").style.setProperty("--stages", stages.length);
  $("ticks").style.setProperty("--stages", stages.length);
  const tick = ({ name }, i) => h("button", { tabindex: -1, onclick: () => act.go(i) }, name);
  $("ticks").replaceChildren(...stages.map(tick));
  $("controls").replaceChildren(
    ...controlElements(
      data,
      controls,
      (control, value) => act.settings(control.set(state.settings, value)),
      () => act.settings(structuredClone(data.settings)),
    ),
  );
  $("slider").addEventListener("input", () => act.go(Number($("slider").value)));
  const clicks = {
    back: () => act.go(state.stage - 1), next: () => act.go(state.stage + 1), truth: toggleTruth,
    png: () => save("png"), svg: () => save("svg"),
    theme: () => setTheme(document.documentElement.dataset.theme !== "dark"),
    "zoom-in": () => zoomTo(state.zoom * 1.5), "zoom-out": () => zoomTo(state.zoom / 1.5), "zoom-fit": () => zoomTo(1),
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches);
  dark.addEventListener("change", () => setTheme(dark.matches));
  document.addEventListener("keydown", onKey);
  listenToPointer();
  update();
  new ResizeObserver(resize).observe($("frame"));
  prepareRasters();
}

/** For tests, and for a look from the console. */
window.inspector = {
  state, data, stages, act, fileOf,
  live: () => live,
  layers: () => layers,
  lastChange: 0,
  stage: () => stageNow().id,
  onScreen(x, y) {
    const frame = canvas.getBoundingClientRect(), now = view();
    return [frame.left + x * now.scale + now.x, frame.top + y * now.scale + now.y];
  },
};
data.picture = new Image();
window.inspector.ready = new Promise((done) => {
  data.picture.addEventListener("load", () => {
    start();
    done(true);
  });
});
data.picture.src = data.image.picture;
