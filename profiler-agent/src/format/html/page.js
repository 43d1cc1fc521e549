// Puts the page together: what is chosen, where it is kept (the address's fragment), and what happens then.

let isSideShown = true;

/** What the line beneath the picture says at first. */
const HINT = statusLine.textContent;

const refreshProcesses = makeFilter({
  id: "processes", title: "Processes", titles: "processes", count: data.processes.length,
  text: processText, about: (idx) => data.processes[idx].about,
  owner: (thread) => data.threads.process[thread], isOffered: () => true,
  chosen: () => state.processes, choose: (wanted) => change({ processes: wanted, threads: null }),
});
const refreshThreads = makeFilter({
  id: "threads", title: "Threads", titles: "threads", count: nThreads,
  text: (idx) => threadText(idx) + (data.processes.length > 1 ? ` of ${processText(data.threads.process[idx])}` : ""),
  about: () => "",
  owner: (thread) => thread,
  isOffered: (idx) => state.processes === null || state.processes.has(data.threads.process[idx]),
  chosen: () => state.threads, choose: (wanted) => change({ threads: wanted }),
});

/** The tree was built for these choices; and what was zoomed then, by what it stands for. */
function zoomKeys() {
  return pathTo(zoomed).map((node) => tree.key[node]);
}

/** The node at the end of these keys, or as far as they lead. */
function nodeOfKeys(keys) {
  let node = 0;
  for (const key of keys) {
    const next = childrenOf(node).find((child) => tree.key[child] === key);
    if (next === undefined) {
      break;
    }
    node = next;
  }
  return node;
}

/** Everything, after another choice. What was zoomed stays so where it is still there. */
function rebuild(keys) {
  buildTree();
  buildAmounts();
  zoomed = nodeOfKeys(keys);
  [hovered, selected] = [-1, -1];
  tip.hidden = true;
  // What it says of a frame is no longer so.
  statusLine.textContent = HINT;
  showAll();
}

function showAll() {
  buildSearch();
  findInTree(zoomed);
  byId("type").value = state.type;
  byId("group").value = state.group;
  byId("view").value = state.view;
  byId("lines").checked = state.byLine;
  byId("regex").checked = state.isRegex;
  if (byId("search").value !== state.search) {
    byId("search").value = state.search;
  }
  const empty = byId("empty");
  empty.hidden = tree.total[0] > 0;
  empty.textContent = nSamples === 0
    ? "No samples: the selected processes did nothing of what was recorded."
    : "Nothing is left: choose other processes, threads or values.";
  showSide();
  refreshProcesses();
  refreshThreads();
  showLegend();
  showFunctions();
  showZoom();
}

function showZoom() {
  showPath();
  showFound();
  layOut();
  scrollToZoomed();
  askForDrawing();
}

function showSide() {
  byId("functions").hidden = !isSideShown;
  byId("side").setAttribute("aria-pressed", String(isSideShown));
}

/** Takes other choices. */
function change(choices) {
  // Keys are other ones where lines or groups are.
  const isSame = !("byLine" in choices || "group" in choices || "view" in choices);
  const keys = isSame ? zoomKeys() : [];
  Object.assign(state, choices);
  rebuild(keys);
  writeFragment(false);
}

function zoomTo(node) {
  if (node < 0 || node === zoomed) {
    return;
  }
  zoomed = node;
  tip.hidden = true;
  hovered = -1;
  findInTree(zoomed);
  showZoom();
  writeFragment(true);
}

function searchFor(text, isRegex) {
  [state.search, state.isRegex] = [text.slice(0, 1000), isRegex];
  showSearch();
  writeFragment(false);
}

function showSearch() {
  buildSearch();
  findInTree(zoomed);
  byId("regex").checked = state.isRegex;
  showFound();
  showFunctions();
  askForDrawing();
}

/** Places in a list as text: those that are chosen, or behind `!` those that are not. */
function setText(set, count) {
  if (set.size * 2 <= count) {
    return Array.from(set).sort((a, b) => a - b).join(".");
  }
  const others = [];
  for (let idx = 0; idx < count; idx++) {
    if (!set.has(idx)) {
      others.push(idx);
    }
  }
  return `!${others.join(".")}`;
}

/** The set of such a text; `null`: all, or the text is none. */
function readSet(text, count) {
  if (text === null || !/^!?[0-9.]*$/.test(text)) {
    return null;
  }
  const numbers = text.replace("!", "").split(".").filter((part) => part !== "").map(Number).filter((idx) => idx < count);
  const named = new Set(numbers);
  if (!text.startsWith("!")) {
    return named.size === count ? null : named;
  }
  const others = new Set();
  for (let idx = 0; idx < count; idx++) {
    if (!named.has(idx)) {
      others.add(idx);
    }
  }
  return others.size === count ? null : others;
}

/** Longest way to what is zoomed that an address keeps. */
const MAX_ZOOM_KEYS = 400;

/** Keeps what is chosen in the address, so that it can be handed on; `isStep`: the way back leads to what was before. */
function writeFragment(isStep) {
  const parts = new URLSearchParams();
  const put = (name, value, usual) => {
    if (value !== usual) {
      parts.set(name, value);
    }
  };
  put("type", data.types[state.type].kind, data.types[data.main].kind);
  put("roots", state.group, data.processes.length > 1 ? "process" : "none");
  put("view", state.view, "icicle");
  put("lines", String(state.byLine), "false");
  if (state.processes !== null) {
    parts.set("processes", setText(state.processes, data.processes.length));
  }
  if (state.threads !== null) {
    parts.set("threads", setText(state.threads, nThreads));
  }
  put("search", state.search, "");
  put("regex", String(state.isRegex), "false");
  const keys = zoomKeys();
  if (keys.length > 0 && keys.length <= MAX_ZOOM_KEYS) {
    parts.set("zoom", keys.map((key) => key.toString(36)).join("."));
  }
  const fragment = `#${parts}`;
  if (fragment !== (location.hash || "#")) {
    try {
      history[isStep ? "pushState" : "replaceState"](null, "", fragment);
    } catch {
      // A browser takes only so many in a time, or none in a frame: the page works without.
    }
  }
}

