// The address bar holds all that the page shows: which page, over what time,
// and each page's own choices. A copied address shows the same to others.

import { useEffect, useState } from "./html.js";

export const ranges = { "5m": "5 min", "15m": "15 min", "1h": "1 h" };
const defaultRange = "5m";

const readers = new Set();

// current is what the address bar says: the page, the names after it, and
// the query as a plain object.
export function current() {
  const [page, ...names] = location.pathname.slice(1).split("/").map(decode);
  const query = Object.fromEntries(new URLSearchParams(location.search));
  if (!Object.hasOwn(ranges, query.range)) query.range = defaultRange;
  return { page: page || "overview", names, query };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed by hand
  }
}

// to makes an address: names become parts of the path, and the time range is
// kept. A choice that is empty or undefined is left out.
export function to(page, names = [], query = {}) {
  const path = "/" + [page === "overview" ? "" : page, ...names.map(encodeURIComponent)].join("/");
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries({ range: current().query.range, ...query })) {
    if (value && !(key === "range" && value === defaultRange)) search.set(key, value);
  }
  return path + (search.size ? `?${search}` : "");
}

export const toService = (name, query) => to("service", [name], query);
export const toEdge = (edge, query) => to("edge", [edge.source, edge.destination], query);

// choose is the present address with some choices changed.
export function choose(changes) {
  const { page, names, query } = current();
  return to(page, names, { ...query, ...changes });
}

export function go(address, { replace = false } = {}) {
  if (address === location.pathname + location.search) return;
  const leaves = new URL(address, location.href).pathname !== location.pathname;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  announce(leaves);
}

function announce(leaves) {
  shown = location.pathname;
  for (const reader of readers) reader();
  if (leaves) {
    scrollTo(0, 0);
    document.getElementById("main")?.focus({ preventScroll: true });
  }
}

// useRoute draws a component again whenever the address changes.
export function useRoute() {
  const [route, set] = useState(current);
  useEffect(() => {
    const reader = () => set(current());
    readers.add(reader);
    return () => readers.delete(reader);
  }, []);
  return route;
}

let shown = location.pathname;

addEventListener("popstate", () => announce(location.pathname !== shown));

// Links within the page need no new one.
addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  const address = anchor?.getAttribute("href");
  if (!address?.startsWith("/") || /^\/(api|assets)\//.test(address) || anchor.getAttribute("target")) return;
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey)
    return;
  event.preventDefault();
  go(address);
});
