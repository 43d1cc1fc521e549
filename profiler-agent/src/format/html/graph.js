// The picture: which frames are large enough to be seen, drawn on a canvas; the mouse and the keyboard over it.

const ROW = 19;
/** Frames narrower than so many pixels are left out, with all above them. */
const MIN_WIDTH = 0.5;
/** Room beside a frame's text, left and right. */
const MARGIN = 3;

const scroll = document.getElementById("scroll");
const canvas = document.getElementById("canvas");
const pen = canvas.getContext("2d");
const tip = document.getElementById("tip");
const statusLine = document.getElementById("status");

/** The node that fills the width, the one under the mouse, and the one that the keyboard is at; -1: none. */
let zoomed = 0;
let hovered = -1;
let selected = -1;

/** What is seen: nodes with their left edges and widths in pixels, by row; row 0 is the root's. */
let rows = [];
let width = 0;
/** Height of what is seen, and of all, when it was laid out. */
let lastHeight = 0;
let lastContent = 0;

/** Chooses what is large enough. */
function layOut() {
  width = scroll.clientWidth;
  rows = [];
  const put = (row, node, left, its) => {
    rows[row] ??= { nodes: [], lefts: [], widths: [] };
    rows[row].nodes.push(node);
    rows[row].lefts.push(left);
    rows[row].widths.push(its);
  };
  put(0, 0, 0, width);
  pathTo(zoomed).forEach((node, idx) => put(idx + 1, node, 0, width));
  const scale = tree.total[zoomed] > 0 ? width / tree.total[zoomed] : 0;
  const todo = [zoomed];
  while (todo.length > 0) {
    const node = todo.pop();
    for (const child of childrenOf(node)) {
      const its = tree.total[child] * scale;
      // The largest come first.
      if (its < MIN_WIDTH) {
        break;
      }
      put(tree.depth[child], child, (tree.start[child] - tree.start[zoomed]) * scale, its);
      todo.push(child);
    }
  }
  // A walk does not come to the frames of a row from left to right.
  for (const row of rows) {
    const order = Array.from(row.lefts.keys()).sort((a, b) => row.lefts[a] - row.lefts[b]);
    row.nodes = order.map((idx) => row.nodes[idx]);
    row.widths = order.map((idx) => row.widths[idx]);
    row.lefts = order.map((idx) => row.lefts[idx]);
  }
  document.getElementById("height").style.height = `${contentHeight()}px`;
  const ratio = window.devicePixelRatio || 1;
  const height = scroll.clientHeight;
  [lastHeight, lastContent] = [height, contentHeight()];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
}

function contentHeight() {
  return Math.max(scroll.clientHeight, rows.length * ROW + 4);
}

/** The upper edge of a row in the content. */
function topOf(row) {
  return state.view === "flame" ? contentHeight() - (row + 1) * ROW : row * ROW;
}

function rowAt(y) {
  return Math.floor(state.view === "flame" ? (contentHeight() - y) / ROW : y / ROW);
}

/** The node at a place of the canvas; -1: there is none. */
function nodeAt(x, y) {
  const row = rows[rowAt(y + scroll.scrollTop)];
  if (row === undefined) {
    return -1;
  }
  let [low, high] = [0, row.lefts.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (row.lefts[middle] <= x) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const idx = low - 1;
  return idx >= 0 && x < row.lefts[idx] + row.widths[idx] ? row.nodes[idx] : -1;
}

let colours;
const fills = new Map();

/** Colours of the theme, which has just been set. */
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["back", "text", "soft", "accent", "match", "match-text", "gap", "edge"];
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  colours.isDark = style.colorScheme === "dark";
  fills.clear();
}

function fillOf(origin, shade) {
  const { hue, saturation } = origin < 0 ? ORIGIN_GROUP : ORIGINS[origin];
  return colours.isDark
    ? `hsl(${hue} ${Math.round(saturation * 0.62)}% ${28 + shade * 8}%)`
    : `hsl(${hue} ${saturation}% ${68 + shade * 12}%)`;
}

/** The colour of a key: its hue by origin, its shade by name, so that neighbours differ. */
function fillOfKey(key) {
  let fill = fills.get(key);
  if (fill === undefined) {
    const fn = functionOfKey(key);
    fill = fn < 0 ? fillOf(-1, 0.5) : fillOfFunction(fn);
    fills.set(key, fill);
  }
  return fill;
}

