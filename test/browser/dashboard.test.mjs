// What somebody sees who opens the dashboard. The mesh and its programs are
// real; only where names must be worse than `tulle run` allows, and where
// figures must stand still to be compared, the API's answers are put in.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import * as format from "../../dashboard/ui/format.js";
import { answer, named } from "./fake.mjs";
import { api, base, frame, get, openPage, Stage, startBrowser, until } from "./stage.mjs";

const pages = {
  overview: "/",
  map: "/map",
  service: "/service/catalog",
  edge: "/edge/load/web",
  live: "/live",
  identities: "/identities",
  proxies: "/proxies?name=web-1",
};

let stage, browser;

before(async () => {
  stage = new Stage();
  [browser] = await Promise.all([startBrowser(), stage.start()]);
  await until("traffic on every edge", async () => {
    const { items } = await api("edges?range=5m");
    const busy = (source, destination) =>
      items.some((e) => e.source === source && e.destination === destination && e.requests > 3);
    const open = items.some((e) => e.destination === "web" && e.security === "plaintext" && e.requests > 0);
    return busy("load", "web") && busy("web", "catalog") && busy("catalog", "redis") && open;
  });
});

after(async () => {
  await browser?.close();
  await stage?.end();
});

// look runs a test on a page of its own, on which nothing may be complained of.
function look(name, options, visit) {
  test(name, async (t) => {
    const page = await openPage(browser, options);
    try {
      await visit(page, t);
      assert.deepEqual(page.complaints, []);
    } catch (error) {
      await page.shoot(`failed-${name.replaceAll(/\W+/g, "-")}`).catch(() => {});
      t.diagnostic(`the browser complained: ${JSON.stringify(page.complaints)}\n${await stage.said()}`);
      throw error;
    } finally {
      await page.context().close();
    }
  });
}

// settled waits until a page shows what takes it longest: series and streams.
async function settled(page, id) {
  await page.locator(".status.live").waitFor();
  if (id === "service" || id === "edge") await page.locator(".heatmap canvas").waitFor();
  if (id === "service") await page.locator("#routes-table tbody tr").first().waitFor();
  if (id === "live") await page.locator("table.tap tbody tr").nth(5).waitFor();
  if (id === "identities") await page.locator("#holders-table tbody tr").first().waitFor();
}

const looks = {
  light: { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: "light", hasTouch: true, isMobile: true },
};

for (const [id, options] of Object.entries(looks)) {
  look(`every page loads: ${id}`, options, async (page) => {
    for (const [name, path] of Object.entries(pages)) {
      await page.show(path);
      await settled(page, name);
      await page.shoot(`${id}-${name}`);
      const { wide, background } = await page.evaluate(() => ({
        wide: document.documentElement.scrollWidth - innerWidth,
        background: getComputedStyle(document.documentElement).backgroundColor,
      }));
      assert.ok(wide <= 0, `${name} is ${wide} px wider than the screen`);
      const dark = background.match(/\d+/g).every((part) => part < 60);
      assert.equal(dark, id === "dark", `${name} has the background ${background}`);
    }
  });
}

look("numbers are those of the API", {}, async (page) => {
  const event = await frame("stream?range=5m");
  await page.route("**/api/v1/stream?*", (route) =>
    route.fulfill({ contentType: "text/event-stream", body: `retry: 600000\ndata: ${event}\n\n` }),
  );
  const table = JSON.parse(event);
  const shown = (figure) => `${figure.text}${figure.unit ?? ""}`;
  const figures = (r) =>
    [
      format.rate(r.rps),
      format.success(r.success),
      format.latency(r.p50_s),
      format.latency(r.p95_s),
      format.latency(r.p99_s),
    ].map(shown);
  // A real stream goes on after its first event; this one ends, so that the page soon says so.
  const rows = async (id) =>
    (await page.locator(`#${id} tbody tr`).all()).map((row) => row.locator("td").allTextContents());
  const texts = async (id) => (await Promise.all(await rows(id))).map((cells) => cells.map((cell) => cell.trim()));

  await page.show("/");
  const { totals, proxies } = table.overview;
  const tiles = await page.locator(".tile dd:not(.note)").allTextContents();
  assert.deepEqual(tiles.slice(0, 4), [
    shown(format.rate(totals.rps)),
    shown(format.success(totals.success)),
    shown(format.latency(totals.p99_s)),
    shown(format.percent(totals.mtls)),
  ]);
  assert.equal(tiles[5], String(proxies));
  const byName = [...table.services].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  assert.deepEqual(
    (await texts("services-table")).map((cells) => cells.slice(0, 8)),
    byName.map((s) => [
      s.name,
      s.replicas ? `${s.ready}/${s.replicas}` : "–",
      ...figures(s),
      shown(format.percent(s.mtls)),
    ]),
  );

  await page.show("/map");
  const byRate = [...table.edges].sort((a, b) => b.rps - a.rps);
  const words = { mtls: "mTLS" };
  assert.deepEqual(
    (await texts("edges-table")).map((cells) => cells.slice(0, 9)),
    byRate.map((e) => [e.source, e.destination, words[e.security] ?? e.security, e.protocol, ...figures(e)]),
  );

  await page.show("/service/catalog");
  const mine = table.replicas.filter((r) => r.service === "catalog");
  assert.deepEqual(
    (await texts("replicas-table")).map((cells) => [cells[0].split(" ")[0], ...cells.slice(1)]),
    mine.map((r) => [
      r.workload,
      shown(format.percent(r.share)),
      shown(format.latency(r.ewma_s)),
      shown(format.count(r.in_flight)),
      ...figures(r),
    ]),
  );
});

