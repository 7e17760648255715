// @ts-check
// The map: where points lie on the screen, how they are drawn, and which is where.

/**
 * One way to colour the map: a name for each category, the category of each image, and the one that is grey.
 * @typedef {{names: string[], of: (point: number) => number, grey?: number}} Colouring
 */

const MARGIN = 0.04; // around the map, as a share of its side
const RARE = 0.03; // share of the images below which a category is drawn larger
const COLOURS = ["#4e79a7", "#e15759", "#59a14f", "#b07aa1", "#f28e2b", "#17a2a2", "#9c755f", "#d37295", "#a0a03a", "#6b6ecf"];
const OPAQUE = 217; // of 255, of a point
const CELLS = 128; // of the index, along each side
const CLOSEST = 512; // of the coordinates: the map is not enlarged beyond this side

const canvas = find("map", HTMLCanvasElement);
const context = canvas.getContext("2d");
const tooltip = find("tooltip", HTMLDivElement);
const legend = find("legend", HTMLUListElement);
const colour = find("colour", HTMLSelectElement);
const whole = find("whole", HTMLButtonElement);

const view = { left: 0, top: 0, side: SPAN };
/** Images that are selected, ascending, and whether each one is. */
let kept = new Int32Array(0);
const isKept = new Uint8Array(data.count);
let chosen = -1;
let pointed = -1;
/** What is being drawn: a way on the screen, of which a box has two places. @type {{kind: string, way: number[][]} | null} */
let drag = null;
/** The first corner of a box that is drawn by keyboard. */
let corner = -1;

const position = new Map(data.groups.map((g, number) => [g.group, number]));

/** @type {Record<string, () => Colouring>} */
const colourings = {
  cluster: () => ({
    names: [...data.groups.map((g) => groupName.get(g.group) || g.name), "in no cluster"],
    of: (i) => position.get(group[i]) ?? data.groups.length,
  }),
  class: () => ({ names: data.classes.map((name) => `class ${name}`), of: (i) => label[i] }),
  correctness: () =>
    retrained
      ? {
          names: ["right before and after", "repaired: right after retraining only", "wrong before and after", "right before retraining only"],
          of: (i) => (predicted[i] === label[i] ? (repaired[i] === label[i] ? 0 : 3) : repaired[i] === label[i] ? 1 : 2),
        }
      : { names: ["right", "wrong"], of: (i) => (predicted[i] === label[i] ? 0 : 1) },
  truth: () => ({ names: data.truths, of: (i) => truth[i] }),
  mine: () => ({
    names: [...own.map((mine) => mine.name), "in none of your groups"],
    of: (i) => (ownOf[i] < 0 ? own.length : ownOf[i]),
    grey: own.length,
  }),
};

/** @param {Colouring} colouring @param {number} number */
function paint({ grey }, number) {
  if (number === grey) return "#8a949e";
  return number < COLOURS.length ? COLOURS[number] : `hsl(${(number * 137.5) % 360} 45% 55%)`;
}

/** How the map lies on the screen: a coordinate c is at offset + c * scale pixels. */
function frame() {
  const side = canvas.clientWidth;
  const scale = (side * (1 - 2 * MARGIN)) / view.side;
  return { side, scale, left: side * MARGIN - view.left * scale, top: side * MARGIN - view.top * scale };
}

// ---- an index: the images of each cell of a grid, one cell after another

/** @param {number} coordinate */
const cellOf = (coordinate) => Math.max(0, Math.min(CELLS - 1, Math.floor((coordinate * CELLS) / (SPAN + 1))));
const cellStart = new Int32Array(CELLS * CELLS + 1);
const inCells = new Int32Array(data.count);
{
  const cells = Int32Array.from({ length: data.count }, (_, i) => cellOf(y[i]) * CELLS + cellOf(x[i]));
  for (const cell of cells) cellStart[cell + 1] += 1;
  for (let cell = 0; cell < CELLS * CELLS; cell++) cellStart[cell + 1] += cellStart[cell];
  const next = cellStart.slice();
  for (let i = 0; i < data.count; i++) inCells[next[cells[i]]++] = i;
}

/**
 * Call `use` for each image near a rectangle of the map: all that are in it, and some beside it.
 * @param {number[]} box
 * @param {(point: number) => void} use
 */
