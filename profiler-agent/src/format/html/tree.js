// Which samples are shown, the tree that they make, and what each function has of them.

/** What is chosen. The same is in the address's fragment: see `page.js`. */
const state = {
  type: data.main,
  group: data.processes.length > 1 ? "process" : "none",
  view: "icicle",
  byLine: false,
  /** Places of those that are shown; `null`: all. */
  processes: null,
  threads: null,
  search: "",
  isRegex: false,
};

/** Whether a thread is shown. */
function isShown(thread) {
  return (state.processes === null || state.processes.has(data.threads.process[thread]))
    && (state.threads === null || state.threads.has(thread));
}

/** What a node of the tree stands for: a frame or function, or from `nKeys` on a process or thread. */
function nKeys() {
  return state.byLine ? nFrames : nFunctions;
}

function keyOfNode(node) {
  return state.byLine ? frameOf[node] : functionOfFrame(frameOf[node]);
}

/** The function of a key; -1: it is a process or thread. */
function functionOfKey(key) {
  if (key >= nKeys()) {
    return -1;
  }
  return state.byLine ? functionOfFrame(key) : key;
}

function lineOfKey(key) {
  return state.byLine ? data.frames.line[key] : data.functions.line[key];
}

function groupText(group) {
  if (state.group === "process") {
    return processText(group);
  }
  const process = data.processes.length > 1 ? `${processText(data.threads.process[group])} ` : "";
  return process + threadText(group);
}

const texts = new Map();

/** The text of a key, without the root's. */
function textOfKey(key) {
  let text = texts.get(key);
  if (text === undefined) {
    const fn = functionOfKey(key);
    text = fn < 0 ? groupText(key - nKeys()) : textOf(fn, lineOfKey(key));
    texts.set(key, text);
  }
  return text;
}

/**
 * The tree of what is shown: columns by node, the root first, each node behind its parent. `start` is where a node begins,
 * in the unit of the values; `first` and `last` are the range of its children in `children`, the largest first.
 */
let tree;

/** Nodes of a tree by their parent and key, in arrays that grow: a `Map` of a million of them is several times as slow. */
class Nodes {
  constructor() {
    this.count = 1;
    this.parent = new Int32Array(1024).fill(-1);
    this.key = new Int32Array(1024).fill(-1);
    this.depth = new Int32Array(1024);
    this.own = new Float64Array(1024);
    this.places = new Int32Array(4096);
  }

  /** The place of a child in the table: its own, or the free one that it would have. */
  placeOf(parent, key) {
    const mask = this.places.length - 1;
    let place = (Math.imul(parent, 0x9e3779b1) ^ Math.imul(key, 0x85ebca6b)) >>> 0;
    place = (place ^ (place >>> 15)) & mask;
    // 0 is free: the root is nobody's child.
    for (let node = this.places[place]; node !== 0; node = this.places[place]) {
      if (this.parent[node] === parent && this.key[node] === key) {
        break;
      }
      place = (place + 1) & mask;
    }
    return place;
  }

  child(parent, key) {
    const place = this.placeOf(parent, key);
    if (this.places[place] !== 0) {
      return this.places[place];
    }
    if (this.count === this.key.length) {
      this.grow();
      return this.child(parent, key);
    }
    const node = this.count;
    this.places[place] = node;
    [this.parent[node], this.key[node], this.depth[node]] = [parent, key, this.depth[parent] + 1];
    this.count += 1;
    return node;
  }

  grow() {
    for (const name of ["parent", "key", "depth", "own"]) {
      const old = this[name];
      this[name] = new old.constructor(2 * old.length);
      this[name].set(old);
    }
    this.places = new Int32Array(2 * this.places.length);
    for (let node = 1; node < this.count; node++) {
      this.places[this.placeOf(this.parent[node], this.key[node])] = node;
    }
  }
}

function buildTree() {
  texts.clear();
  const values = valuesOf(state.type);
  const built = new Nodes();
  const child = (node, key) => built.child(node, key);
  // For each node of the data the node of the tree, in the group that was last looked at.
  const memo = new Int32Array(nNodes);
  const seenIn = new Int32Array(nNodes).fill(-1);
  const path = [];
  let group = -1;
  let root = 0;
  for (let idx = 0; idx < nSamples; idx++) {
    const value = values[idx];
    const thread = threadOf[idx];
    if (value === 0 || !isShown(thread)) {
      continue;
    }
    const its = state.group === "none" ? 0 : state.group === "thread" ? thread : data.threads.process[thread];
    if (its !== group) {
      group = its;
      root = state.group === "none" ? 0 : child(0, nKeys() + group);
    }
    let node = nodeOf[idx];
    let at = root;
    if (state.view === "callers") {
      // The same stack in another thread leads to the same place.
      if (seenIn[node] === group) {
        at = memo[node];
      } else {
        for (let up = node; up !== 0; up = parentOf[up]) {
          at = child(at, keyOfNode(up));
        }
        [memo[node], seenIn[node]] = [at, group];
      }
    } else {
      while (node !== 0 && seenIn[node] !== group) {
        path.push(node);
        node = parentOf[node];
      }
      at = node === 0 ? root : memo[node];
      while (path.length > 0) {
        const next = path.pop();
        at = child(at, keyOfNode(next));
        [memo[next], seenIn[next]] = [at, group];
      }
    }
    built.own[at] += value;
  }
  tree = laidOut(built);
}

