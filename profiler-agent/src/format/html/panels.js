// What stands around the picture: the header, the filters, the list of functions, the legend and the path to what is zoomed.

const MAX_ROWS = 300;

/** What the profile is, whatever is chosen. */
function showHead() {
  const { processes, comments } = data;
  const whose = processes.length === 1 ? processText(0) : plural(processes.length, "process", "processes");
  const about = `${typeText(data.main)} of ${whose}`;
  byId("title").replaceChildren(isolated(about));
  document.title = `${about} – pyagent`;
  const noun = (data.types[0].kind || "values").replaceAll("_", " ");
  const count = valuesOf(0).reduce((sum, value) => sum + value, 0);
  const started = new Date(data.start * 1000);
  const facts = [
    data.types[0].unit === "count" ? `${count.toLocaleString("en-US")} ${noun}` : "",
    nThreads > 1 ? plural(nThreads, "thread", "threads") : "",
    data.seconds > 0 ? `in ${valueText(data.seconds * 1e9, "nanoseconds")}` : "",
    data.period > 0 ? `one each ${valueText(data.period, data.period_type.unit)}` : "",
    data.start > 0 && Number.isFinite(started.getTime()) ? `from ${started.toISOString().slice(0, 19).replace("T", " ")} UTC` : "",
  ];
  byId("subtitle").textContent = facts.filter((fact) => fact !== "").join(" · ");
  byId("made").textContent = `pyagent ${data.version}`;
  const remarks = byId("remarks");
  if (comments.length > 0) {
    remarks.hidden = false;
    const [first] = comments;
    remarks.querySelector("summary").textContent = comments.length === 1
      ? `Remark: ${first}`
      : `${comments.length} remarks: ${first} …`;
    remarks.querySelector("ul").replaceChildren(...comments.map((comment) => element("li", comment)));
  }
  byId("type").replaceChildren(...data.types.map((_, type) => {
    const option = element("option", typeText(type));
    option.value = type;
    return option;
  }));
}

/** The colours with the share of what is shown that is each one's own. */
function showLegend() {
  const sums = new Float64Array(ORIGINS.length);
  const isThere = new Set();
  for (let fn = 0; fn < nFunctions; fn++) {
    sums[originOf(fn)] += amounts.own[fn];
    if (amounts.total[fn] > 0) {
      isThere.add(originOf(fn));
    }
  }
  const items = ORIGINS.map((origin, idx) => {
    const item = document.createElement("li");
    item.title = `${origin.title}; the share that is its own`;
    const colour = document.createElement("i");
    colour.style.background = fillOf(idx, 0.5);
    item.append(colour, `${origin.name} ${shareText(sums[idx], amounts.whole)}`);
    return item;
  });
  byId("legend").replaceChildren(...items.filter((_, idx) => isThere.has(idx)));
}

let sortBy = "self";

/** The functions, of what is shown the largest first. */
function showFunctions() {
  const column = sortBy === "self" ? amounts.own : amounts.total;
  const other = sortBy === "self" ? amounts.total : amounts.own;
  let chosen = [];
  for (let fn = 0; fn < nFunctions; fn++) {
    if (amounts.total[fn] > 0 && (isFound === null || isFound(textOf(fn, data.functions.line[fn])))) {
      chosen.push(fn);
    }
  }
  const all = chosen.length;
  chosen.sort((a, b) => column[b] - column[a] || other[b] - other[a] || a - b);
  chosen = chosen.slice(0, MAX_ROWS);
  const { unit } = data.types[state.type];
  const number = (value) => {
    const cell = element("td", shareText(value, amounts.whole), "number");
    cell.title = valueText(value, unit);
    cell.style.setProperty("--share", `${amounts.whole > 0 ? 100 * value / amounts.whole : 0}%`);
    return cell;
  };
  const lines = chosen.map((fn) => {
    const line = document.createElement("tr");
    const name = document.createElement("td");
    const button = document.createElement("button");
    const colour = element("i", "", "colour");
    colour.style.background = fillOfFunction(fn);
    const place = placeOf(fn, data.functions.line[fn], true);
    button.append(colour, isolated(nameOf(fn)));
    if (place !== "") {
      const file = element("span", " ", "file");
      file.append(isolated(place));
      button.append(file);
    }
    button.title = `${nameOf(fn)}\n${placeOf(fn, data.functions.line[fn], false)}\nClick to search for it`;
    button.dataset.function = fn;
    name.append(button);
    line.append(number(amounts.own[fn]), number(amounts.total[fn]), name);
    [line.dataset.self, line.dataset.total] = [amounts.own[fn], amounts.total[fn]];
    return line;
  });
  byId("functions").querySelector("tbody").replaceChildren(...lines);
  byId("more").textContent = all > chosen.length
    ? `${plural(all - chosen.length, "function more", "functions more")}: search for a part of the name`
    : "";
  for (const button of byId("functions").querySelectorAll("[data-sort]")) {
    button.setAttribute("aria-pressed", String(button.dataset.sort === sortBy));
  }
}

