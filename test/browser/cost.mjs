// What the page costs: how much of a core each page takes while somebody looks at
// a mesh of 200 edges, and how soon it is there. By hand:
//
//	node test/browser/cost.mjs [--edges 200] [--seconds 10] [--only live] [--trace]
//
// CPU is that of all of Chromium's processes, as Chromium itself counts it; the
// made-up control plane is no part of it. Headless Chromium draws in software, so
// what a graphics card would do counts as well. --trace says where the time of
// the page's own process goes.

import { chromium } from "playwright-core";
import { large, listen } from "./fake.mjs";

const option = (name, usual) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? usual : process.argv[at + 1];
};
const edges = Number(option("edges", 200));
const seconds = Number(option("seconds", 10));
const only = option("only", "");
const tracing = process.argv.includes("--trace");

const mesh = large(edges);
const busiest = [...mesh.edges].sort((a, b) => b[2] - a[2])[0];
const pages = {
  overview: "/",
  map: "/map",
  service: `/service/${busiest[1]}`,
  edge: `/edge/${busiest[0]}/${busiest[1]}`,
  live: "/live",
  identities: "/identities",
  proxies: "/proxies",
};

const port = 4191;
const server = listen(mesh, port);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
  ],
});
const devtools = await browser.newBrowserCDPSession();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function cpu() {
  const { processInfo } = await devtools.send("SystemInfo.getProcessInfo");
  const kinds = {};
  for (const p of processInfo) kinds[p.type] = (kinds[p.type] ?? 0) + p.cpuTime;
  return kinds;
}

async function open(path) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  await page.goto(`http://127.0.0.1:${port}${path}`);
  await page.locator("main h1").first().waitFor({ state: "attached" });
  return page;
}

async function paints(path) {
  const times = [];
  for (let i = 0; i < 7; i++) {
    const page = await open(path); // a new context has nothing in its cache
    times.push(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime));
    await page.context().close();
  }
  return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
}

// slowest lists what a trace's time went to.
function slowest(trace) {
  const spent = new Map();
  for (const e of trace.traceEvents) {
    if (e.ph !== "X" || !e.dur) continue;
    const [us, times] = spent.get(e.name) ?? [0, 0];
    spent.set(e.name, [us + (e.tdur ?? e.dur), times + 1]);
  }
  return [...spent].sort((a, b) => b[1][0] - a[1][0]).slice(0, 40);
}

const percent = (x) => `${((x / seconds) * 100).toFixed(1)} %`.padStart(8);
console.log(
  `${mesh.edges.length} edges, ${Object.keys(mesh.services).length} services; CPU over ${seconds} s; first paint: median of 7`,
);
console.log(
  `${"page".padEnd(11)}${["all", "page", "browser", "drawing"].map((w) => w.padStart(8)).join("")}   first paint`,
);
for (const [name, path] of Object.entries(pages)) {
  if (only && name !== only) continue;
  const paint = await paints(path);
  const page = await open(path);
  await pause(4000); // until it has settled
  if (tracing) await browser.startTracing(page, { categories: ["devtools.timeline", "toplevel", "v8", "blink", "cc"] });
  const before = await cpu();
  await pause(seconds * 1000);
  const after = await cpu();
  const took = (kind) => (after[kind] ?? 0) - (before[kind] ?? 0);
  const all = Object.keys(after).reduce((n, kind) => n + took(kind), 0);
  console.log(
    `${name.padEnd(11)}${[all, took("renderer"), took("browser"), took("GPU")].map(percent).join("")}   ${Math.round(paint)} ms`,
  );
  if (tracing) {
    for (const [what, [us, times]] of slowest(JSON.parse(await browser.stopTracing()))) {
      console.log(`    ${what.padEnd(52)}${percent(us / 1e6)}${String(times).padStart(8)} times`);
    }
  }
  await page.context().close();
}
await browser.close();
server.close();
