// What the page is about: the tables of the block `data`.

const ORIGINS = [
  { name: "program", title: "Python, the program's own", hue: 14, saturation: 82 },
  { name: "package", title: "Python, an installed package", hue: 208, saturation: 72 },
  { name: "standard library", title: "Python, the standard library", hue: 47, saturation: 78 },
  { name: "native", title: "machine code", hue: 128, saturation: 42 },
  { name: "kernel", title: "the kernel", hue: 276, saturation: 48 },
  { name: "remark", title: "a remark of pyagent, not a function", hue: 0, saturation: 0 },
];
const ORIGIN_GROUP = { name: "process or thread", title: "", hue: 222, saturation: 14 };
const [PROGRAM, PACKAGE, LIBRARY, NATIVE, KERNEL, REMARK] = ORIGINS.keys();

const nNodes = data.nodes.frame.length + 1;
const nFunctions = data.functions.name.length;
const nFrames = data.frames.function.length;

/** Parent of each node; each comes behind its parent. */
const parentOf = new Int32Array(nNodes);
/** Frame of each node. */
const frameOf = new Int32Array(nNodes).fill(-1);
(() => {
  const path = [0];
  let depth = 0;
  for (let idx = 0; idx + 1 < nNodes; idx++) {
    depth -= data.nodes.up[idx];
    parentOf[idx + 1] = path[depth];
    frameOf[idx + 1] = data.nodes.frame[idx];
    depth += 1;
    path[depth] = idx + 1;
  }
})();

/** Thread, node and values of each sample, in the order of threads. */
const nSamples = data.samples.node.length;
const threadOf = new Int32Array(nSamples);
const nodeOf = new Int32Array(nSamples);
(() => {
  let idx = 0;
  data.samples.per_thread.forEach((count, thread) => {
    let node = 0;
    for (const end = idx + count; idx < end; idx++) {
      node += data.samples.node[idx];
      threadOf[idx] = thread;
      nodeOf[idx] = node;
    }
  });
})();

const nThreads = data.threads.tid.length;

/** The values of a type, of each sample. What is below 0 has no place in a picture, and counts as nothing. */
function valuesOf(type) {
  const column = data.samples.values[type];
  const from = column.values ?? data.samples.values[0].values;
  const times = column.values ? 1 : column.times;
  return Float64Array.from(from, (value) => Math.max(0, value * times));
}

function functionOfFrame(frame) {
  return data.frames.function[frame];
}

function nameOf(fn) {
  return data.strings[data.functions.name[fn]];
}

function originOf(fn) {
  return data.functions.origin[fn];
}

/** Where a function is, with this line: `app.py:7`, `libz.so.1`; empty when that is not known. */
function placeOf(fn, line, isShort) {
  const file = data.strings[(isShort ? data.functions.short : data.functions.file)[fn]];
  return file && line && originOf(fn) <= LIBRARY ? `${file}:${line}` : file;
}

/** The text of a function, as in the other formats of pyagent; `line`: the one to show. */
function textOf(fn, line) {
  const name = nameOf(fn);
  const place = placeOf(fn, line, true);
  switch (originOf(fn)) {
    case NATIVE: return place ? `[${place}] ${name}` : name;
    case KERNEL: return `${name}_[k]`;
    case REMARK: return name;
    default: return place ? `${name} (${place})` : name;
  }
}

function processText(process) {
  const { pid, name } = data.processes[process];
  return `${name || "process"} (${pid})`;
}

function threadText(thread) {
  const name = data.strings[data.threads.name[thread]];
  const tid = data.threads.tid[thread];
  return name ? `${name} (${tid})` : `thread ${tid}`;
}
