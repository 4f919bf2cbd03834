// One event stream brings every table, whole, once a second, or, of a large mesh,
// each few; meanwhile it beats. Series and the like, which change with each slice
// of the history, are asked for as it goes on.

import { useEffect, useState } from "./html.js";

const staleAfter = 4000; // ms without news
const retryAfter = 2000;
const soon = 100;
const refreshAfter = 5000; // a slice of the history

// mesh is the newest news. Its state is "connecting", "live", "lost" (there is
// no connection) or "trouble" (the control plane says that it cannot tell).
export const mesh = { state: "connecting", table: null, trouble: "", heard: 0 };

const readers = new Set();
let source = null;
let range = "";
let watchdog = 0;
let retry = 0;
let failed = false; // the last connection

function publish(change) {
  Object.assign(mesh, change);
  for (const reader of readers) reader();
}

// follow asks for another time range. What was there stays until then.
export function follow(wanted) {
  if (wanted === range && source) return;
  range = wanted;
  if (!document.hidden) connect();
}

function disconnect() {
  source?.close();
  source = null;
  clearTimeout(watchdog);
  clearTimeout(retry);
}

function connect() {
  disconnect();
  source = new EventSource(`/api/v1/stream?range=${range}`);
  watch();
  source.onmessage = (message) => {
    watch();
    failed = false;
    publish({ state: "live", trouble: "", table: JSON.parse(message.data), heard: Date.now() });
  };
  source.addEventListener("beat", watch);
  source.addEventListener("trouble", (message) => {
    watch();
    publish({ state: "trouble", trouble: JSON.parse(message.data).error });
  });
  source.onerror = () => {
    // One that breaks may do so since an address of this machine has changed.
    if (failed || mesh.state !== "live") publish({ state: "lost" });
    retry = setTimeout(connect, failed ? retryAfter : soon); // a browser gives up on some errors; we do not
    failed = true;
  };
}

// watch notices a control plane that is silent though its connection is open.
function watch() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => {
    publish({ state: "lost" });
    connect();
  }, staleAfter);
}

// Nobody looks at a hidden page, so it costs nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) disconnect();
  else if (range) connect();
});

// useHidden tells whether nobody looks.
export function useHidden() {
  const [hidden, set] = useState(document.hidden);
  useEffect(() => {
    const change = () => set(document.hidden);
    document.addEventListener("visibilitychange", change);
    return () => document.removeEventListener("visibilitychange", change);
  }, []);
  return hidden;
}

// useMesh draws a component again with each news.
export function useMesh() {
  const [, draw] = useState(0);
  useEffect(() => {
    const reader = () => draw((n) => n + 1);
    readers.add(reader);
    return () => readers.delete(reader);
  }, []);
  return mesh;
}

// useAnswer asks the API, and again as time goes on. Between two answers to the
// same question the older one is shown; another question starts empty, but for
// another range of the same, which only dims.
export function useAnswer(path, query) {
  const question = `/api/v1/${path}?${new URLSearchParams(query)}`;
  const subject = `${path}?${new URLSearchParams({ ...query, range: "" })}`;
  const [answer, set] = useState({});
  const { heard } = useMesh(); // stands still while there is no connection
  const due = Math.floor(heard / refreshAfter);
  useEffect(() => {
    const abort = new AbortController();
    ask(question, abort.signal).then(
      (value) => set({ subject, question, value }),
      (error) => abort.signal.aborted || set((old) => ({ ...old, subject, error: error.message })),
    );
    return () => abort.abort();
  }, [question, due]);
  if (answer.subject !== subject) return { loading: true };
  return { value: answer.value, error: answer.error, loading: answer.question !== question && !answer.error };
}

async function ask(question, signal) {
  const again = () => fetch(question, { signal });
  const response = await again().catch(again); // once: an address of this machine may have changed
  const value = await response.json();
  if (!response.ok) throw new Error(value.error);
  return value;
}
