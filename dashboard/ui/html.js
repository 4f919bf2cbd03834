// What every part of the page is written in: Preact's elements as htm's
// templates. Values become text or attributes, never markup: names and paths
// are chosen by workloads.

import { h, render, Fragment } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";

export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.mjs";
export { render, Fragment };
export const html = htm.bind(h);