look("the map shows who calls whom, and what is protected", {}, async (page) => {
  await page.show("/map");
  for (const [edge, security] of [
    ["load web", "mtls"],
    ["web catalog", "mtls"],
    ["catalog redis", "mtls"],
  ]) {
    await page.locator(`.line[data-edge="${edge}"][data-security="${security}"]`).waitFor({ state: "attached" });
  }
  const open = page.locator('.line.open[data-security="plaintext"]');
  assert.match(await open.first().getAttribute("data-edge"), / web$/);
  const locks = { closed: await page.locator(".lock.mtls").count(), open: await page.locator(".lock.alarm").count() };
  assert.equal(locks.open, await open.count());
  assert.ok(locks.closed >= 3, `${locks.closed} closed padlocks`);

  const places = () =>
    page
      .locator(".map .node")
      .evaluateAll((nodes) => nodes.map((n) => `${n.dataset.node} ${n.getAttribute("transform")}`));
  const first = await places();
  assert.deepEqual(first.map((p) => p.split(" ")[0]).sort(), [...new Set(first.map((p) => p.split(" ")[0]))].sort());
  const labels = () => page.locator(".lock text").allTextContents();
  const before = String(await labels());
  await until("other figures", async () => String(await labels()) !== before);
  assert.deepEqual(await places(), first, "the layout moved with the figures");

  await page.locator('.node[data-node="catalog"]').click();
  await page.waitForURL("**/service/catalog");
});

look("the slow replica is found from the overview", {}, async (page) => {
  await page.show("/");
  await page.locator(".s-findings a", { hasText: "catalog-3" }).click();
  await page.waitForURL("**/service/catalog?replica=catalog-3");
  const row = page.locator("#replicas-table tr.slow");
  await row.locator(".badge", { hasText: "slow" }).waitFor();
  assert.match(await row.innerText(), /^catalog-3/);
  assert.equal(await row.count(), 1);
  await until("the slow replica to get well under its share", async () => {
    const { items } = await api("replicas?range=5m&name=catalog");
    const slow = items.find((r) => r.workload === "catalog-3");
    return slow.share < slow.fair / 2;
  });
});

look(
  "live: streams, filters, pauses, and says the command",
  { permissions: ["clipboard-read", "clipboard-write"] },
  async (page) => {
    const rows = page.locator("table.tap tbody tr");
    const number = async () =>
      Number(/^[\d,]+|(?<=nothing\. )[\d,]+/.exec(await page.locator(".tally").innerText())[0].replaceAll(",", ""));
    await page.show("/live");
    await rows.nth(10).waitFor();

    await page.getByLabel("Service").fill("redis");
    await page.waitForURL("**/live?service=redis");
    await rows.nth(3).waitFor();
    for (const to of await rows.locator("td:nth-child(3)").allTextContents()) assert.match(to, /^redis/);
    await page.getByLabel("Service").fill("web");
    await page.getByLabel("Path from").fill("/");
    await page.getByLabel("Slower than (ms)").fill("0.5");
    await page.waitForURL((url) => url.search === "?service=web&path=%2F&min_ms=0.5");
    await rows.nth(3).waitFor();
    assert.equal(await page.locator("#command").innerText(), "tulle tap web --path / --slower-than 0.5ms");
    await page.getByRole("button", { name: "Copy" }).click();
    assert.equal(
      await page.evaluate(() => navigator.clipboard.readText()),
      "tulle tap web --path / --slower-than 0.5ms",
    );

    await page.goto((await page.url()).replace("service=web&", ""));
    await rows.nth(3).waitFor();
    await page.locator("h1").click();
    await page.keyboard.press("Space");
    await page.getByRole("button", { name: "Resume" }).waitFor();
    const [paused, top] = [await number(), await rows.first().innerText()];
    for (let i = 0; i < 3; i++) await frame("tap?service=web"); // meanwhile requests go on
    assert.deepEqual([await number(), await rows.first().innerText()], [paused, top], "rows came while paused");
    await page.keyboard.press("Space");
    await until("rows after the pause", async () => (await number()) > paused);
  },
);

