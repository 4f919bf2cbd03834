// Numbers as people read them: {value, unit}. Without a unit there was nothing
// to take the figure from.

const nothing = { value: "–" };

const digits = (x, n) => x.toLocaleString("en-US", { minimumFractionDigits: n, maximumFractionDigits: n });

export const count = (n) => digits(n, 0);

export function rate(rps) {
  if (rps === 0) return { value: "0", unit: "/s", className: "quiet" };
  return { value: digits(rps, rps < 9.95 ? 1 : 0), unit: "/s" };
}

export function latency(us) {
  if (us === null || us === undefined) return nothing;
  if (us < 1000) return { value: digits(us, 0), unit: "µs" };
  if (us < 9950) return { value: digits(us / 1000, 1), unit: "ms" };
  if (us < 999500) return { value: digits(us / 1000, 0), unit: "ms" };
  return { value: digits(us / 1e6, us < 9.95e6 ? 1 : 0), unit: "s" };
}

// percent never rounds up to 100: one failure in a million shows.
export function percent(share) {
  if (share === null || share === undefined) return nothing;
  const p = share * 100;
  if (p >= 100 || p === 0) return { value: digits(p, 0), unit: "%" };
  return { value: digits(Math.floor(p * 100) / 100, p >= 99 ? 2 : 1), unit: "%" };
}

export function success(share) {
  const p = percent(share);
  if (p.unit) p.className = share < 1 ? "bad" : "ok";
  return p;
}

export function bytes(n) {
  if (!n) return nothing;
  if (n < 1 << 20) return { value: digits(n / 1024, 0), unit: "KiB" };
  return { value: digits(n / (1 << 20), 1), unit: "MiB" };
}

// until says how long it is from now to an RFC 3339 time.
export function until(then, now) {
  if (!then) return nothing;
  const s = (new Date(then) - now) / 1000;
  if (s <= 0) return { value: "expired", unit: "", className: "bad" };
  if (s < 3600) return { value: digits(s / 60, 0), unit: "min" };
  return { value: digits(s / 3600, 0), unit: "h" };
}

export const clock = (time) => new Date(time).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
