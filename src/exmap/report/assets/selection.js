// @ts-check
// What is selected: one group or all, and of these what was drawn on the map, is near an image or was picked.

const SHOWN = 18; // samples of a selection
const CLICK = 8; // pixels: a shorter way is no drawing
const STEP = 3; // pixels between two places of a lasso

const only = find("only", HTMLSelectElement);
const tool = find("tool", HTMLSelectElement);
const mode = find("mode", HTMLSelectElement);
const zoom = find("zoom", HTMLButtonElement);
const nearButton = find("select-near", HTMLButtonElement);
const howMany = find("near", HTMLInputElement);
const selection = find("selection", HTMLParagraphElement);

/** The group that is shown alone, and which images are marked; null for all. */
const filter = { group: /** @type {number | null} */ (null), marked: /** @type {Uint8Array | null} */ (null) };

/** @param {number} point */
const isShown = (point) => filter.group === null || group[point] === filter.group;

function select() {
  const { marked } = filter;
  let count = 0;
  const all = new Int32Array(data.count);
  for (let i = 0; i < data.count; i++) {
    isKept[i] = isShown(i) && (!marked || marked[i]) ? 1 : 0;
    if (isKept[i]) all[count++] = i;
  }
  kept = all.slice(0, count);
  const pictured = kept.filter((point) => picture[point] !== NONE);
  const step = Math.max(1, pictured.length / SHOWN);
  const shown = Array.from({ length: Math.min(SHOWN, pictured.length) }, (_, k) => pictured[Math.floor(k * step)]);
  find("selected", HTMLDivElement).replaceChildren(
    ...shown.map((point) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sample";
      button.dataset.point = String(point);
      button.setAttribute("aria-label", `${described(point).join(", ")}; choose`);
      button.append(tiles(point));
      return button;
    }),
  );
  selection.textContent =
    `${kept.length.toLocaleString("en")} of ${data.count.toLocaleString("en")} images selected` +
    (shown.length && shown.length < kept.length ? `; ${shown.length} of them below` : "");
  zoom.disabled = !marked || !kept.length;
  only.value = filter.group === null ? "" : String(filter.group);
  for (const button of document.querySelectorAll("button[data-show-group]"))
    if (button instanceof HTMLElement)
      button.setAttribute("aria-pressed", String(Number(button.dataset.showGroup) === filter.group));
  drawLegend();
  redraw();
  ownChanged();
}

/**
 * Mark some of the images that are shown: these alone, these as well, or all but these.
 * @param {number[]} points
 * @param {string} how
 */
function mark(points, how) {
  const marked = filter.marked && how !== "new" ? filter.marked.slice() : new Uint8Array(data.count);
  if (how === "less" && !filter.marked) for (let i = 0; i < data.count; i++) marked[i] = isShown(i) ? 1 : 0;
  for (const point of points) if (isShown(point)) marked[point] = how === "less" ? 0 : 1;
  filter.marked = marked;
  pointAt(-1);
  select();
}

/** @param {PointerEvent | KeyboardEvent} event */
const howOf = (event) => (event.shiftKey ? "more" : event.altKey ? "less" : mode.value);

/** Mark an image that is not, or take the mark away. @param {number} point */
function toggle(point) {
  if (point >= 0) mark([point], filter.marked && filter.marked[point] ? "less" : filter.marked ? "more" : "new");
}

/** @param {number} point */
function choose(point) {
  chosen = point;
  if (point >= 0) {
    show(find("chosen", HTMLDivElement), point);
    follow(point);
  } else find("chosen", HTMLDivElement).replaceChildren("Choose an image on the map or in a card.");
  nearButton.disabled = point < 0;
  draw();
}

/** The images nearest to one, itself among them. @param {number} point @param {number} count */
function around(point, count) {
  const distance = Float64Array.from({ length: data.count }, (_, i) => (x[i] - x[point]) ** 2 + (y[i] - y[point]) ** 2);
  const shown = Array.from({ length: data.count }, (_, i) => i).filter(isShown);
  return shown.sort((a, b) => distance[a] - distance[b]).slice(0, count);
}

// ---- by pointer