function fillOfFunction(fn) {
  let hash = 0;
  for (const char of nameOf(fn).slice(0, 100)) {
    hash = (hash * 31 + char.codePointAt(0)) % 65521;
  }
  return fillOf(originOf(fn), (hash % 101) / 100);
}

/** The name of a node: of the root what is shown. */
function nodeText(node) {
  return node === 0 ? "all" : textOfKey(tree.key[node]);
}

const widths = new Map();

function measured(text) {
  let its = widths.get(text);
  if (its === undefined) {
    if (widths.size > 50000) {
      widths.clear();
    }
    its = pen.measureText(text).width;
    widths.set(text, its);
  }
  return its;
}

/** As much of a text as fits. */
function fitting(text, room) {
  // No letter is so narrow that more of them would fit.
  const short = text.length * 2 > room ? text.slice(0, Math.ceil(room / 2)) : text;
  if (short === text && measured(text) <= room) {
    return text;
  }
  let [low, high] = [0, short.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pen.measureText(`${short.slice(0, middle)}…`).width <= room) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  // Not half of a character.
  if (low > 0 && /[\uD800-\uDBFF]/.test(short[low - 1])) {
    low -= 1;
  }
  return low > 0 ? `${short.slice(0, low)}…` : "";
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = colours.back;
  pen.fillRect(0, 0, width, canvas.height);
  pen.font = '12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  pen.textBaseline = "middle";
  pen.direction = "ltr";
  const offset = scroll.scrollTop;
  const height = scroll.clientHeight;
  rows.forEach((row, depth) => {
    const top = topOf(depth) - offset;
    if (top > height || top + ROW < 0) {
      return;
    }
    for (let idx = 0; idx < row.nodes.length; idx++) {
      drawFrame(row.nodes[idx], row.lefts[idx], top, row.widths[idx]);
    }
  });
  for (const [node, colour] of [[hovered, colours.text], [selected, colours.accent]]) {
    const box = boxOf(node);
    if (box !== null) {
      pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.strokeRect(box.left + 1, box.top - offset + 1, Math.max(1, box.width - 2), ROW - 3);
    }
  }
}

function drawFrame(node, left, top, its) {
  const isMatch = found.nodes !== null && found.nodes[node] === 1;
  const isAbove = node !== zoomed && tree.depth[node] < tree.depth[zoomed];
  // Neighbours are told apart by a line of a pixel, where there is room for one.
  const inner = its > 3 ? its - 1 : its;
  pen.globalAlpha = (isAbove ? 0.6 : 1) * (found.nodes !== null && !isMatch ? 0.4 : 1);
  pen.fillStyle = node === 0 ? colours.gap : isMatch ? colours.match : fillOfKey(tree.key[node]);
  pen.fillRect(left, top, inner, ROW - 1);
  pen.globalAlpha = found.nodes !== null && !isMatch ? 0.6 : 1;
  const room = inner - 2 * MARGIN;
  if (room > 12) {
    const text = fitting(nodeText(node), room);
    if (text !== "") {
      pen.fillStyle = isMatch ? colours["match-text"] : colours.text;
      pen.fillText(text, left + MARGIN, top + ROW / 2);
    }
  }
  pen.globalAlpha = 1;
}

/** Where a node is in the content; `null`: it is not seen. */
function boxOf(node) {
  if (node < 0) {
    return null;
  }
  const depth = tree.depth[node];
  const idx = rows[depth] === undefined ? -1 : rows[depth].nodes.indexOf(node);
  return idx < 0 ? null : { left: rows[depth].lefts[idx], width: rows[depth].widths[idx], top: topOf(depth) };
}

let isDrawingAsked = false;

/** Draws before the next picture. */
function askForDrawing() {
  if (!isDrawingAsked) {
    isDrawingAsked = true;
    requestAnimationFrame(() => {
      isDrawingAsked = false;
      draw();
    });
  }
}

/** After the window has become another one; a flame stays where it is from its root. */
function resized() {
  const fromBottom = lastContent - lastHeight - scroll.scrollTop;
  layOut();
  if (state.view === "flame") {
    scroll.scrollTop = contentHeight() - scroll.clientHeight - fromBottom;
  }
  askForDrawing();
}

/** To where the zoomed frame is: of an icicle the top, of a flame the bottom. */
function scrollToZoomed() {
  const top = topOf(tree.depth[zoomed]);
  scroll.scrollTop = state.view === "flame"
    ? top + ROW * 2 - scroll.clientHeight
    : tree.depth[zoomed] < 4 ? 0 : top - ROW * 3;
}

