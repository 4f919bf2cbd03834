// One event stream brings every table, whole, once a second. Series and the
// like, which change with each slice of the history, are asked for as it goes on.

import { useEffect, useState } from "./html.js";

const staleAfter = 4000; // ms without news
const retryAfter = 2000;
const refreshAfter = 5000; // a slice of the history

// mesh is the newest news. Its state is "connecting", "live", "lost" (there is
// no connection) or "trouble" (the control plane says that it cannot tell).
export const mesh = { state: "connecting", table: null, trouble: "", heard: 0 };

const readers = new Set();
let source = null;
let range = "";
let watchdog = 0;
let retry = 0;

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
  let due = 0;
  source.onmessage = (message) => {
    watch();
    if (mesh.state === "live" && performance.now() < due) return; // another one comes in a second
    const table = JSON.parse(message.data);
    due = performance.now() + pace(table);
    publish({ state: "live", trouble: "", table, heard: Date.now() });
  };
  source.addEventListener("trouble", (message) => {
    watch();
    publish({ state: "trouble", trouble: JSON.parse(message.data).error });
  });
  source.onerror = () => {
    publish({ state: "lost" });
    retry = setTimeout(connect, retryAfter); // a browser gives up on some errors; we do not
  };
}

// pace is how long, in ms, news stays before it is drawn anew: to draw a large
// mesh costs more, and its figures do not change faster.
const pace = ({ edges }) => Math.min(5, Math.max(1, Math.round(edges.length / 40))) * 1000 - 500;

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
  const response = await fetch(question, { signal });
  const value = await response.json();
  if (!response.ok) throw new Error(value.error);
  return value;
}