look("live: a stream that is refused says why", { allowed: /400/ }, async (page) => {
  await page.show("/live?status=nonsense");
  await page.locator(".notice", { hasText: "must be a status" }).waitFor();
});

look("the keyboard leads everywhere", {}, async (page) => {
  await page.show("/");
  await settled(page);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the figures");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid");
  for (const [keys, path] of [
    ["gm", "/map"],
    ["gl", "/live"],
    ["gi", "/identities"],
    ["gp", "/proxies"],
    ["go", "/"],
    ["2", "/?range=15m"],
    ["gm", "/map?range=15m"],
    ["3", "/map?range=1h"],
    ["1", "/map"],
  ]) {
    for (const key of keys) await page.keyboard.press(key);
    await page.waitForURL((url) => url.pathname + url.search === path);
  }
  await page.keyboard.press("?");
  await page.locator("dialog[open]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("dialog[open]").waitFor({ state: "detached" });
  const line = page.locator('.line[data-edge="load web"]');
  await line.focus();
  await page.keyboard.press("Enter");
  await page.waitForURL("**/edge/load/web");
  await page.goBack();
  await page.waitForURL("**/map");
});

look("orders and ranges are part of the address", {}, async (page) => {
  await page.show("/?services-table=-p99&range=15m");
  assert.match(await page.locator("#services-table th[aria-sort]").innerText(), /^p99/);
  assert.equal(await page.locator('.choice a[aria-current="true"]').innerText(), "15 min");
  await page.locator("#services-table th a", { hasText: "Service" }).click();
  await page.waitForURL(
    (url) => url.searchParams.get("services-table") === "name" && url.searchParams.get("range") === "15m",
  );
  await page.goBack();
  assert.match(await page.locator("#services-table th[aria-sort]").innerText(), /^p99/);
});

const hostile = `<img src=x onerror="alert(1)">'"&lt;b&gt;\${1}{{1}}\u202e</script><svg onload=alert(2)>`;

look("hostile paths are shown as text", {}, async (page) => {
  const path = "/%3Cscript%3E/<img/src=x/onerror=alert(1)>'\"`;</td>";
  const calls = setInterval(() => get(stage.web, path).catch(() => {}), 100);
  try {
    await page.show("/live?service=web&path=/%253C");
    await page.locator("td.path", { hasText: "onerror=alert(1)>" }).first().waitFor();
    await page.show("/service/web");
    await page.locator("#routes-table td.path", { hasText: "<img" }).first().waitFor();
    await assertNoMarkup(page);
    await page.shoot("hostile-routes");
  } finally {
    clearInterval(calls);
  }
});

look("hostile names are shown as text", {}, async (page) => {
  const mesh = named(hostile);
  await page.route("**/api/v1/**", (route) => {
    const url = new URL(route.request().url());
    const stream = /stream|tap$/.test(url.pathname);
    const body = JSON.stringify(answer(mesh, url.pathname, url.searchParams));
    return route.fulfill(
      stream
        ? { contentType: "text/event-stream", body: `data: ${body}\n\n`.repeat(9) }
        : { contentType: "application/json", body },
    );
  });
  const one = encodeURIComponent(hostile);
  const paths = {
    ...pages,
    service: `/service/${one}`,
    edge: `/edge/${one}/${one}2`,
    proxies: `/proxies?name=${one}-1`,
  };
  for (const [name, path] of Object.entries(paths)) {
    await page.show(path);
    await page.locator("main", { hasText: `onerror="alert(1)">` }).waitFor();
    if (name === "service") await page.locator("#routes-table td").first().waitFor();
    await assertNoMarkup(page);
    await page.shoot(`hostile-${name}`);
  }
  await page.show("/");
  await page.locator("#services-table td.name a").first().click();
  await page.waitForURL((url) => url.pathname.startsWith("/service/"));
  assert.ok((await page.locator("h1").innerText()).includes(`onerror="alert(1)">`));
});

