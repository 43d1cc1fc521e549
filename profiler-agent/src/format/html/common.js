"use strict";
// What our pages share: their data, numbers and names as text, the theme. Everything in the data is said by processes that
// nobody trusts: it is shown as text (`textContent`, `fillText`) and never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);

const KINDS = {
  samples: "Samples", cpu: "CPU time", page_faults: "Page faults", fault_space: "Memory touched",
  alloc_objects: "Objects allocated", alloc_space: "Bytes allocated", inuse_objects: "Objects in use",
  inuse_space: "Bytes in use", peak_space: "Bytes in use at the peak", temporary_space: "Bytes that were temporary",
};

function typeText(type) {
  const { kind, unit } = data.types[type];
  return Object.hasOwn(KINDS, kind) ? KINDS[kind] : `${kind} (${unit})`;
}

/** Of each unit: name, size, and from where on it is used. */
const SCALES = {
  nanoseconds: [
    ["ns", 1, 0], ["µs", 1e3, 1e3], ["ms", 1e6, 1e6], ["s", 1e9, 1e9], ["min", 6e10, 1.2e11], ["h", 3.6e12, 7.2e12],
    ["days", 8.64e13, 1.728e14],
  ],
  bytes: [0, 1, 2, 3, 4].map((power) => [["B", "KiB", "MiB", "GiB", "TiB"][power], 1024 ** power, power && 1024 ** power]),
};

/** A value with its unit, for people. */
function valueText(value, unit) {
  if (!Object.hasOwn(SCALES, unit)) {
    return Math.round(value).toLocaleString("en-US");
  }
  const [name, size] = SCALES[unit].findLast(([, , from]) => value >= from);
  const scaled = value / size;
  const digits = size === 1 || scaled >= 100 ? 0 : scaled >= 10 ? 1 : 2;
  return `${scaled.toFixed(digits)} ${name}`;
}

function shareText(part, all) {
  return all > 0 ? `${(100 * part / all).toFixed(2)}%` : "–";
}

function byId(id) {
  return document.getElementById(id);
}

function plural(count, one, many) {
  return `${count.toLocaleString("en-US")} ${count === 1 ? one : many}`;
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) {
    made.className = className;
  }
  return made;
}

/** Longest name that is shown; what is copied is whole. */
const MAX_TEXT = 1000;

/** A name or path of whatever direction of writing, which does not turn what is around it. */
function isolated(text) {
  const made = element("bdi", text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text);
  made.dir = "ltr";
  return made;
}

const THEMES = ["auto", "light", "dark"];
let theme = "auto";

function takeTheme(wanted) {
  theme = wanted;
  if (theme === "auto") {
    delete document.documentElement.dataset.theme;
  } else {
    document.documentElement.dataset.theme = theme;
  }
  byId("theme").textContent = `Theme: ${theme}`;
}

function nextTheme() {
  return THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
}