function near([left, top, right, bottom], use) {
  for (let row = cellOf(top); row <= cellOf(bottom); row++) {
    const last = cellStart[row * CELLS + cellOf(right) + 1];
    for (let i = cellStart[row * CELLS + cellOf(left)]; i < last; i++) use(inCells[i]);
  }
}

/**
 * The image nearest to a place on the screen, or -1 where none is near.
 * @param {number} px
 * @param {number} py
 * @param {number} reach
 */
function nearest(px, py, reach) {
  const { scale, left, top } = frame();
  const [mx, my, far] = [(px - left) / scale, (py - top) / scale, reach / scale];
  let best = -1;
  let least = far ** 2;
  near([mx - far, my - far, mx + far, my + far], (point) => {
    const distance = (x[point] - mx) ** 2 + (y[point] - my) ** 2;
    if (distance < least && isShown(point)) [least, best] = [distance, point];
  });
  return best;
}

/**
 * The images inside a way that was drawn on the screen.
 * @param {{kind: string, way: number[][]}} drawn
 */
function inside({ kind, way }) {
  const { scale, left, top } = frame();
  const xs = way.map(([px]) => (px - left) / scale);
  const ys = way.map(([, py]) => (py - top) / scale);
  const box = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  /** @type {number[]} */
  const found = [];
  near(box, (point) => {
    const [mx, my] = [x[point], y[point]];
    if (mx < box[0] || mx > box[2] || my < box[1] || my > box[3]) return;
    let isInside = kind === "box";
    if (kind === "lasso")
      for (let i = 0, j = xs.length - 1; i < xs.length; j = i++)
        if (ys[i] > my !== ys[j] > my && mx < xs[i] + ((my - ys[i]) / (ys[j] - ys[i])) * (xs[j] - xs[i])) isInside = !isInside;
    if (isInside) found.push(point);
  });
  return found;
}

// ---- drawing: points are drawn when they change, and copied in every frame

const layer = document.createElement("canvas");
const ink = layer.getContext("2d");
/** @type {ImageData | null} */
let sheet = null;
let stale = true;
let waiting = false;
/** @type {[number, number] | null} */
let hovered = null; // a place on the screen whose image is to be shown

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    if (hovered) hover(...hovered);
    hovered = null;
    waiting = false;
    drawNow();
  });
}

/** Draw again, points and all. */
function redraw() {
  stale = true;
  draw();
}

/** @param {string} text @param {number} alpha */
function word(text, alpha) {
  if (!ink) return 0;
  ink.fillStyle = text;
  const hex = parseInt(String(ink.fillStyle).slice(1), 16); // as #rrggbb, whatever it was written as
  return ((alpha << 24) | ((hex & 255) << 16) | (hex & 0xff00) | (hex >> 16)) >>> 0;
}

/** @param {number} density */
function drawPoints(density) {
  const { side, scale, left, top } = frame();
  const pixels = Math.round(side * density);
  if (!ink || !pixels) return;
  if (!sheet || sheet.width !== pixels) {
    layer.width = layer.height = pixels;
    sheet = ink.createImageData(pixels, pixels);
  }
  const words = new Uint32Array(sheet.data.buffer).fill(0);
  /** @type {(point: number, size: number, colour: number) => void} */
  const dot = (point, size, colour) => {
    const wide = Math.max(1, Math.round(size * density));
    const first = Math.round((left + x[point] * scale) * density - wide / 2);
    const above = Math.round((top + y[point] * scale) * density - wide / 2);
    const [from, to] = [Math.max(first, 0), Math.min(first + wide, pixels)];
    for (let row = Math.max(above, 0); row < Math.min(above + wide, pixels); row++)
      for (let i = row * pixels + from; i < row * pixels + to; i++) words[i] = colour;
  };
  const usual = data.count > 20000 ? 2 : data.count > 4000 ? 2.6 : data.count > 1000 ? 4 : 6;
  const size = pointSize(usual, side);
  if (kept.length < data.count) {
    const faint = word(getComputedStyle(canvas).caretColor, 90);
    for (let i = 0; i < data.count; i++) if (!isKept[i]) dot(i, Math.min(size, 3), faint);
  }
  const colouring = colourings[colour.value]();
  /** @type {number[][]} */
  const bins = colouring.names.map(() => []);
  for (const point of kept) (bins[colouring.of(point)] || []).push(point);
  const order = bins.map((_, number) => number).sort((a, b) => bins[b].length - bins[a].length); // the rare on top
  for (const number of order) {
    const shade = word(paint(colouring, number), OPAQUE);
    const larger = bins[number].length < RARE * data.count ? 1.6 : 1;
    for (const point of bins[number]) dot(point, size * larger, shade);
  }
  ink.putImageData(sheet, 0, 0);
}