/** What is told of a node: its name, place, and rows of figures (title, value, share of all, share of what is zoomed). */
function factsOf(node) {
  const { unit } = data.types[state.type];
  const figures = (title, value) => [
    title, valueText(value, unit), shareText(value, tree.total[0]), shareText(value, tree.total[zoomed]),
  ];
  const facts = { name: nodeText(node), place: "", kind: "", figures: [figures("Total", tree.total[node])] };
  const key = tree.key[node];
  const fn = node === 0 ? -1 : functionOfKey(key);
  if (state.view !== "callers") {
    facts.figures.push(figures("Self", tree.own[node]));
  }
  if (fn >= 0) {
    facts.name = nameOf(fn);
    facts.place = placeOf(fn, lineOfKey(key), false);
    facts.kind = ORIGINS[originOf(fn)].title;
    facts.figures.push(figures("Everywhere, total", amounts.total[fn]), figures("Everywhere, self", amounts.own[fn]));
  } else if (node > 0) {
    const group = key - nKeys();
    const process = state.group === "process" ? group : data.threads.process[group];
    facts.place = data.processes[process].about;
  }
  return facts;
}

function showTip(node, x, y) {
  if (node < 0) {
    tip.hidden = true;
    return;
  }
  const facts = factsOf(node);
  const name = element("b", "");
  name.append(isolated(facts.name));
  tip.replaceChildren(name);
  for (const line of facts.place.split("\n").slice(0, 12).filter((line) => line !== "")) {
    const place = element("span", "", "soft");
    place.append(isolated(line));
    tip.append(place);
  }
  if (facts.kind !== "") {
    tip.append(element("span", facts.kind, "soft"));
  }
  const list = document.createElement("dl");
  const isZoomed = zoomed !== 0;
  list.append(...["", "", "of all", isZoomed ? "of zoomed" : ""].map((text) => element("dd", text, "head")));
  for (const [title, value, ofAll, ofZoomed] of facts.figures) {
    list.append(element("dt", title), element("dd", value), element("dd", ofAll), element("dd", isZoomed ? ofZoomed : ""));
  }
  tip.append(list);
  [tip.dataset.total, tip.dataset.self] = [tree.total[node], tree.own[node]];
  tip.hidden = false;
  const { width: its, height } = tip.getBoundingClientRect();
  const left = x + 14 + its > window.innerWidth ? x - 14 - its : x + 14;
  const top = y + 18 + height > window.innerHeight ? y - 12 - height : y + 18;
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}

function showStatus(node) {
  if (node < 0) {
    return;
  }
  const facts = factsOf(node);
  const figures = facts.figures.map(([title, value, ofAll, ofZoomed]) =>
    `${title} ${value}, ${ofAll}${zoomed === 0 ? "" : `, ${ofZoomed} of zoomed`}`);
  statusLine.replaceChildren(isolated(facts.name), " · ");
  if (facts.place !== "") {
    statusLine.append(isolated(facts.place.split("\n")[0]), " · ");
  }
  statusLine.append(figures.join(" · "));
}

function select(node) {
  selected = node;
  showStatus(node);
  const box = boxOf(node);
  if (box !== null) {
    if (box.top < scroll.scrollTop) {
      scroll.scrollTop = box.top - ROW;
    } else if (box.top + ROW > scroll.scrollTop + scroll.clientHeight) {
      scroll.scrollTop = box.top + 2 * ROW - scroll.clientHeight;
    }
  }
  askForDrawing();
}

/** The frame beside a node in its row: `step` is 1 or -1. */
function beside(node, step) {
  const row = rows[tree.depth[node]];
  const idx = row === undefined ? -1 : row.nodes.indexOf(node);
  return row?.nodes[idx + step] ?? node;
}

/** The largest child that is seen. */
function below(node) {
  const path = pathTo(zoomed);
  const depth = tree.depth[node];
  if (depth < path.length && (node === 0 || path[depth - 1] === node)) {
    return path[depth];
  }
  const [child] = childrenOf(node);
  return child !== undefined && boxOf(child) !== null ? child : node;
}

function moveBy(key) {
  if (boxOf(selected) === null) {
    return zoomed;
  }
  const isDeeper = state.view === "flame" ? key === "ArrowUp" : key === "ArrowDown";
  switch (key) {
    case "ArrowLeft": return beside(selected, -1);
    case "ArrowRight": return beside(selected, 1);
    case "Home": return 0;
    default: return isDeeper ? below(selected) : Math.max(0, tree.parent[selected]);
  }
}
