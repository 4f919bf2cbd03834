// Fetches the page's parts before the first of them runs. Chromium fails every
// request that waits for a connection when an address of this machine changes
// (ERR_NETWORK_CHANGED), which each `tulle run` does; and a module that failed
// once is never asked for again. A part that is in the cache needs no connection.

const parts = [...document.querySelectorAll("link[rel='part']")].map((link) => link.href);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function fetched(part) {
  for (let wait = 50; ; wait = Math.min(2 * wait, 2000)) {
    try {
      const response = await fetch(part);
      await response.arrayBuffer(); // all of it, or it is not kept
      if (response.ok) return;
      await pause(1000);
      location.reload(); // of another version than this page
      await pause(60_000);
    } catch {
      if (wait > 1000) {
        const waiting = document.querySelector(".waiting");
        if (waiting) waiting.textContent = "The control plane does not answer. This page keeps trying…";
      }
      await pause(wait);
    }
  }
}

// whole waits for what the document itself names, which the browser asks for only
// once, but before anything else.
const whole = new Promise((resolve) => {
  addEventListener("DOMContentLoaded", () => {
    const styled = [...document.querySelectorAll("link[rel='stylesheet']")].every((link) => link.sheet);
    if (styled && globalThis.uPlot) resolve();
    else setTimeout(() => location.reload(), 500);
  });
});

Promise.all([whole, ...parts.map(fetched)]).then(() => import("./app.js"));