/** @param {number} usual @param {number} side */
function pointSize(usual, side) {
  return Math.min(9, usual * Math.min(SPAN / view.side, 2)) * Math.max(0.6, Math.min(1, side / 560));
}

function drawNow() {
  if (!context) return;
  const { side, scale, left, top } = frame();
  const density = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(side * density)) {
    canvas.width = canvas.height = Math.round(side * density);
    stale = true;
  }
  if (stale) drawPoints(density);
  stale = false;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (layer.width && canvas.width) context.drawImage(layer, 0, 0);
  context.setTransform(density, 0, 0, density, 0, 0);
  context.strokeStyle = getComputedStyle(canvas).color;
  context.lineWidth = 2;
  for (const point of new Set([chosen, pointed, corner])) {
    if (point < 0) continue;
    const [px, py] = [left + x[point] * scale, top + y[point] * scale];
    context.beginPath();
    if (point === corner) context.rect(px - 8, py - 8, 16, 16);
    else context.arc(px, py, 8, 0, 2 * Math.PI);
    context.stroke();
  }
  if (!drag) return;
  context.lineWidth = 1.5;
  context.setLineDash([4, 3]);
  context.beginPath();
  if (drag.kind === "box") {
    const [[x0, y0], [x1, y1]] = drag.way;
    context.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
  } else {
    for (const [px, py] of drag.way) context.lineTo(px, py);
    context.closePath();
  }
  context.stroke();
  context.setLineDash([]);
}

function drawLegend() {
  const colouring = colourings[colour.value]();
  const counts = colouring.names.map(() => 0);
  for (const point of kept) counts[colouring.of(point)] += 1;
  const items = colouring.names.flatMap((name, number) => {
    if (!counts[number]) return [];
    const item = document.createElement("li");
    const swatch = item.appendChild(document.createElement("span"));
    swatch.className = "swatch";
    swatch.style.background = paint(colouring, number);
    item.append(`${name} (${counts[number].toLocaleString("en")})`);
    return [item];
  });
  legend.replaceChildren(...items);
}

// ---- what is seen of the map

/** @param {number} left @param {number} top @param {number} side */
function look(left, top, side) {
  Object.assign(view, { left, top, side });
  whole.disabled = side === SPAN && !left && !top;
  redraw();
}

/**
 * Enlarge the map around a place that stays where it is.
 * @param {number} factor
 * @param {number} mx
 * @param {number} my
 */
function enlarge(factor, mx, my) {
  const side = Math.max(CLOSEST, Math.min(SPAN, view.side / factor));
  if (side === SPAN) return look(0, 0, SPAN);
  const share = side / view.side;
  look(mx - (mx - view.left) * share, my - (my - view.top) * share, side);
}

/** Move the map so far that an image is on it. @param {number} point */
function follow(point) {
  /** @type {(from: number, at: number) => number} */
  const moved = (from, at) => (at < from || at > from + view.side ? at - view.side / 2 : from);
  const [left, top] = [moved(view.left, x[point]), moved(view.top, y[point])];
  if (left !== view.left || top !== view.top) look(left, top, view.side);
}

/** @param {number} point */
function pointAt(point) {
  tooltip.hidden = point < 0;
  if (point === pointed) return;
  pointed = point;
  if (point >= 0) show(tooltip, point);
  draw();
}

/** @param {number} px @param {number} py */
function hover(px, py) {
  pointAt(nearest(px, py, 12));
  if (pointed < 0) return;
  const room = canvas.clientWidth;
  const left = Math.max(0, Math.min(px + 14, room - tooltip.offsetWidth));
  tooltip.style.transform = `translate(${left}px, ${py > room / 2 ? py - 14 - tooltip.offsetHeight : py + 14}px)`;
}