function laidOut(built) {
  const nTree = built.count;
  const [parent, key, depth, own] = ["parent", "key", "depth", "own"].map((name) => built[name].subarray(0, nTree));
  const total = own.slice();
  const first = new Int32Array(nTree + 1);
  for (let node = nTree - 1; node > 0; node--) {
    total[parent[node]] += total[node];
    first[parent[node] + 1] += 1;
  }
  for (let node = 0; node < nTree; node++) {
    first[node + 1] += first[node];
  }
  const children = new Int32Array(Math.max(0, nTree - 1));
  const filled = first.slice();
  for (let node = 1; node < nTree; node++) {
    children[filled[parent[node]]++] = node;
  }
  const start = new Float64Array(nTree);
  const before = (a, b) => total[b] - total[a] || compareTexts(textOfKey(key[a]), textOfKey(key[b])) || key[a] - key[b];
  for (let node = 0; node < nTree; node++) {
    const its = children.subarray(first[node], first[node + 1]);
    if (its.length > 1) {
      its.sort(before);
    }
    let at = start[node];
    for (const child of its) {
      start[child] = at;
      at += total[child];
    }
  }
  return { nTree, parent, key, depth, own, total, start, first, children };
}

/** The order of code units: the same for everybody. */
function compareTexts(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

function childrenOf(node) {
  return tree.children.subarray(tree.first[node], tree.first[node + 1]);
}

/** The nodes from the root's child to this one. */
function pathTo(node) {
  const path = [];
  for (let at = node; at > 0; at = tree.parent[at]) {
    path.push(at);
  }
  return path.reverse();
}

/** Of each function what is its own, and what it was in anywhere, once a stack: two columns, whatever the view. */
let amounts;

function buildAmounts() {
  const values = valuesOf(state.type);
  const ofNode = new Float64Array(nNodes);
  let whole = 0;
  for (let idx = 0; idx < nSamples; idx++) {
    if (values[idx] > 0 && isShown(threadOf[idx])) {
      ofNode[nodeOf[idx]] += values[idx];
      whole += values[idx];
    }
  }
  const own = new Float64Array(nFunctions);
  const total = new Float64Array(nFunctions);
  const sums = ofNode.slice();
  for (let node = nNodes - 1; node > 0; node--) {
    sums[parentOf[node]] += sums[node];
  }
  // Nodes are in the order in which a walk over the tree comes to them; these are the functions on its way.
  const depths = new Int32Array(nNodes);
  const onPath = new Int32Array(nFunctions);
  const path = [];
  for (let node = 1; node < nNodes; node++) {
    depths[node] = depths[parentOf[node]] + 1;
    while (path.length >= depths[node]) {
      onPath[path.pop()] -= 1;
    }
    const fn = functionOfFrame(frameOf[node]);
    own[fn] += ofNode[node];
    if (onPath[fn] === 0) {
      total[fn] += sums[node];
    }
    onPath[fn] += 1;
    path.push(fn);
  }
  amounts = { own, total, whole };
}

/** Whether a text is what is searched for; `null`: nothing is. */
let isFound = null;

/** Why the regular expression is none; empty: it is one. */
let searchError = "";

/** For each node of the tree whether it is found; and how much of everything, and of what is zoomed, is. */
let found = { nodes: null, whole: 0, inZoom: 0 };

function buildSearch() {
  [isFound, searchError] = [null, ""];
  if (state.search === "") {
    return;
  }
  if (!state.isRegex) {
    const text = state.search.toLowerCase();
    isFound = (name) => name.toLowerCase().includes(text);
    return;
  }
  try {
    const pattern = new RegExp(state.search, "i");
    isFound = (name) => pattern.test(name);
  } catch (error) {
    searchError = String(error.message);
  }
}

/** Looks for it in the tree. What is found above something that was found counts once. */
function findInTree(zoom) {
  found = { nodes: null, whole: 0, inZoom: 0 };
  if (isFound === null) {
    return;
  }
  const ofKey = new Map();
  const nodes = new Uint8Array(tree.nTree);
  const isCovered = new Uint8Array(tree.nTree);
  const inZoom = new Uint8Array(tree.nTree);
  inZoom[zoom] = 1;
  for (let node = 1; node < tree.nTree; node++) {
    const key = tree.key[node];
    let is = ofKey.get(key);
    if (is === undefined) {
      is = isFound(textOfKey(key)) ? 1 : 0;
      ofKey.set(key, is);
    }
    const parent = tree.parent[node];
    nodes[node] = is;
    isCovered[node] = is | isCovered[parent];
    inZoom[node] |= inZoom[parent];
    if (is && !isCovered[parent]) {
      found.whole += tree.total[node];
    }
    // Of what is zoomed all is found where a frame on the way to it is.
    if (inZoom[node] && isCovered[node] && (node === zoom || (inZoom[parent] && !isCovered[parent]))) {
      found.inZoom += tree.total[node];
    }
  }
  if (zoom === 0) {
    found.inZoom = found.whole;
  }
  found.nodes = nodes;
}
