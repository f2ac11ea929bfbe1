// The settings of the tail as sliders.

/** The sliders: {id, label, min, max, whole, get, set, off}; those of the proposals can only be tightened. */
function controlsOf(data) {
  const start = data.settings, tail = [];
  const own = (name) => ({ get: (s) => s[name], set: (s, v) => ({ ...s, [name]: v }) });
  const score = { get: (s) => s.score, set: (s, v) => ({ ...s, score: v, softFloor: null }) }; // as `conf` of predict
  tail.push({ id: "score", label: "Score threshold", min: Math.min(data.pairs.floor, start.score), max: 1, ...score });
  const gaussian = start.soft === "gaussian";
  const name = start.soft === "off" ? "Class NMS, IoU" : "Soft-NMS, IoU";
  tail.push({ id: "nms", label: name, min: 0, max: 1, off: gaussian, ...own("nms") });
  tail.push({ id: "most", label: "Maximum", min: 1, max: Math.max(300, start.most), whole: true, ...own("most") });
  const before = [], { rpn } = start;
  if (rpn && data.anchors?.ranked) {
    const ofRpn = (key) => ({ get: (s) => s.rpn[key], set: (s, v) => ({ ...s, rpn: { ...s.rpn, [key]: v } }) });
    before.push({ id: "rpn-top", label: "Top-k of each level", min: 1, max: rpn.top, whole: true, ...ofRpn("top") });
    before.push({ id: "rpn-nms", label: "RPN NMS, IoU", min: 0, max: rpn.nms, ...ofRpn("nms") });
    before.push({ id: "rpn-keep", label: "Top-n proposals", min: 1, max: rpn.keep, whole: true, ...ofRpn("keep") });
  } else if (data.oneStage) {
    before.push({ id: "top", label: "Top-k of each level", min: 1, max: start.top, whole: true, ...own("top") });
  }
  return { tail, before };
}

const thousandths = (value) => Math.round(value * 1000) / 1000;

/** Rounding must not pass the ends of a slider: beyond them boxes are missing from the page. */
const within = ({ min, max }, value) => Math.min(max, Math.max(min, value));

/** The elements of the sliders; `change(control, value)` is called with every new value. */
function controlElements(data, controls, change, reset) {
  const one = (control) => {
    const { id, label, min, max, whole } = control;
    const input = h("input", {
      type: "range", id: `set-${id}`, min, max, step: whole ? 1 : "any", disabled: control.off,
      oninput: () => change(control, whole ? Number(input.value) : within(control, thousandths(input.value))),
    });
    const output = h("output", { for: input.id, id: `value-${id}` });
    return h("div", { class: "control" }, h("label", { for: input.id }, label), output, input);
  };
  const parts = controls.tail.map(one);
  if (controls.before.length) {
    const why = data.oneStage
      ? "other boxes are not in this page."
      : "for boxes that were dropped before the heads there are no predictions.";
    parts.push(h("h3", {}, data.oneStage ? "Candidates" : "Proposals"), note(`Can only be tightened here: ${why}`));
    parts.push(...controls.before.map(one));
  }
  const missing = h("p", { id: "missing", class: "note warn", role: "status", hidden: true });
  return [...parts, missing, h("button", { id: "reset", onclick: reset }, "Reset")];
}

/** Bring the sliders and the note about missing predictions up to date. */
function showControls(controls, settings, live) {
  for (const control of [...controls.tail, ...controls.before]) {
    const value = control.get(settings), input = document.getElementById(`set-${control.id}`);
    if (document.activeElement !== input || Number(input.value).toFixed(3) !== value.toFixed(3)) input.value = value;
    const shown = control.whole ? count(value) : String(thousandths(value));
    document.getElementById(`value-${control.id}`).textContent = shown;
  }
  const missing = document.getElementById("missing");
  missing.hidden = !live.missing;
  const [are, they, their] = live.missing === 1 ? ["is", "it has", "its"] : ["are", "they have", "their"];
  const words = `${many(live.missing, "proposal")} ${are} new under these settings: ${they} no predictions here, and`;
  missing.textContent = live.missing
    ? `${words} ${their} detections are missing. Run inspect with these settings to have them.`
    : "";
}
