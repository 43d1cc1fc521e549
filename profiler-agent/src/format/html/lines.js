// Source with what each line takes: a list of functions or files, and the lines of the file that was chosen.

/** Names in the list, at most; a search finds the others. */
const MAX_NAMES = 500;

const state = { type: data.main, list: "functions", heat: data.by_total ? "total" : "own", hasLibraries: true, search: "" };

/** The file that is shown, and the function that led there; -1: none. */
let shownFile = -1;
let shownFunction = -1;

/** Of the file that is shown the rows with samples, the hottest first, and which of them is marked. */
let byHeat = [];
let marked = -1;

const whole = () => data.types[state.type].whole;
const unit = () => data.types[state.type].unit;
const amountText = (value) => (value === 0 ? "0" : valueText(value, unit()));

function ownOf(column, idx) {
  return column.python[idx] + column.native[idx] + column.kernel[idx];
}

/** What colours a line, and puts it before others. */
function heatOf(column, idx) {
  return state.heat === "own" ? ownOf(column, idx) : column.total[idx];
}

/** A file has no total of its own: its lines call each other. What its largest line has stands for it. */
const totalsOfFiles = data.types.map((_, type) => data.files.map((file) =>
  file.amounts[type].total.reduce((most, value) => Math.max(most, value), 0)));

/** What can be chosen: text, file, line and amounts, the most first. */
function entries() {
  const { type } = state;
  const of = state.list === "functions"
    ? data.functions.map((it, idx) => ({
      idx, file: it.file, line: it.line, own: it.own[type], total: it.total[type], name: it.name,
      place: `${data.files[it.file].short}${it.line > 0 ? `:${it.line}` : ""}`,
    }))
    : data.files.map((it, idx) => ({
      idx: -1, file: idx, line: 0, own: it.own[type], total: totalsOfFiles[type][idx], name: it.short, place: it.name,
    }));
  const wanted = state.search.toLowerCase();
  const isMeant = (it) => (state.hasLibraries || !data.files[it.file].is_library)
    && (wanted === "" || it.name.toLowerCase().includes(wanted) || data.files[it.file].name.toLowerCase().includes(wanted));
  const [first, then] = state.heat === "own" ? ["own", "total"] : ["total", "own"];
  return of.filter(isMeant).sort((a, b) => b[first] - a[first] || b[then] - a[then]);
}

function showHead() {
  byId("title").textContent = "Lines";
  byId("subtitle").textContent = data.subtitle;
  document.title = "Lines – pyagent";
  byId("made").textContent = `pyagent ${data.version}`;
  const { comments } = data;
  if (comments.length > 0) {
    byId("remarks").hidden = false;
    byId("remarks").querySelector("summary").textContent = comments.length === 1
      ? `Remark: ${comments[0]}`
      : `${comments.length} remarks: ${comments[0]} …`;
    byId("remarks").querySelector("ul").replaceChildren(...comments.map((comment) => element("li", comment)));
  }
  byId("type").replaceChildren(...data.types.map((_, type) => {
    const option = element("option", typeText(type));
    option.value = type;
    return option;
  }));
}

function isShown(entry) {
  return state.list === "functions" ? entry.idx === shownFunction : entry.file === shownFile;
}