/** The way to what is zoomed; of a long one the ends. */
function showPath() {
  const path = [0, ...pathTo(zoomed)];
  const button = (node) => {
    const made = document.createElement("button");
    made.append(isolated(nodeText(node)));
    made.title = nodeText(node);
    made.dataset.node = node;
    if (node === zoomed) {
      made.setAttribute("aria-current", "true");
    }
    return made;
  };
  const shown = path.length > 7 ? [...path.slice(0, 2), -1, ...path.slice(-4)] : path;
  const parts = shown.flatMap((node, idx) => {
    const part = node < 0 ? element("span", `… ${path.length - 6} more …`) : button(node);
    return idx === 0 ? [part] : [element("span", "›"), part];
  });
  byId("path").replaceChildren(...parts);
  const { unit } = data.types[state.type];
  const total = tree.total[zoomed];
  byId("path").append(` ${valueText(total, unit)}${zoomed === 0 ? "" : ` (${shareText(total, tree.total[0])} of what is shown)`}`);
  byId("path").scrollTop = byId("path").scrollHeight;
  byId("reset").disabled = zoomed === 0;
}

function showFound() {
  const output = byId("found");
  output.classList.toggle("wrong", searchError !== "");
  if (searchError !== "") {
    output.textContent = searchError;
  } else if (isFound === null) {
    output.textContent = "";
  } else {
    const { unit } = data.types[state.type];
    const ofZoomed = zoomed === 0 ? "" : `; ${shareText(found.inZoom, tree.total[zoomed])} of zoomed`;
    output.textContent = `found in ${shareText(found.whole, tree.total[0])} (${valueText(found.whole, unit)})${ofZoomed}`;
  }
  output.dataset.whole = found.whole;
  output.dataset.zoomed = found.inZoom;
}

/**
 * A filter: a list of things with their shares, of which some are chosen.
 * `chosen()` is a set, or `null` for all; `choose` takes one.
 */
function makeFilter({ id, title, titles, count, text, about, owner, isOffered, chosen, choose }) {
  const menu = byId(id);
  const list = menu.querySelector(".list");
  const top = element("div", "", "top");
  const input = document.createElement("input");
  [input.type, input.placeholder] = ["search", "Part of the name"];
  input.setAttribute("aria-label", `Part of the name of ${titles}`);
  const all = element("button", "All");
  const none = element("button", "None");
  none.title = "None, or of those that are listed none";
  top.append(input, all, none);
  const items = document.createElement("ul");
  const rest = element("p", "", "share");
  list.append(top, items, rest);

  const isChosen = (idx) => chosen() === null || chosen().has(idx);
  const sums = () => {
    const values = valuesOf(state.type);
    const of = new Float64Array(count);
    for (let idx = 0; idx < nSamples; idx++) {
      of[owner(threadOf[idx])] += values[idx];
    }
    return of;
  };
  const listed = () => {
    const part = input.value.toLowerCase();
    const its = [];
    for (let idx = 0; idx < count; idx++) {
      if (isOffered(idx) && (part === "" || `${text(idx)}\n${about(idx)}`.toLowerCase().includes(part))) {
        its.push(idx);
      }
    }
    return its;
  };
  const set = (wanted) => choose(wanted.size === count ? null : wanted);
  const current = () => new Set(chosen() ?? Array.from({ length: count }, (_, idx) => idx));

  const show = () => {
    const n = chosen() === null ? count : chosen().size;
    const [only] = chosen() ?? [0];
    const summary = menu.querySelector("summary");
    summary.textContent = n === count ? `${title}: all ${count}` : n === 1 ? `${title}: ${text(only)}` : `${title}: ${n} of ${count}`;
    summary.title = summary.textContent;
    if (!menu.open) {
      return;
    }
    const of = sums();
    const whole = of.reduce((sum, value) => sum + value, 0);
    const its = listed().sort((a, b) => of[b] - of[a] || a - b);
    items.replaceChildren(...its.slice(0, MAX_ROWS).map((idx) => {
      const item = document.createElement("li");
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = isChosen(idx);
      box.dataset.idx = idx;
      const only = element("button", "only");
      only.dataset.only = idx;
      only.setAttribute("aria-label", `only ${text(idx)}`);
      label.append(box, isolated(text(idx)));
      label.title = `${text(idx)}\n${about(idx)}`;
      item.append(label, element("span", shareText(of[idx], whole), "share"), only);
      return item;
    }));
    rest.textContent = its.length > MAX_ROWS ? `${its.length - MAX_ROWS} more: type a part of the name` : "";
  };
  items.addEventListener("change", ({ target }) => {
    const wanted = current();
    const idx = Number(target.dataset.idx);
    if (target.checked) {
      wanted.add(idx);
    } else {
      wanted.delete(idx);
    }
    set(wanted);
  });
  items.addEventListener("click", ({ target }) => {
    if (target.dataset.only !== undefined) {
      set(new Set([Number(target.dataset.only)]));
    }
  });
  const change = (isIn) => {
    const wanted = current();
    for (const idx of listed()) {
      if (isIn) {
        wanted.add(idx);
      } else {
        wanted.delete(idx);
      }
    }
    set(wanted);
  };
  all.addEventListener("click", () => change(true));
  none.addEventListener("click", () => change(false));
  input.addEventListener("input", show);
  menu.addEventListener("toggle", show);
  return show;
}