// assertNoMarkup: the only images and scripts are the page's own.
async function assertNoMarkup(page) {
  const strange = await page.evaluate(() =>
    [...document.querySelectorAll("img, script, svg[onload], [onerror], main b b, iframe")]
      .filter((e) => !(e.src ?? "").startsWith(`${location.origin}/assets/`))
      .map((e) => e.outerHTML),
  );
  assert.deepEqual(strange, []);
}

look("an empty mesh says what to type", {}, async (page) => {
  await page.route("**/api/v1/**", (route) => {
    const url = new URL(route.request().url());
    if (/tap$/.test(url.pathname)) return route.fulfill({ contentType: "text/event-stream", body: ": none\n\n" });
    const empty = answer({ services: {}, edges: [] }, url.pathname, url.searchParams);
    if (empty?.overview) empty.overview.changes = [];
    const stream = /stream$/.test(url.pathname);
    return route.fulfill(
      stream ? { contentType: "text/event-stream", body: `data: ${JSON.stringify(empty)}\n\n` } : { json: empty },
    );
  });
  for (const name of ["overview", "map", "live", "identities", "proxies"]) {
    await page.show(pages[name].split("?")[0]);
    await page.locator(".empty code", { hasText: "sudo tulle run" }).first().waitFor();
    await page.shoot(`empty-${name}`);
  }
  await page.show("/service/nobody");
  await page.locator(".empty", { hasText: "knows no service" }).waitFor();
});

look("a workload that is killed turns up", {}, async (page, t) => {
  await stage.run("victim", "victim:9000", "--", "sleep", "600");
  await until("the victim's proxy", async () =>
    (await api("proxies")).items.some((p) => p.workload === "victim-1" && p.state === "connected"),
  );
  await page.show("/");
  await page.locator("#services-table td", { hasText: "victim" }).waitFor();
  const began = Date.now();
  await stage.kill("victim");
  await page
    .locator(".s-changes li", { hasText: /victim.*(left|gone|lost)/i })
    .first()
    .waitFor();
  t.diagnostic(`on the overview after ${((Date.now() - began) / 1000).toFixed(1)} s`);
  await page.shoot("killed-workload");
});

look("the page survives the control plane", { allowed: /ERR_|Failed to load resource/ }, async (page) => {
  await page.show("/");
  await settled(page);
  await stage.kill("up");
  await page.locator(".status.lost").waitFor();
  await page.locator(".notice", { hasText: "does not answer" }).waitFor();
  await page.locator("#services-table td", { hasText: "catalog" }).first().waitFor();
  await page.shoot("disconnected");
  await stage.up();
  await page.locator(".status.live").waitFor();
  await page.locator(".notice").waitFor({ state: "detached" });
  await page.locator("#services-table td", { hasText: "catalog" }).first().waitFor();
});

look("a part that does not arrive is asked for again", { allowed: /ERR_/ }, async (page) => {
  // What Chromium does when an address of this machine changes.
  const refused = new Set();
  await page.route(/\/(route|app)\.js|preact\.mjs/, (route) => {
    const first = !refused.has(route.request().url());
    refused.add(route.request().url());
    return first ? route.abort("internetdisconnected") : route.continue();
  });
  let loads = 0;
  page.on("load", () => loads++);
  await page.goto(`${base}/`);
  await page.locator("#services-table").waitFor();
  assert.equal(refused.size, 3);
  assert.equal(loads, 1, "the page was loaded again");
});

look("what it costs to open", {}, async (page, t) => {
  await page.show("/");
  await settled(page);
  const { paint, bytes, files } = await page.evaluate(() => {
    const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].filter(
      (e) => !/\/api\//.test(e.name),
    );
    return {
      paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime,
      bytes: entries.reduce((n, e) => n + e.encodedBodySize, 0),
      files: entries.length,
    };
  });
  t.diagnostic(`first contentful paint after ${Math.round(paint)} ms; ${files} files, ${Math.round(bytes / 1024)} KiB`);
  assert.ok(bytes < 250 * 1024, `${bytes} bytes`);
});
