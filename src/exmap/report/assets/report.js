// @ts-check
"use strict";

/**
 * What the page holds for its script. Numbers are 16-bit integers in base64, one per image on the map.
 * @typedef {{grouping: string, count: number, x: string, y: string, group: string, label: string, predicted: string,
 *   repaired: string, truth: string, picture: string, ids: string[],
 *   groups: {group: number, name: string, class: string}[], classes: string[], truths: string[],
 *   sheet: {columns: number, rows: number} | null, pictures: boolean}} PageData
 *
 * One way to colour the map: a name for each category, and the category of each image.
 * @typedef {{names: string[], of: (point: number) => number}} Colouring
 */

(() => {
  const NONE = 65535;
  const SPAN = 65534; // of a coordinate
  const MARGIN = 0.04; // around the map, as a share of its side
  const SHOWN = 18; // samples of a selection
  const RARE = 0.03; // share of the images below which a category is drawn larger
  const COLOURS = ["#4e79a7", "#e15759", "#59a14f", "#b07aa1", "#f28e2b", "#17a2a2", "#9c755f", "#d37295", "#a0a03a", "#6b6ecf"];

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
  function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  }

  const [x, y, group, label, predicted, repaired, truth, picture] = [
    data.x, data.y, data.group, data.label, data.predicted, data.repaired, data.truth, data.picture,
  ].map(unpack);
  const retrained = repaired.some((value) => value !== NONE);
  const groupName = new Map(data.groups.map((g) => [g.group, g.name]));

  // ---- light and dark

  const theme = find("theme", HTMLButtonElement);
  const themes = ["system", "light", "dark"];
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "system") + 1) % themes.length];
    document.documentElement.dataset.theme = next;
    theme.textContent = `Colours: ${next}`;
    draw();
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
      `class ${data.classes[label[point]]}, predicted ${data.classes[predicted[point]]}` +
        (retrained ? `, after retraining ${data.classes[repaired[point]]}` : ""),
    ];
    if (truth[point] !== NONE) lines.push(`true group: ${data.truths[truth[point]]}`);
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

  // ---- the map

  const canvas = find("map", HTMLCanvasElement);
  const context = canvas.getContext("2d");
  const tooltip = find("tooltip", HTMLDivElement);
  const legend = find("legend", HTMLUListElement);
  const colour = find("colour", HTMLSelectElement);
  const only = find("only", HTMLSelectElement);
  const zoom = find("zoom", HTMLButtonElement);

  const view = { left: 0, top: 0, side: SPAN };
  /** @type {{group: number | null, box: [number, number, number, number] | null}} */
  const filter = { group: null, box: null };
  /** @type {number[]} */
  let kept = [];
  let chosen = -1;
  let pointed = -1;

  /** @type {Record<string, () => Colouring>} */
  const colourings = {
    cluster: () => ({
      names: [...data.groups.map((g) => groupName.get(g.group) || g.name), "in no cluster"],
      of: (i) => (position.has(group[i]) ? Number(position.get(group[i])) : data.groups.length),
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
  };
  const position = new Map(data.groups.map((g, number) => [g.group, number]));

  /** @param {number} number */
  function paint(number) {
    return number < COLOURS.length ? COLOURS[number] : `hsl(${(number * 137.5) % 360} 45% 55%)`;
  }

  /** How the map lies on the screen: a coordinate c is at offset + c * scale pixels. */
  function frame() {
    const side = canvas.clientWidth;
    const scale = (side * (1 - 2 * MARGIN)) / view.side;
    return { scale, left: side * MARGIN - view.left * scale, top: side * MARGIN - view.top * scale };
  }

  /** @type {[number, number, number, number] | null} */
  let drag = null; // in pixels
  let waiting = false;

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      drawNow();
    });
  }

  function drawNow() {
    if (!context) return;
    const side = canvas.clientWidth;
    const density = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(side * density)) canvas.width = canvas.height = Math.round(side * density);
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, side, side);
    const { scale, left, top } = frame();
    /** @type {(point: number, size: number) => void} */
    const dot = (point, size) =>
      context.fillRect(left + x[point] * scale - size / 2, top + y[point] * scale - size / 2, size, size);
    const colouring = colourings[colour.value]();
    const zoomed = SPAN / view.side;
    const usual = data.count > 20000 ? 2 : data.count > 4000 ? 2.6 : data.count > 1000 ? 4 : 6;
    const size = Math.min(9, usual * Math.min(zoomed, 2)) * Math.max(0.6, Math.min(1, side / 560));
    /** @type {number[][]} */
    const bins = colouring.names.map(() => []);
    for (const point of kept) (bins[colouring.of(point)] || []).push(point);
    if (kept.length < data.count) {
      context.globalAlpha = 0.35;
      context.fillStyle = getComputedStyle(canvas).getPropertyValue("--faint");
      for (let i = 0; i < data.count; i++) dot(i, Math.min(size, 3));
    }
    context.globalAlpha = 0.85;
    const order = bins.map((_, number) => number).sort((a, b) => bins[b].length - bins[a].length); // the rare on top
    for (const number of order) {
      context.fillStyle = paint(number);
      const larger = bins[number].length < RARE * data.count ? 1.6 : 1;
      for (const point of bins[number]) dot(point, size * larger);
    }
    context.globalAlpha = 1;
    context.strokeStyle = getComputedStyle(canvas).color;
    for (const point of [chosen, pointed]) {
      if (point < 0) continue;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(left + x[point] * scale, top + y[point] * scale, size / 2 + 5, 0, 2 * Math.PI);
      context.stroke();
    }
    if (drag) {
      context.lineWidth = 1;
      context.setLineDash([4, 3]);
      context.strokeRect(Math.min(drag[0], drag[2]), Math.min(drag[1], drag[3]), Math.abs(drag[2] - drag[0]), Math.abs(drag[3] - drag[1]));
      context.setLineDash([]);
    }
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
      swatch.style.background = paint(number);
      item.append(`${name} (${counts[number].toLocaleString("en")})`);
      return [item];
    });
    legend.replaceChildren(...items);
  }

  function select() {
    kept = [];
    for (let i = 0; i < data.count; i++) {
      if (filter.group !== null && group[i] !== filter.group) continue;
      if (filter.box && (x[i] < filter.box[0] || x[i] > filter.box[2] || y[i] < filter.box[1] || y[i] > filter.box[3])) continue;
      kept.push(i);
    }
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
    find("selection", HTMLParagraphElement).textContent =
      `${kept.length.toLocaleString("en")} of ${data.count.toLocaleString("en")} images selected` +
      (shown.length && shown.length < kept.length ? `; ${shown.length} of them:` : "");
    zoom.disabled = !filter.box;
    only.value = filter.group === null ? "" : String(filter.group);
    for (const button of document.querySelectorAll("button[data-show-group]"))
      if (button instanceof HTMLElement)
        button.setAttribute("aria-pressed", String(Number(button.dataset.showGroup) === filter.group));
    drawLegend();
    draw();
  }

  /** @param {number} point */
  function choose(point) {
    chosen = point;
    if (point >= 0) show(find("chosen", HTMLDivElement), point);
    else find("chosen", HTMLDivElement).replaceChildren("Choose an image on the map or in a card.");
    draw();
  }

  /**
   * The image nearest to a place on the screen, or -1 where none is near.
   * @param {number} px
   * @param {number} py
   * @param {number} reach
   */
  function nearest(px, py, reach) {
    const { scale, left, top } = frame();
    const [mx, my] = [(px - left) / scale, (py - top) / scale];
    let best = -1;
    let least = (reach / scale) ** 2;
    for (const point of kept) {
      const dx = x[point] - mx;
      const dy = y[point] - my;
      const distance = dx * dx + dy * dy;
      if (distance < least) {
        least = distance;
        best = point;
      }
    }
    return best;
  }

  /** @param {number} point */
  function pointAt(point) {
    tooltip.hidden = point < 0;
    if (point !== pointed) draw();
    pointed = point;
  }

  /** @param {PointerEvent} event */
  function hover(event) {
    const point = nearest(event.offsetX, event.offsetY, 12);
    pointAt(point);
    if (point < 0) return;
    show(tooltip, point);
    const room = canvas.clientWidth;
    const left = Math.max(0, Math.min(event.offsetX + 14, room - tooltip.offsetWidth));
    const above = event.offsetY > room / 2;
    tooltip.style.transform = `translate(${left}px, ${above ? event.offsetY - 14 - tooltip.offsetHeight : event.offsetY + 14}px)`;
  }

  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      drag = [drag[0], drag[1], event.offsetX, event.offsetY];
      draw();
    } else hover(event);
  });
  canvas.addEventListener("pointerleave", () => pointAt(-1));
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    drag = [event.offsetX, event.offsetY, event.offsetX, event.offsetY];
  });
  canvas.addEventListener("pointercancel", () => {
    drag = null;
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const [x0, y0, x1, y1] = drag;
    drag = null;
    if (Math.abs(x1 - x0) + Math.abs(y1 - y0) < 8) {
      choose(nearest(event.offsetX, event.offsetY, 16));
      hover(event);
      return;
    }
    const { scale, left, top } = frame();
    filter.box = [
      (Math.min(x0, x1) - left) / scale,
      (Math.min(y0, y1) - top) / scale,
      (Math.max(x0, x1) - left) / scale,
      (Math.max(y0, y1) - top) / scale,
    ];
    pointAt(-1);
    select();
  });

  /** @type {Record<string, [number, number]>} */
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const way = arrows[event.key];
    if (!way || !kept.length) return;
    event.preventDefault();
    if (chosen < 0) return choose(kept[0]);
    let best = chosen;
    let least = Infinity;
    for (const point of kept) {
      const dx = x[point] - x[chosen];
      const dy = y[point] - y[chosen];
      const ahead = dx * way[0] + dy * way[1];
      if (ahead <= 0) continue;
      const cost = dx * dx + dy * dy + 3 * (dx * way[1] - dy * way[0]) ** 2; // straight ahead before aside
      if (cost < least) [best, least] = [point, cost];
    }
    choose(best);
  });

  colour.addEventListener("change", () => {
    drawLegend();
    draw();
  });
  only.addEventListener("change", () => {
    filter.group = only.value === "" ? null : Number(only.value);
    select();
  });
  zoom.addEventListener("click", () => {
    if (!filter.box) return;
    const [left, top, right, bottom] = filter.box;
    view.side = Math.max(right - left, bottom - top, 1);
    view.left = (left + right - view.side) / 2;
    view.top = (top + bottom - view.side) / 2;
    draw();
  });
  find("reset", HTMLButtonElement).addEventListener("click", () => {
    Object.assign(view, { left: 0, top: 0, side: SPAN });
    Object.assign(filter, { group: null, box: null });
    choose(-1);
    select();
  });

  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest("button") : null;
    if (button?.dataset.showGroup !== undefined) {
      const wanted = Number(button.dataset.showGroup);
      filter.group = filter.group === wanted ? null : wanted;
      filter.box = null;
      select();
      if (filter.group !== null) find("map-section", HTMLElement).scrollIntoView({ block: "start" });
    } else if (button?.dataset.point !== undefined) {
      choose(Number(button.dataset.point));
    }
  });
  new ResizeObserver(draw).observe(canvas);

  // ---- edits by hand

  const forms = [...document.querySelectorAll("form[data-group]")].flatMap((form) => {
    if (!(form instanceof HTMLFormElement)) return [];
    const [name, merge, not] = ["name", "merge", "not"].map((field) => form.elements.namedItem(field));
    if (!(name instanceof HTMLInputElement && merge instanceof HTMLSelectElement && not instanceof HTMLInputElement)) return [];
    return [{ group: Number(form.dataset.group), original: form.dataset.name || "", form, name, merge, not }];
  });
  const save = find("save", HTMLButtonElement);
  const changes = find("changes", HTMLOutputElement);

  /**
   * A JSON string is a YAML string, but for characters that YAML takes for line breaks or refuses.
   * @param {string} text
   */
  function quoted(text) {
    const hidden = /[\u007f-\u009f\u2028\u2029\ufeff\ufffe\uffff]/g;
    return JSON.stringify(text.replace(/[\ud800-\udfff]/gu, "\ufffd")).replace(
      hidden,
      (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"),
    );
  }

  /**
   * What a group is to be called: as typed, with a space for whatever cannot be printed.
   * @param {{original: string, name: HTMLInputElement}} edit
   */
  function wanted({ original, name }) {
    return name.value.replace(/[\p{C}\p{Zl}\p{Zp}\p{Zs}]+/gu, " ").trim() || original;
  }

  /** A name that cannot be given, because it has a meaning or two groups would have it; empty where all is well. */
  function taken() {
    const names = forms.filter(({ merge }) => !merge.value).map(wanted);
    return names.find((name, number) => name === "unassigned" || names.indexOf(name) < number) || "";
  }

  function edits() {
    return forms.flatMap((edit) => {
      const { original, name, merge, not } = edit;
      const lines = [];
      if (name.value !== original && wanted(edit) !== original) lines.push(`    name: ${quoted(wanted(edit))}`);
      if (merge.value) lines.push(`    merge_into: ${quoted(merge.value)}`);
      if (not.checked) lines.push("    not_a_shortcut: true");
      return lines.length ? [[`  - group: ${quoted(original)}`, ...lines].join("\n")] : [];
    });
  }

  function edited() {
    const targets = new Set(forms.map(({ merge }) => merge.value));
    for (const edit of forms) {
      const { group: number, original, form, merge, not } = edit;
      merge.disabled = targets.has(original); // what others go into stays where it is
      for (const option of merge.options)
        option.disabled = forms.some((other) => other.original === option.value && other.merge.value !== "");
      groupName.set(number, wanted(edit));
      const heading = document.getElementById(`name-${number}`);
      if (heading) heading.textContent = groupName.get(number) || original;
      form.closest("article")?.classList.toggle("set-aside", not.checked || merge.value !== "");
    }
    for (const option of only.options) if (option.value) option.textContent = groupName.get(Number(option.value)) || "";
    const count = edits().length;
    const twice = taken();
    changes.textContent = twice
      ? `another name is needed than ${twice}`
      : count
        ? `${count} ${count === 1 ? "group" : "groups"} changed`
        : "no changes yet";
    save.disabled = !count || twice !== "";
    find("saving", HTMLDivElement).classList.toggle("changed", count > 0);
    drawLegend();
  }

  for (const { form } of forms) {
    form.addEventListener("input", edited);
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  save.addEventListener("click", () => {
    const text = `format: 1\nsource: exmap\ngrouping: ${quoted(data.grouping)}\nedits:\n${edits().join("\n")}\n`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
    link.download = "edits.yaml";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

  if (data.truths.length === 0) colour.querySelector("option[value=truth]")?.remove();
  const first = document.querySelector("button.sample[data-point]");
  edited();
  choose(first instanceof HTMLElement ? Number(first.dataset.point) : -1);
  select();
})();
