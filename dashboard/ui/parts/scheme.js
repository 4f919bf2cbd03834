// Colours for what is drawn on a canvas, where style sheets do not reach.

import { useEffect, useState } from "../html.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

// useScheme is "dark" or "light", and draws again when the system changes.
export function useScheme() {
  const [scheme, set] = useState(dark.matches ? "dark" : "light");
  useEffect(() => {
    const change = () => set(dark.matches ? "dark" : "light");
    dark.addEventListener("change", change);
    return () => dark.removeEventListener("change", change);
  }, []);
  return scheme;
}

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Ramps from few to many that go steadily from the background's lightness to
// its opposite, so that they read without telling hues apart.
const ramps = {
  light: ["#efe9f7", "#fbd3a6", "#f58f63", "#cb4277", "#7a1f86", "#2a1150"],
  dark: ["#26223a", "#45236f", "#8a2f8f", "#d24a78", "#f68d5a", "#fde28c"],
};

// ramp returns 64 colours from few to many.
export function ramp(scheme) {
  const stops = ramps[scheme].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Array.from({ length: 64 }, (_, i) => {
    const at = (i / 63) * (stops.length - 1);
    const from = Math.min(Math.floor(at), stops.length - 2);
    const mixed = stops[from].map((c, k) => Math.round(c + (stops[from + 1][k] - c) * (at - from)));
    return `rgb(${mixed.join(" ")})`;
  });
}