canvas.addEventListener("pointermove", (event) => {
  const place = [event.offsetX, event.offsetY];
  if (!drag) {
    hovered = [event.offsetX, event.offsetY];
    return draw();
  }
  const last = drag.way[drag.way.length - 1];
  if (drag.kind === "box") drag.way = [drag.way[0], place];
  else if (Math.abs(place[0] - last[0]) + Math.abs(place[1] - last[1]) >= STEP) drag.way.push(place);
  draw();
});
canvas.addEventListener("pointerleave", () => {
  hovered = null;
  pointAt(-1);
});
canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  const place = [event.offsetX, event.offsetY];
  drag = { kind: tool.value, way: [place, place] };
});
canvas.addEventListener("pointercancel", () => {
  drag = null;
  draw();
});
canvas.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const drawn = drag;
  const [[x0, y0]] = drawn.way;
  drag = null;
  const far = Math.max(...drawn.way.map(([px, py]) => Math.abs(px - x0) + Math.abs(py - y0)));
  if (far >= CLICK) return mark(inside(drawn), howOf(event));
  const point = nearest(event.offsetX, event.offsetY, 16);
  if (event.shiftKey) toggle(point);
  choose(point);
  hovered = [event.offsetX, event.offsetY];
  draw();
});
canvas.addEventListener(
  "wheel",
  (event) => {
    if (!event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    const { scale, left, top } = frame();
    enlarge(2 ** (-event.deltaY / 200), (event.offsetX - left) / scale, (event.offsetY - top) / scale);
  },
  { passive: false },
);

// ---- by keyboard

/** @type {Record<string, [number, number]>} */
const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The image that is next in a direction. @param {[number, number]} way */
function next(way) {
  let best = chosen;
  let least = Infinity;
  for (let point = 0; point < data.count; point++) {
    if (!isShown(point)) continue;
    const dx = x[point] - x[chosen];
    const dy = y[point] - y[chosen];
    const ahead = dx * way[0] + dy * way[1];
    if (ahead <= 0) continue;
    const cost = dx * dx + dy * dy + 3 * (dx * way[1] - dy * way[0]) ** 2; // straight ahead before aside
    if (cost < least) [best, least] = [point, cost];
  }
  return best;
}

/** Set one corner of a box at the chosen image, or the other, and mark what is between. @param {KeyboardEvent} event */
function setCorner(event) {
  if (chosen < 0) return;
  if (corner < 0) {
    corner = chosen;
    selection.textContent = "First corner of a box: go to an image at the other corner and press B again.";
    return draw();
  }
  const [left, right] = [x[corner], x[chosen]].sort((a, b) => a - b);
  const [top, bottom] = [y[corner], y[chosen]].sort((a, b) => a - b);
  corner = -1;
  /** @type {number[]} */
  const found = [];
  near([left, top, right, bottom], (point) => {
    if (x[point] >= left && x[point] <= right && y[point] >= top && y[point] <= bottom) found.push(point);
  });
  mark(found, howOf(event));
}

canvas.addEventListener("keydown", (event) => {
  const way = arrows[event.key];
  const middle = view.side / 2;
  const [mx, my] = chosen < 0 ? [view.left + middle, view.top + middle] : [x[chosen], y[chosen]];
  if (event.ctrlKey || event.metaKey) return;
  if (way) choose(chosen < 0 ? (kept[0] ?? -1) : next(way));
  else if (event.key === " " || event.key === "Enter") toggle(chosen);
  else if (event.key === "b" || event.key === "B") setCorner(event);
  else if (event.key === "+" || event.key === "=") enlarge(2, mx, my);
  else if (event.key === "-") enlarge(0.5, mx, my);
  else if (event.key === "Escape") {
    drag = null;
    corner = -1;
    filter.marked = null;
    select();
  } else return;
  event.preventDefault();
});

// ---- by what stands beside the map

colour.addEventListener("change", () => {
  drawLegend();
  redraw();
});
tool.addEventListener("change", () => {
  canvas.style.touchAction = tool.value === "lasso" ? "none" : "pan-y"; // a box can be drawn aslant, a lasso cannot
});
only.addEventListener("change", () => {
  filter.group = only.value === "" ? null : Number(only.value);
  select();
});
zoom.addEventListener("click", () => {
  let [left, top, right, bottom] = [SPAN, SPAN, 0, 0];
  for (const point of kept) {
    [left, right] = [Math.min(left, x[point]), Math.max(right, x[point])];
    [top, bottom] = [Math.min(top, y[point]), Math.max(bottom, y[point])];
  }
  const side = Math.min(SPAN, Math.max(right - left, bottom - top, CLOSEST));
  look((left + right - side) / 2, (top + bottom - side) / 2, side);
});
whole.addEventListener("click", () => look(0, 0, SPAN));
nearButton.addEventListener("click", () => {
  if (chosen >= 0 && howMany.checkValidity()) mark(around(chosen, howMany.valueAsNumber || 1), mode.value);
});
find("reset", HTMLButtonElement).addEventListener("click", () => {
  Object.assign(filter, { group: null, marked: null });
  corner = -1;
  look(0, 0, SPAN);
  choose(-1);
  select();
});

document.addEventListener("click", (event) => {
  const button = event.target instanceof Element ? event.target.closest("button") : null;
  if (button?.dataset.showGroup !== undefined) {
    const wanted = Number(button.dataset.showGroup);
    filter.group = filter.group === wanted ? null : wanted;
    filter.marked = null;
    select();
    if (filter.group !== null) find("map-section", HTMLElement).scrollIntoView({ block: "start" });
  } else if (button?.dataset.point !== undefined) {
    choose(Number(button.dataset.point));
  }
});
new ResizeObserver(draw).observe(canvas);