function showNames() {
  const all = entries();
  const rows = all.slice(0, MAX_NAMES).map((entry) => {
    const button = document.createElement("button");
    const heat = entry[state.heat];
    const share = whole() > 0 ? 100 * heat / whole() : 0;
    button.style.setProperty("--share", `${Math.min(100, share).toFixed(2)}%`);
    button.dataset.own = entry.own;
    button.dataset.total = entry.total;
    button.title = `${shareText(heat, whole())}; of its own ${amountText(entry.own)}, with what it calls ${amountText(entry.total)}`;
    const [name, place] = [element("span", "", "name"), element("span", "", "file")];
    name.append(isolated(entry.name));
    place.append(isolated(entry.place));
    button.append(element("span", amountText(heat), "number"), name, place);
    button.setAttribute("aria-current", String(isShown(entry)));
    button.entry = entry;
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  byId("names").querySelector("ul").replaceChildren(...rows);
  byId("more").hidden = all.length <= MAX_NAMES;
  byId("more").textContent = `and ${(all.length - MAX_NAMES).toLocaleString("en-US")} more: search for them`;
  byId("found").textContent = state.search === "" ? "" : `${all.length.toLocaleString("en-US")} found`;
  return all;
}

function markCurrent() {
  for (const button of byId("names").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(isShown(button.entry)));
  }
}

/** Names of values that leave room for the source. */
const SHORT_KINDS = {
  alloc_space: "allocated", inuse_space: "in use", peak_space: "at peak", temporary_space: "temporary", alloc_objects: "objects",
  inuse_objects: "objects in use", fault_space: "touched", page_faults: "faults",
};

function shortText(type) {
  const { kind } = data.types[type];
  return Object.hasOwn(SHORT_KINDS, kind) ? SHORT_KINDS[kind] : typeText(type);
}

/** Of several values the others stand beside the chosen one, numbers of things behind their sizes; of time it is split. */
const hasSeveral = data.types.length > 2;

function others() {
  const isBeside = (type) => type !== state.type && data.types[type].kind !== "inuse_objects";
  const of = Array.from(data.types.keys()).filter(isBeside);
  return of.sort((a, b) => (data.types[a].unit === "count") - (data.types[b].unit === "count"));
}

function cell(text, className) {
  return element("td", text, className);
}

function heads() {
  const names = [["line", "line"], [shortText(state.type), "", typeText(state.type)], ["%", ""], ["split", "split"]];
  if (hasSeveral) {
    names.push(...others().map((type) => [shortText(type), "part", typeText(type)]));
  } else {
    names.push(["Python", "part"], ["native", "part"], ["kernel", "part"]);
  }
  names.push(["source", "code"]);
  return names.map(([text, className, title]) => {
    const head = element("th", text, className);
    head.scope = "col";
    head.title = title ?? "";
    return head;
  });
}

/** The parts of a line's amount, side by side; `most`: the largest that a line of the file has. */
function splitOf(column, idx, most) {
  const made = cell("", "split");
  const own = ownOf(column, idx);
  const parts = [
    ["python", column.python[idx]], ["native", column.native[idx]], ["kernel", column.kernel[idx]],
    ["calls", Math.max(0, column.total[idx] - own)],
  ];
  for (const [name, value] of parts) {
    if (value > 0 && most > 0) {
      const bar = element("i", "", name);
      bar.style.width = `${(90 * value / most).toFixed(1)}px`;
      made.append(bar);
    }
  }
  made.title = parts.filter(([, value]) => value > 0).map(([name, value]) => `${name} ${amountText(value)}`).join(", ");
  return made;
}

function numbersOf(file, idx, most) {
  const column = file.amounts[state.type];
  const some = (value, type) => (value > 0 ? valueText(value, data.types[type].unit) : "");
  const cells = [
    cell(some(column.total[idx], state.type)), cell(column.total[idx] > 0 ? shareText(column.total[idx], whole()) : ""),
    splitOf(column, idx, most),
  ];
  if (hasSeveral) {
    cells.push(...others().map((type) => cell(some(file.amounts[type].total[idx], type), "part")));
  } else {
    cells.push(...["python", "native", "kernel"].map((part) => cell(some(column[part][idx], state.type), "part")));
  }
  return cells;
}

/** Colours compare lines of all files, so that a file without much is pale. */
function hottestOfAll() {
  return data.files.reduce((most, file) => {
    const column = file.amounts[state.type];
    return column.total.reduce((sum, _, idx) => Math.max(sum, heatOf(column, idx)), most);
  }, 0);
}

/** The lines of a file, with a gap where lines are left out. */
function showFile() {
  const rows = byId("rows");
  const body = rows.querySelector("tbody");
  const isNone = shownFile < 0;
  byId("place").hidden = isNone;
  rows.hidden = isNone;
  byId("empty").hidden = !isNone;
  byId("empty").textContent = data.functions.length === 0
    ? "No Python function of those that were chosen has samples in this profile."
    : "Nothing is found: search for something else.";
  [byHeat, marked] = [[], -1];
  if (isNone) {
    body.replaceChildren();
    return;
  }
  const file = data.files[shownFile];
  byId("file").replaceChildren(isolated(file.name || "<no file>"));
  byId("problem").hidden = file.problem === "";
  byId("problem").textContent = file.problem;
  rows.querySelector("thead tr").replaceChildren(...heads());
  const column = file.amounts[state.type];
  const most = column.total.reduce((sum, value) => Math.max(sum, value), 0);
  const hottest = hottestOfAll();
  const sampled = new Map(file.at.map((row, idx) => [row, idx]));
  const nColumns = heads().length;
  const made = [];
  let before = 0;
  file.lines.forEach((number, row) => {
    if (number !== before + 1 && number !== 0) {
      const gap = document.createElement("tr");
      gap.className = "gap";
      const dots = cell("⋯");
      dots.colSpan = nColumns;
      gap.append(dots);
      made.push(gap);
    }
    before = number;
    const tr = document.createElement("tr");
    tr.dataset.line = number;
    const code = cell(file.text[row], "code");
    const idx = sampled.get(row);
    tr.append(cell(number === 0 ? "–" : String(number), "line"));
    if (idx === undefined) {
      const empty = cell("");
      empty.colSpan = nColumns - 2;
      tr.append(empty);
    } else {
      const heat = heatOf(column, idx);
      if (heat > 0) {
        byHeat.push([heat, tr]);
        // The eye tells steps of a root better than those of a line.
        code.style.setProperty("--heat-of", (0.62 * Math.sqrt(heat / hottest)).toFixed(3));
      }
      tr.dataset.total = column.total[idx];
      for (const part of ["python", "native", "kernel"]) {
        tr.dataset[part] = column[part][idx];
      }
      tr.append(...numbersOf(file, idx, most));
    }
    tr.append(code);
    made.push(tr);
  });
  body.replaceChildren(...made);
  byHeat.sort(([a], [b]) => b - a);
}

/** Marks a line, and shows it: where a function begins above, so that it is below. */
function mark(tr, block) {
  for (const other of byId("rows").querySelectorAll("tr.at")) {
    other.classList.remove("at");
  }
  tr.classList.add("at");
  tr.scrollIntoView({ block });
}

/** Goes on by so many lines in the order of heat. */
function step(by) {
  if (byHeat.length > 0) {
    marked = Math.min(byHeat.length - 1, Math.max(0, marked + by));
    mark(byHeat[marked][1], "center");
    byId("found").textContent = `line ${byHeat[marked][1].dataset.line}: ${amountText(byHeat[marked][0])}, ${shareText(byHeat[marked][0], whole())}, ${marked + 1} of ${byHeat.length}`;
  }
}

/** Shows an entry of the list. */
function openEntry(entry) {
  if (entry.file !== shownFile) {
    shownFile = entry.file;
    showFile();
  }
  shownFunction = entry.idx;
  marked = -1;
  const row = Array.from(byId("rows").querySelectorAll("tbody tr")).find((tr) => tr.dataset.line === String(entry.line));
  if (entry.line > 0 && row !== undefined) {
    mark(row, "start");
  } else {
    byId("rows").scrollTop = 0;
  }
  markCurrent();
  writeFragment();
}

/** After another choice: the list, and the same file with other figures. */
function refresh() {
  byId("type").value = state.type;
  byId("list").value = state.list;
  byId("heat").value = state.heat;
  byId("libraries").checked = state.hasLibraries;
  if (byId("search").value !== state.search) {
    byId("search").value = state.search;
  }
  const all = showNames();
  if (shownFile < 0 && all.length > 0) {
    showFile();
    openEntry(all[0]);
  } else {
    showFile();
    const row = byId("rows").querySelector(`tr[data-line="${shownFunction < 0 ? 0 : data.functions[shownFunction].line}"]`);
    if (row !== null && shownFunction >= 0) {
      mark(row, "start");
    }
    writeFragment();
  }
}

/** Keeps what is chosen in the address, so that it can be handed on. */
function writeFragment() {
  const parts = new URLSearchParams();
  const put = (name, value, usual) => value !== usual && parts.set(name, value);
  put("type", data.types[state.type].kind, data.types[data.main].kind);
  put("list", state.list, "functions");
  put("heat", state.heat, data.by_total ? "total" : "own");
  put("libraries", String(state.hasLibraries), "true");
  put("search", state.search, "");
  if (shownFile >= 0) {
    parts.set("file", shownFile);
  }
  if (shownFunction >= 0) {
    parts.set("function", shownFunction);
  }
  try {
    history.replaceState(null, "", `#${parts}`);
  } catch {
    // A browser takes only so many in a time, or none in a frame: the page works without.
  }
}

/** Takes what the address says, as far as it can be. */
function readFragment() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const oneOf = (name, values, usual) => (values.includes(parts.get(name)) ? parts.get(name) : usual);
  const index = (name, count) => {
    const text = parts.get(name) ?? "";
    return /^\d{1,9}$/.test(text) && Number(text) < count ? Number(text) : -1;
  };
  const type = data.types.findIndex(({ kind }) => kind === parts.get("type"));
  state.type = type < 0 ? data.main : type;
  state.list = oneOf("list", ["functions", "files"], "functions");
  state.heat = oneOf("heat", ["own", "total"], data.by_total ? "total" : "own");
  state.hasLibraries = parts.get("libraries") !== "false";
  state.search = (parts.get("search") ?? "").slice(0, 1000);
  shownFunction = index("function", data.functions.length);
  shownFile = shownFunction >= 0 ? data.functions[shownFunction].file : index("file", data.files.length);
  refresh();
}

