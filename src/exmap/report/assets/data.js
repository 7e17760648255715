// @ts-check
// What the page holds, as its other scripts read it. All of them are one function, in the order that page.py names.

/**
 * Numbers are 16-bit integers in base64, one per image on the map; rows are of 32 bits, and empty where the images on
 * the map are all there are.
 * @typedef {{grouping: string, count: number, x: string, y: string, group: string, label: string, predicted: string,
 *   repaired: string, truth: string, picture: string, rows: string, ids: string[],
 *   groups: {group: number, name: string, class: string}[], classes: string[], truths: string[],
 *   sheet: {columns: number, rows: number} | null, pictures: boolean}} PageData
 */

const NONE = 65535;
const SPAN = 65534; // of a coordinate

/**
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
function find(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
  return found;
}

/** @type {PageData} */
const data = JSON.parse(find("data", HTMLScriptElement).textContent || "");

/** @param {string} text */
function bytesOf(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new DataView(bytes.buffer);
}

/** @param {string} text */
function unpack(text) {
  const bytes = bytesOf(text);
  return Uint16Array.from({ length: bytes.byteLength / 2 }, (_, i) => bytes.getUint16(2 * i, true));
}

const [x, y, group, label, predicted, repaired, truth, picture] = [
  data.x, data.y, data.group, data.label, data.predicted, data.repaired, data.truth, data.picture,
].map(unpack);
const packedRows = bytesOf(data.rows);
/** The number of each image in its split, ascending. */
const rows = Uint32Array.from({ length: data.count }, (_, i) => (data.rows ? packedRows.getUint32(4 * i, true) : i));
const retrained = repaired.some((value) => value !== NONE);

/** What each group is called now. @type {Map<number, string>} */
const groupName = new Map(data.groups.map((g) => [g.group, g.name]));

/**
 * Groups that the reader made of images, and the one of each image, -1 for none.
 * @type {{name: string, points: number[]}[]}
 */
const own = [];
const ownOf = new Int32Array(data.count).fill(-1);

/** @param {number} count @param {string} one @param {string} [many] */
function counted(count, one, many) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many || `${one}s`}`;
}

// ---- light and dark

const theme = find("theme", HTMLButtonElement);
const themes = ["system", "light", "dark"];
theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "system") + 1) % themes.length];
  document.documentElement.dataset.theme = next;
  theme.textContent = `Colours: ${next}`;
  redraw();
});

// ---- pictures

/**
 * @param {string} kind
 * @param {number} number
 */
function tile(kind, number) {
  const { columns, rows } = data.sheet || { columns: 1, rows: 1 };
  const place = `${((number % columns) / Math.max(columns - 1, 1)) * 100}% ${(Math.floor(number / columns) / Math.max(rows - 1, 1)) * 100}%`;
  const outer = document.createElement("span");
  outer.className = `tile ${kind}`;
  if (kind !== "heat") {
    outer.classList.add("p");
    outer.style.backgroundPosition = place;
  }
  if (kind !== "image") {
    const inner = outer.appendChild(document.createElement("i"));
    inner.className = "h";
    inner.style.backgroundPosition = place;
  }
  return outer;
}

/** @param {number} point */
function tiles(point) {
  const row = document.createElement("span");
  row.className = "tiles";
  if (picture[point] !== NONE)
    for (const kind of data.pictures ? ["image", "heat", "overlay"] : ["heat"]) row.append(tile(kind, picture[point]));
  return row;
}

/** @param {number} point */
function described(point) {
  const id = picture[point] === NONE ? "no picture of this image is in the page" : data.ids[picture[point]];
  const lines = [
    id,
    `${groupName.get(group[point]) ?? "in no cluster"}`,
    `class ${data.classes[label[point]]}, predicted ${data.classes[predicted[point]] ?? "none"}` +
      (retrained ? `, after retraining ${data.classes[repaired[point]]}` : ""),
  ];
  if (truth[point] !== NONE) lines.push(`true group: ${data.truths[truth[point]]}`);
  if (ownOf[point] >= 0) lines.push(`your group: ${own[ownOf[point]].name}`);
  return lines;
}

/**
 * @param {HTMLElement} place
 * @param {number} point
 */
function show(place, point) {
  const words = described(point).map((line) => {
    const paragraph = document.createElement("span");
    paragraph.className = "line";
    paragraph.textContent = line;
    return paragraph;
  });
  place.replaceChildren(tiles(point), ...words);
}
