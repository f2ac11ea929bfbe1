// Shapes onto a canvas, and as SVG.

/** Draw shapes; `view` is {scale, x, y}: an image pixel (u, v) falls on (u * scale + x, v * scale + y). */
function paint(context, picture, shapes, view, size, unit = 1) {
  context.save();
  context.translate(view.x, view.y);
  context.beginPath();
  context.rect(0, 0, size.width * view.scale, size.height * view.scale);
  context.clip();
  context.imageSmoothingEnabled = view.scale * (size.width / picture.width) < 3;
  context.drawImage(picture, 0, 0, size.width * view.scale, size.height * view.scale);
  for (const shape of shapes) PAINTERS[shape.type](context, shape, view.scale, unit);
  context.restore();
}

const CASING = "rgba(0, 0, 0, 0.45)";

/**
 * Thousands of boxes onto pixels of their own: as paths of the canvas they take ten times as long.
 * Where lines cross, they add up.
 */
function crowdPixels({ width, height }, groups, { a: grow, e: left, f: top }, scale, unit) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer); // a pixel in one number: ABGR
  for (const group of groups) addCrowd(pixels, width, height, group, scale * grow, unit * grow, left, top);
  return image;
}

/** Add the edges of boxes of one colour; `scale` is pixels of the canvas per pixel of the image. */
function addCrowd(pixels, width, height, { boxes, alphas, stroke, width: line, dash }, scale, unit, left, top) {
  const [r, g, b] = rgbOf(stroke), colour = r | (g << 8) | (b << 16), thick = Math.max(1, Math.floor(line * unit));
  const on = dash.length ? Math.round(dash[0] * unit) : 1, period = dash.length ? on + Math.round(dash[1] * unit) : 1;
  const edge = (from, step, length, place, share) => {
    for (let k = 0, i = from; k < length; k++, i += step) {
      if ((place + k) % period >= on) continue;
      const under = pixels[i] >>> 24;
      pixels[i] = colour | ((under + (((255 - under) * share) >> 8)) << 24);
    }
  };
  const across = (x1, x2, y, share) => {
    const [first, last] = [Math.max(0, x1), Math.min(width, x2)];
    if (y >= 0 && y < height) edge(y * width + first, 1, last - first, first + y, share);
  };
  const down = (x, y1, y2, share) => {
    const [first, last] = [Math.max(0, y1), Math.min(height, y2)];
    if (x >= 0 && x < width) edge(first * width + x, width, last - first, first + x, share);
  };
  for (let k = 0; k < alphas.length; k++) {
    const x1 = Math.round(boxes[4 * k] * scale + left), y1 = Math.round(boxes[4 * k + 1] * scale + top);
    const x2 = Math.round(boxes[4 * k + 2] * scale + left), y2 = Math.round(boxes[4 * k + 3] * scale + top);
    const share = Math.round(256 * alphas[k]);
    for (let t = 0; t < thick; t++) {
      across(x1, x2, y1 + t, share);
      across(x1, x2, y2 - 1 - t, share);
      down(x1 + t, y1 + thick, y2 - thick, share);
      down(x2 - 1 - t, y1 + thick, y2 - thick, share);
    }
  }
}

const scratch = document.createElement("canvas");

const PAINTERS = {
  raster(context, { canvas, box, alpha }, scale) {
    context.save();
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = false;
    const [x1, y1, x2, y2] = box.map((v) => v * scale);
    context.drawImage(canvas, x1, y1, x2 - x1, y2 - y1);
    context.restore();
  },
  crowd(context, { groups }, scale, unit) {
    const { canvas } = context;
    [scratch.width, scratch.height] = [canvas.width, canvas.height];
    scratch.getContext("2d").putImageData(crowdPixels(canvas, groups, context.getTransform(), scale, unit), 0, 0);
    context.save();
    context.resetTransform();
    context.drawImage(scratch, 0, 0);
    context.restore();
  },
  boxes(context, { boxes, stroke, width, dash, casing, alpha }, scale, unit) {
    context.beginPath();
    for (let i = 0; i < boxes.length; i += 4) {
      const [x, y] = [boxes[i] * scale, boxes[i + 1] * scale];
      context.rect(x, y, boxes[i + 2] * scale - x, boxes[i + 3] * scale - y);
    }
    context.globalAlpha = alpha;
    if (casing) {
      context.setLineDash([]);
      context.lineWidth = (width + 1.5) * unit;
      context.strokeStyle = CASING;
      context.stroke();
    }
    context.setLineDash(dash.map((v) => v * unit));
    context.lineWidth = width * unit;
    context.strokeStyle = stroke;
    context.stroke();
    context.globalAlpha = 1;
  },
  points(context, { points, gap, fill }, scale, unit) {
    const radius = Math.max(0.75 * unit, Math.min(2 * unit, 0.28 * gap * scale));
    context.setLineDash([]);
    context.beginPath();
    for (const [x, y] of points) {
      context.moveTo(x * scale + radius, y * scale);
      context.arc(x * scale, y * scale, radius, 0, 7);
    }
    context.lineWidth = 0.75 * radius;
    context.strokeStyle = "rgba(0, 0, 0, 0.6)";
    context.stroke();
    context.fillStyle = fill;
    context.fill();
  },
  labels(context, { labels }, scale, unit) {
    const size = 12 * unit, pad = 4 * unit, height = size + 4 * unit;
    context.font = `600 ${size}px ${FONT}`;
    context.textBaseline = "middle";
    const widthOf = (text) => context.measureText(text).width + 2 * pad;
    for (const { text, fill, ink, left, top, width } of placed(labels, scale, height, widthOf)) {
      context.fillStyle = fill;
      context.fillRect(left, top, width, height);
      context.fillStyle = ink;
      context.fillText(text, left + pad, top + height / 2 + unit / 2);
    }
  },
};

