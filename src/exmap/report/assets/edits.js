// @ts-check
// What the reader makes of the groups: names, merges, marks, and groups of images that were selected.

const forms = [...document.querySelectorAll("form[data-group]")].flatMap((form) => {
  if (!(form instanceof HTMLFormElement)) return [];
  const [name, merge, not] = ["name", "merge", "not"].map((field) => form.elements.namedItem(field));
  if (!(name instanceof HTMLInputElement && merge instanceof HTMLSelectElement && not instanceof HTMLInputElement)) return [];
  return [{ group: Number(form.dataset.group), original: form.dataset.name || "", form, name, merge, not }];
});
/** Where selections are saved; null in a page whose groups are not to be edited. */
const maker = data.grouping
  ? {
      form: find("own", HTMLFormElement),
      name: find("own-name", HTMLInputElement),
      save: find("own-save", HTMLButtonElement),
      note: find("own-note", HTMLOutputElement),
      list: find("own-list", HTMLUListElement),
    }
  : null;

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

/** A name as it can be printed: with a space for whatever cannot. @param {string} typed */
const printable = (typed) => typed.replace(/[\p{C}\p{Zl}\p{Zp}\p{Zs}]+/gu, " ").trim();

/**
 * What a group is to be called.
 * @param {{original: string, name: HTMLInputElement}} edit
 */
const wanted = ({ original, name }) => printable(name.value) || original;

/**
 * The names of the groups that images will be in: one for each class that has some of them.
 * @param {{name: string, points: Iterable<number>}} mine
 */
function namesOf({ name, points }) {
  const classes = [...new Set([...points].map((point) => label[point]))];
  return classes.length > 1 ? classes.map((number) => `class ${data.classes[number]} / ${name}`) : [name];
}

/** A name that cannot be given, because it has a meaning or two groups would have it; empty where all is well. */
function taken() {
  const names = [...forms.filter(({ merge }) => !merge.value).map(wanted), ...own.flatMap(namesOf)];
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

/** Ascending numbers as ranges: 3, 5-9, 14. @param {number[]} numbers */
function ranges(numbers) {
  /** @type {[number, number][]} */
  const found = [];
  for (const number of numbers) {
    const last = found[found.length - 1];
    if (last && last[1] === number - 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(", ");
}

function fileOfEdits() {
  const changed = edits();
  const head = `format: 1\nsource: exmap\ngrouping: ${quoted(data.grouping)}\n`;
  const made = own.map(({ name, points }) => `  - name: ${quoted(name)}\n    rows: "${ranges(points.map((point) => rows[point]))}"`);
  return head + (changed.length ? `edits:\n${changed.join("\n")}\n` : "edits: []\n") + (made.length ? `selections:\n${made.join("\n")}\n` : "");
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
  const said = [count ? `${counted(count, "group")} changed` : "", own.length ? `${counted(own.length, "group")} made` : ""];
  const text = twice ? `another name is needed than ${twice}` : said.filter(Boolean).join(", ") || "no changes yet";
  for (const output of document.querySelectorAll("output.changes")) output.textContent = text;
  for (const button of document.querySelectorAll("button[data-save]"))
    if (button instanceof HTMLButtonElement) button.disabled = !(count + own.length) || twice !== "";
  find("saving", HTMLDivElement).classList.toggle("changed", count + own.length > 0);
  drawLegend();
}

for (const { form } of forms) {
  form.addEventListener("input", edited);
  form.addEventListener("submit", (event) => event.preventDefault());
}
for (const button of document.querySelectorAll("button[data-save]"))
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([fileOfEdits()], { type: "application/yaml" }));
    link.download = "edits.yaml";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

// ---- groups of images that were selected

/** Why the selection cannot be saved under a name; empty where it can. @param {string} name */
function refused(name) {
  if (filter.group === null && !filter.marked) return "select images on the map first";
  if (!kept.length) return "nothing is selected";
  if (!name) return "";
  const others = [...forms.filter(({ merge }) => !merge.value).map(wanted), ...own.filter((mine) => mine.name !== name).flatMap(namesOf)];
  const twice = name === "unassigned" ? name : namesOf({ name, points: kept }).find((one) => others.includes(one));
  return twice ? `another name is needed than ${twice}` : "";
}

/** Say whether the selection can be saved. */
function ownChanged() {
  if (!maker) return;
  const name = printable(maker.name.value);
  const why = refused(name);
  maker.save.disabled = why !== "" || !name;
  maker.note.textContent = why;
}

function listOwn() {
  const mine = colour.querySelector("option[value=mine]");
  if (mine instanceof HTMLOptionElement) mine.disabled = !own.length;
  if (!own.length && colour.value === "mine") colour.value = "cluster";
  maker?.list.replaceChildren(
    ...own.map(({ name, points }, number) => {
      const item = document.createElement("li");
      const classes = new Map();
      for (const point of points) classes.set(label[point], (classes.get(label[point]) || 0) + 1);
      const parts = [...classes].map(([one, count]) => `${count.toLocaleString("en")} of class ${data.classes[one]}`);
      const title = item.appendChild(document.createElement("strong"));
      title.textContent = name;
      item.append(` ${counted(points.length, "image")}: ${parts.join(", ")} `);
      for (const what of ["Show", "Remove"]) {
        const button = item.appendChild(document.createElement("button"));
        button.type = "button";
        button.textContent = what;
        button.setAttribute("aria-label", `${what} ${name}`);
        button.addEventListener("click", () => (what === "Show" ? showOwn(number) : removeOwn(number)));
      }
      return item;
    }),
  );
  edited();
  redraw();
}

/** @param {number} number */
function showOwn(number) {
  filter.group = null;
  mark(own[number].points, "new");
}

/** @param {number} number */
function removeOwn(number) {
  own.splice(number, 1);
  renumber();
  listOwn();
  ownChanged();
  maker?.name.focus();
}

/** Note for every image which of the groups it is in. */
function renumber() {
  ownOf.fill(-1);
  own.forEach(({ points }, number) => points.forEach((point) => (ownOf[point] = number)));
}

/** Save what is selected under a name: it leaves the reader's other groups. @param {string} name */
function saveOwn(name) {
  const moved = [...kept].filter((point) => ownOf[point] >= 0 && own[ownOf[point]].name !== name).length;
  const first = !own.length;
  const before = own.find((mine) => mine.name === name);
  const points = before ? [...new Set([...before.points, ...kept])].sort((a, b) => a - b) : [...kept];
  for (const other of own) if (other !== before) other.points = other.points.filter((point) => !isKept[point]);
  if (before) before.points = points;
  else own.push({ name, points });
  for (let number = own.length - 1; number >= 0; number--) if (!own[number].points.length) own.splice(number, 1);
  renumber();
  const option = colour.querySelector("option[value=mine]");
  if (option instanceof HTMLOptionElement) option.disabled = false;
  if (first) colour.value = "mine";
  listOwn();
  if (chosen >= 0) show(find("chosen", HTMLDivElement), chosen);
  return `${counted(points.length, "image")} saved as ${name}` + (moved ? `; ${counted(moved, "was", "were")} in another group of yours` : "");
}

maker?.name.addEventListener("input", ownChanged);
maker?.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const name = printable(maker.name.value);
  if (!name || refused(name)) return;
  const said = saveOwn(name);
  maker.name.value = "";
  ownChanged();
  maker.note.textContent = said;
});

if (data.truths.length === 0) colour.querySelector("option[value=truth]")?.remove();
const firstSample = document.querySelector("button.sample[data-point]");
edited();
choose(firstSample instanceof HTMLElement ? Number(firstSample.dataset.point) : -1);
select();
