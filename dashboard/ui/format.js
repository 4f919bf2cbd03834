// Figures as people read them: {text, unit, tone}. No unit and a dash means
// that there was nothing to take the figure from.

const nothing = { text: "–", tone: "quiet" };

const locale = "en-US";
const formats = [0, 1, 2].map(
  (n) => new Intl.NumberFormat(locale, { minimumFractionDigits: n, maximumFractionDigits: n }),
);
const digits = (x, n) => formats[n].format(x);
const absent = (x) => x === null || x === undefined;

export const count = (n) => (absent(n) ? nothing : { text: digits(n, 0) });

export function rate(rps) {
  if (absent(rps)) return nothing;
  if (rps === 0) return { text: "0", unit: "/s", tone: "quiet" };
  if (rps >= 99950) return { text: digits(rps / 1000, 0), unit: "k/s" };
  return { text: digits(rps, rps < 9.95 ? 1 : 0), unit: "/s" };
}

export function latency(seconds) {
  if (absent(seconds)) return nothing;
  const us = seconds * 1e6;
  if (us < 999.5) return { text: digits(us, 0), unit: "µs" };
  if (us < 9950) return { text: digits(us / 1000, 1), unit: "ms" };
  if (us < 999500) return { text: digits(us / 1000, 0), unit: "ms" };
  return { text: digits(us / 1e6, us < 9.95e6 ? 1 : 0), unit: "s" };
}

// percent never rounds up to 100: one failure in a million shows.
export function percent(share) {
  if (absent(share)) return nothing;
  const p = share * 100;
  if (p >= 100 || p === 0) return { text: digits(p, 0), unit: "%" };
  return { text: digits(Math.floor(p * 100) / 100, p >= 99 ? 2 : 1), unit: "%" };
}

export const health = (share) => (share >= 0.999 ? "ok" : share >= 0.99 ? "warn" : "bad");

export function success(share) {
  return absent(share) ? nothing : { ...percent(share), tone: share === 1 ? "" : health(share) };
}

export function bytes(n) {
  if (absent(n)) return nothing;
  if (n < 1024) return { text: digits(n, 0), unit: "B" };
  if (n < 1 << 20) return { text: digits(n / 1024, 0), unit: "KiB" };
  if (n < 1 << 30) return { text: digits(n / (1 << 20), 1), unit: "MiB" };
  return { text: digits(n / (1 << 30), 1), unit: "GiB" };
}

function span(seconds) {
  if (seconds < 99.5) return { text: digits(seconds, 0), unit: "s" };
  if (seconds < 99.5 * 60) return { text: digits(seconds / 60, 0), unit: "min" };
  if (seconds < 99.5 * 3600) return { text: digits(seconds / 3600, 0), unit: "h" };
  return { text: digits(seconds / 86400, 0), unit: "days" };
}

// until and since say how far an RFC 3339 time is away from now, another one.
export function until(then, now) {
  if (!then) return nothing;
  const left = (new Date(then) - new Date(now)) / 1000;
  if (left <= 0) return { text: "expired", tone: "bad" };
  return { ...span(left), tone: left < 3600 ? "warn" : "" };
}

export const since = (then, now) => (then ? span(Math.max(0, (new Date(now) - new Date(then)) / 1000)) : nothing);

export const plain = ({ text, unit }) => (unit ? `${text}${unit === "%" ? "\u2009" : "\u202f"}${unit}` : text);

const clocks = {
  minutes: new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" }),
  seconds: new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" }),
  milliseconds: new Intl.DateTimeFormat("en-GB", {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    fractionalSecondDigits: 3,
  }),
};

// clock is the local time of day; of the same day or a near one it is enough.
export const clock = (time, precision = "seconds") => (time ? clocks[precision].format(new Date(time)) : "–");

export const moment = (time) => (time ? new Date(time).toLocaleString("en-GB") : "unknown");