/** The labels that have room: none that is much wider than its box, or would cover one that came before. */
function placed(labels, scale, height, widthOf) {
  const out = [];
  for (const label of labels) {
    const width = widthOf(label.text), left = label.x * scale, top = Math.max(0, label.y * scale - height);
    const beside = (other) => left >= other.left + other.width || other.left >= left + width;
    const covers = (other) => !beside(other) && Math.abs(top - other.top) < height;
    if (width <= 1.6 * label.room * scale && !out.some(covers)) out.push({ ...label, left, top, width });
  }
  return out;
}

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

/** A text in XML, which has no form for most control characters. */
const escaped = (text) => {
  const allowed = text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd");
  return allowed.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
};

/** The same shapes as an SVG file in pixels of the image; the picture and the maps are embedded. */
function svgOf(pictureUri, shapes, { width, height }) {
  const unit = Math.max(width, height) / 900;
  const body = shapes.map((shape) => SVG[shape.type](shape, unit)).join("\n");
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<image href="${pictureUri}" width="${width}" height="${height}" preserveAspectRatio="none"/>
${body}
</svg>
`;
}

const number = (v) => String(Math.round(v * 100) / 100);

const SVG = {
  raster({ canvas, box: [x1, y1, x2, y2], alpha }) {
    const place = `x="${number(x1)}" y="${number(y1)}" width="${number(x2 - x1)}" height="${number(y2 - y1)}"`;
    const style = `preserveAspectRatio="none" opacity="${alpha}" style="image-rendering:pixelated"`;
    return `<image href="${canvas.toDataURL()}" ${place} ${style}/>`;
  },
  boxes({ boxes, stroke, width, dash, casing, alpha }, unit) {
    let path = "";
    for (let i = 0; i < boxes.length; i += 4) {
      const [x1, y1, x2, y2] = Array.from(boxes.slice(i, i + 4), number);
      path += `M${x1} ${y1}H${x2}V${y2}H${x1}Z`;
    }
    const line = (colour, thick, more) =>
      `<path d="${path}" fill="none" stroke="${colour}" stroke-width="${number(thick * unit)}" ${more}/>`;
    const dashes = dash.length ? `stroke-dasharray="${dash.map((v) => number(v * unit)).join(" ")}" ` : "";
    const under = casing ? line("#000000", width + 1.5, 'opacity="0.45"') : "";
    return under + line(stroke, width, `${dashes}opacity="${alpha}"`);
  },
  crowd({ groups }, unit) {
    return groups.flatMap((group) => {
      const shades = [...new Set(group.alphas)];
      return shades.map((alpha) => {
        const some = Array.from(group.alphas.keys()).filter((k) => group.alphas[k] === alpha);
        return SVG.boxes({ ...group, boxes: gathered(group.boxes, some), casing: false, alpha: number(alpha) }, unit);
      });
    }).join("\n");
  },
  points({ points, gap, fill }, unit) {
    const radius = Math.max(0.75 * unit, Math.min(2 * unit, 0.28 * gap));
    const one = ([x, y]) => `<circle cx="${number(x)}" cy="${number(y)}" r="${number(radius)}"/>`;
    const style = `fill="${fill}" stroke="#000000" stroke-opacity="0.6" stroke-width="${number(0.75 * radius)}"`;
    return `<g ${style}>${points.map(one).join("")}</g>`;
  },
  labels({ labels }, unit) {
    const size = 12 * unit, height = size + 4 * unit;
    const one = ({ text, fill, ink, left, top, width }) => {
      const place = `x="${number(left)}" y="${number(top)}" width="${number(width)}" height="${number(height)}"`;
      const style = `font-family="${FONT}" font-size="${number(size)}" font-weight="600" fill="${ink}"`;
      const at = `x="${number(left + 4 * unit)}" y="${number(top + size)}"`;
      return `<rect ${place} fill="${fill}"/><text ${at} ${style}>${escaped(text)}</text>`;
    };
    return placed(labels, 1, height, (text) => (text.length * 0.62 * 12 + 8) * unit).map(one).join("\n");
  },
};