function change(choices) {
  Object.assign(state, choices);
  refresh();
}

byId("type").addEventListener("change", ({ target }) => change({ type: Number(target.value) }));
byId("list").addEventListener("change", ({ target }) => change({ list: target.value }));
byId("heat").addEventListener("change", ({ target }) => change({ heat: target.value }));
byId("libraries").addEventListener("change", ({ target }) => change({ hasLibraries: target.checked }));
let searching = 0;
function searchFor(text) {
  state.search = text.slice(0, 1000);
  showNames();
  writeFragment();
}
byId("search").addEventListener("input", ({ target }) => {
  clearTimeout(searching);
  searching = setTimeout(() => searchFor(target.value), 120);
});
byId("names").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button !== null) {
    openEntry(button.entry);
  }
});
byId("names").addEventListener("keydown", (event) => {
  const buttons = Array.from(byId("names").querySelectorAll("button"));
  const at = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (to !== undefined) {
    buttons[Math.min(buttons.length - 1, Math.max(0, to))]?.focus();
    event.preventDefault();
  }
});
byId("next").addEventListener("click", () => step(1));
byId("previous").addEventListener("click", () => step(-1));
byId("theme").addEventListener("click", () => takeTheme(nextTheme()));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) {
    return;
  }
  const isTyping = event.target === byId("search");
  if (event.key === "Escape" && state.search !== "") {
    byId("search").value = "";
    searchFor("");
  } else if (isTyping && (event.key === "ArrowDown" || event.key === "Enter")) {
    clearTimeout(searching);
    searchFor(byId("search").value);
    byId("names").querySelector("button")?.focus();
  } else if (isTyping || event.target instanceof HTMLSelectElement) {
    return;
  } else if (event.key === "/") {
    byId("search").focus();
  } else if (event.key === "n") {
    step(1);
  } else if (event.key === "p") {
    step(-1);
  } else {
    return;
  }
  event.preventDefault();
});
window.addEventListener("hashchange", readFragment);

takeTheme("auto");
showHead();
readFragment();
