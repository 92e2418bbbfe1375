// Numbers, times and chances in words.

/** A duration, with three digits that matter. */
export function duration(seconds) {
  if (seconds < 1) return `${significant(seconds * 1e3)} ms`;
  if (seconds < 100) return `${significant(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 100) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A duration that is being counted: whole tenths, so that its width stays the same. */
export function ticking(seconds) {
  return seconds < 100 ? `${seconds.toFixed(1)} s` : duration(seconds);
}

export function percent(probability) {
  return `${(probability * 100).toFixed(1)} %`;
}

export function signed(value) {
  // A true minus is as wide as a plus.
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
}

export function clock(iso) {
  return new Date(iso).toLocaleTimeString([], { hour12: false });
}

/** A time of day, with the date unless it is today. */
export function moment(iso) {
  const date = new Date(iso);
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock(iso) : `${date.toLocaleDateString()} ${clock(iso)}`;
}

/** The chance that a rerun gives another label. */
export function flipping(probability, nLabels) {
  if (probability < 1e-4) return "A rerun would give the same label, as far as shot noise goes.";
  const most = nLabels > 2 ? "at most " : "";
  const chance =
    probability >= 0.1 ? `${Math.round(probability * 10)} time${probability < 0.15 ? "" : "s"} in 10`
    : `1 time in ${Math.round(1 / probability).toLocaleString("en")}`;
  return `A rerun would give another label ${most}${chance}, from shot noise alone.`;
}

export function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function significant(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