/** Takes what the address says, as far as it can be. */
function readFragment() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const type = data.types.findIndex(({ kind }) => kind === parts.get("type"));
  const oneOf = (name, values, usual) => (values.includes(parts.get(name)) ? parts.get(name) : usual);
  state.type = type < 0 ? data.main : type;
  state.group = oneOf("roots", ["process", "thread", "none"], data.processes.length > 1 ? "process" : "none");
  state.view = oneOf("view", ["icicle", "flame", "callers"], "icicle");
  state.byLine = parts.get("lines") === "true";
  state.processes = readSet(parts.get("processes"), data.processes.length);
  state.threads = readSet(parts.get("threads"), nThreads);
  state.search = (parts.get("search") ?? "").slice(0, 1000);
  state.isRegex = parts.get("regex") === "true";
  const keys = (parts.get("zoom") ?? "").split(".").filter((part) => part !== "").map((part) => Number.parseInt(part, 36));
  rebuild(keys);
}

function setTheme(wanted) {
  takeTheme(wanted);
  readColours();
}

/** Copies a node's name. Browsers that have no clipboard for this page copy what is marked. */
async function copyName(node) {
  if (node < 0) {
    return;
  }
  const text = nodeText(node);
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    isCopied = document.execCommand("copy");
    area.remove();
    canvas.focus();
  }
  statusLine.replaceChildren(isCopied ? "Copied: " : "The browser does not let this page copy: ", isolated(text));
}

canvas.addEventListener("pointermove", (event) => {
  const node = nodeAt(event.offsetX, event.offsetY);
  if (event.pointerType !== "touch") {
    showTip(node, event.clientX, event.clientY);
  }
  if (node !== hovered) {
    hovered = node;
    showStatus(node);
    askForDrawing();
  }
});
canvas.addEventListener("pointerleave", () => {
  hovered = -1;
  tip.hidden = true;
  askForDrawing();
});
canvas.addEventListener("click", (event) => {
  const node = nodeAt(event.offsetX, event.offsetY);
  if (node >= 0) {
    zoomTo(node);
    select(node);
  }
});
canvas.addEventListener("contextmenu", (event) => {
  const node = nodeAt(event.offsetX, event.offsetY);
  if (node > 0 && !event.shiftKey) {
    event.preventDefault();
    copyName(node);
  }
});
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) {
    return;
  }
  if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home"].includes(event.key)) {
    select(moveBy(event.key));
  } else if (event.key === "Enter" || event.key === " ") {
    const node = selected;
    zoomTo(node);
    select(node);
  } else if (event.key === "Backspace") {
    zoomTo(tree.parent[zoomed]);
    select(zoomed);
  } else if (event.key === "c") {
    copyName(selected >= 0 ? selected : hovered);
  } else {
    return;
  }
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof HTMLInputElement && event.target.type !== "checkbox";
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
    byId("search").focus();
    event.preventDefault();
  } else if (event.key === "Escape") {
    const open = document.querySelector(".menu[open]");
    if (open !== null) {
      open.open = false;
      open.querySelector("summary").focus();
    } else if (event.target === byId("search") && state.search !== "") {
      byId("search").value = "";
      searchFor("", state.isRegex);
    } else {
      zoomTo(0);
    }
  }
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".menu[open]")) {
    // A button that its own click has replaced is nowhere.
    if (!menu.contains(event.target) && event.target.isConnected) {
      menu.open = false;
    }
  }
});
scroll.addEventListener("scroll", () => {
  tip.hidden = true;
  askForDrawing();
});
byId("type").addEventListener("change", ({ target }) => change({ type: Number(target.value) }));
byId("group").addEventListener("change", ({ target }) => change({ group: target.value }));
byId("view").addEventListener("change", ({ target }) => change({ view: target.value }));
byId("lines").addEventListener("change", ({ target }) => change({ byLine: target.checked }));
byId("reset").addEventListener("click", () => zoomTo(0));
byId("path").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button !== null) {
    zoomTo(Number(button.dataset.node));
  }
});
let searching = 0;
byId("search").addEventListener("input", ({ target }) => {
  clearTimeout(searching);
  searching = setTimeout(() => searchFor(target.value, state.isRegex), 120);
});
byId("regex").addEventListener("change", ({ target }) => searchFor(state.search, target.checked));
byId("functions").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button?.dataset.sort !== undefined) {
    sortBy = button.dataset.sort;
    showFunctions();
  } else if (button?.dataset.function !== undefined) {
    const fn = Number(button.dataset.function);
    // As far as it is the same for each line of it.
    const text = textOf(fn, 0).replace(/\)$/, "");
    const wanted = state.search === text ? "" : text;
    byId("search").value = wanted;
    searchFor(wanted, false);
  }
});
byId("side").addEventListener("click", () => {
  isSideShown = !isSideShown;
  showSide();
  resized();
});
byId("theme").addEventListener("click", () => {
  setTheme(nextTheme());
  showLegend();
  showFunctions();
  askForDrawing();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  setTheme(theme);
  showLegend();
  showFunctions();
  askForDrawing();
});
window.addEventListener("hashchange", readFragment);
new ResizeObserver(() => {
  if (tree !== undefined) {
    resized();
  }
}).observe(scroll);

setTheme("auto");
showHead();
readFragment();
