// A mesh with the demo's programs, as test/demo starts them, and a browser in
// front of it. Whoever waits here waits for something to be so, for as long as
// a minute; how long it took is never part of a test.

import { spawn } from "node:child_process";
import { mkdir, mkdtemp, open, readFile, rm } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const base = "http://127.0.0.1:4180";
export const artifacts = fileURLToPath(new URL("../artifacts/", import.meta.url));

const bin = process.env.TULLE_BIN;
const patience = 60_000;

// until asks again until it gets something true. An error is an answer like "not yet".
export async function until(what, ask) {
  const deadline = Date.now() + patience;
  for (let trouble; ;) {
    try {
      const answer = await ask();
      if (answer) return answer;
    } catch (error) {
      trouble = error;
    }
    if (Date.now() > deadline) throw new Error(`waited ${patience / 1000} s for ${what}`, { cause: trouble });
    await new Promise((resolve) => setTimeout(resolve, 50)); // a pause between questions
  }
}

export async function api(path) {
  const response = await fetch(`${base}/api/v1/${path}`);
  const answer = await response.json();
  if (!response.ok) throw new Error(`${path}: ${answer.error}`);
  return answer;
}

// frame is the first event of a stream of the API.
export async function frame(path = "stream") {
  const abort = new AbortController();
  try {
    const response = await fetch(`${base}/api/v1/${path}`, { signal: abort.signal });
    let text = "";
    for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
      text += part;
      const event = /^data: (.*)\n\n/m.exec(text);
      if (event) return event[1];
    }
    throw new Error(`${path} ended`);
  } finally {
    abort.abort();
  }
}

// get asks a workload from the host, so in plaintext: the path goes out as it is.
export function get(host, path) {
  return new Promise((resolve, reject) => {
    const request = http.get({ host, port: 8080, path, agent: false }, (response) => {
      response.resume().on("end", () => resolve(response.statusCode));
    });
    request.on("error", reject);
  });
}

export class Stage {
  processes = new Map();

  async start() {
    this.logs = await mkdtemp(join(tmpdir(), "tulle-browser-"));
    await mkdir(artifacts, { recursive: true });
    await this.up();
    const redis = ["redis-server", "--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""];
    await this.run("redis", "redis:6379", "--", ...redis);
    await this.run(
      "catalog",
      "catalog:8080",
      "--replicas",
      "3",
      "--",
      join(bin, "shop"),
      "catalog",
      "--slow-by",
      "500ms",
    );
    await this.run("web", "web:8080", "--", join(bin, "shop"), "web");
    await until("the shop to be ready", () => this.ready({ redis: 1, catalog: 3, web: 1 }));
    await this.run("load", "load", "--", join(bin, "shop"), "load", "--rate", "60", "http://web.mesh:8080/");
    this.web = (await this.workloads("web"))[0].address4;
    this.callFromHost();
  }

  async up() {
    await this.spawn("up", "up", "--state", join(this.logs, "authority"));
    await until("the mesh to answer", () => api("about"));
  }

  run(name, ...args) {
    return this.spawn(name, "run", ...args);
  }

  async spawn(name, ...args) {
    const log = await open(join(this.logs, `${name}.log`), "a");
    const child = spawn(join(bin, "tulle"), args, { cwd: this.logs, stdio: ["pipe", log.fd, log.fd] });
    child.ended = new Promise((resolve) => child.on("exit", resolve));
    this.processes.set(name, child);
    await log.close();
    return child;
  }

  // kill is what the kernel does when it runs out of memory: no farewell.
  async kill(name) {
    const child = this.processes.get(name);
    this.processes.delete(name);
    child.kill("SIGKILL");
    await child.ended;
  }

  async workloads(service) {
    return (await api("workloads")).items.filter((w) => w.service === service);
  }

  async ready(wanted) {
    const { items } = await api("workloads");
    const have = (service) => items.filter((w) => w.service === service && w.state === "ready").length;
    return Object.entries(wanted).every(([service, n]) => have(service) >= n);
  }

  // callFromHost makes the plaintext edge: the host is not part of the mesh.
  callFromHost() {
    const call = () => get(this.web, "/").catch(() => {}); // it may be busy; the next one comes soon
    this.calls = setInterval(call, 250);
  }

  async end() {
    clearInterval(this.calls);
    for (const [name, child] of [...this.processes].reverse()) {
      if (name === "up") continue;
      child.kill("SIGTERM");
      await child.ended;
    }
    if (!this.processes.has("up")) return;
    const down = spawn(join(bin, "tulle"), ["down"], { stdio: "ignore" });
    await new Promise((resolve) => down.on("exit", resolve));
    await this.processes.get("up")?.ended;
    await rm(this.logs, { recursive: true, force: true });
  }

  // said is the end of every log, for whoever has to find out why a test failed.
  async said() {
    const tails = [...this.processes.keys()].map(async (name) => {
      const text = await readFile(join(this.logs, `${name}.log`), "utf8");
      return `--- ${name}\n${text.slice(-1500)}`;
    });
    return (await Promise.all(tails)).join("\n");
  }
}

export async function startBrowser() {
  const quiet = ["gpu", "dev-shm-usage", "quic", "background-networking", "component-update", "sync"].map(
    (what) => `--disable-${what}`,
  );
  return chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--no-first-run", ...quiet] });
}

// openPage returns a page on which every complaint of the browser is kept, but
// for those that `allowed` matches.
export async function openPage(browser, { allowed, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(patience);
  const page = await context.newPage();
  page.complaints = [];
  const complain = (text) => allowed?.test(text) || page.complaints.push(text);
  page.on("console", (m) => ["error", "warning"].includes(m.type()) && complain(`${m.text()} (${m.location().url})`));
  page.on("pageerror", (error) => complain(error.stack));
  page.on("dialog", (dialog) => complain(`a dialog: ${dialog.message()}`) && dialog.dismiss());
  page.show = async (path) => {
    await page.goto(base + path);
    await page.locator("main h1").first().waitFor({ state: "attached" });
  };
  page.shoot = (name) => page.screenshot({ path: join(artifacts, `${name}.png`), fullPage: true });
  return page;
}
