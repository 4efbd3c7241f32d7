/**
 * What is wrong with a configuration, and where: file, line, key and one sentence. Owns the shape of a fault, how
 * it prints, the collector that keeps every one of them, and the search for the key that was probably meant.
 * Must not know any key, and no message may hold a secret's value.
 */

/** One thing wrong (or, in the list of warnings, doubtful). */
export interface Fault {
  /** The file as it was named on the command line, or `environment`. */
  file: string;
  /** 1-based; 0 when there is no line to point at. */
  line: number;
  /** `general.port`, `users[0].password`, or an environment variable's name; empty for the file as a whole. */
  key: string;
  message: string;
  /** A warning about security: `check --strict` fails for it. */
  isWeakness: boolean;
}

/** Where a key stands. */
export type Place = Omit<Fault, 'message' | 'isWeakness'>;

/** `file:line: key: message`, without the parts that a fault lacks. */
export function formatFault(fault: Omit<Fault, 'isWeakness'>): string {
  const place = fault.line > 0 ? `${fault.file}:${fault.line}` : fault.file;
  const text = fault.key === '' ? `${place}: ${fault.message}` : `${place}: ${fault.key}: ${fault.message}`;
  // A key is text from a file; a terminal must not obey it.
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, '?');
}

/** Collects faults and warnings; the same sentence about the same place is kept once. */
export class FaultLog {
  readonly faults: Fault[] = [];
  readonly warnings: Fault[] = [];
  readonly #seen = new Set<string>();

  fault(place: Place, message: string): void {
    this.#add(this.faults, place, message, false);
  }

  warn(place: Place, message: string): void {
    this.#add(this.warnings, place, message, false);
  }

  /** A warning about something that works and is less safe than it could be. */
  weakness(place: Place, message: string): void {
    this.#add(this.warnings, place, message, true);
  }

  /** True when a fault was reported for this key. */
  isFaulty(key: string): boolean {
    return this.faults.some((fault) => fault.key === key);
  }

  #add(list: Fault[], place: Place, message: string, isWeakness: boolean): void {
    const identity = `${place.file}\n${place.line}\n${place.key}\n${message}`;
    if (this.#seen.has(identity)) return;
    this.#seen.add(identity);
    list.push({ file: place.file, line: place.line, key: place.key, message, isWeakness });
  }
}

/** Longest name for which a neighbour is looked for; the search is quadratic in it. */
const SUGGEST_LENGTH_MAX = 64;

/** The candidate closest to `name`, or null when none is close enough to be a slip of the hand. */
export function suggest(name: string, candidates: Iterable<string>): string | null {
  if (name.length > SUGGEST_LENGTH_MAX) return null;
  const wanted = letters(name);
  let best: string | null = null;
  let bestDistance = Math.max(1, Math.floor(wanted.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(wanted, letters(candidate));
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** Case and separators are the commonest slips and say nothing. */
function letters(name: string): string {
  return name.toLowerCase().replaceAll(/[_-]/g, '');
}

/** `; did you mean "x"?`, or nothing. */
export function didYouMean(name: string, candidates: Iterable<string>): string {
  const found = suggest(name, candidates);
  return found === null ? '' : `; did you mean "${found}"?`;
}

/** Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment). */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const same = a[row - 1] === b[column - 1];
      let cost = Math.min(last[column]! + 1, current[column - 1]! + 1, last[column - 1]! + (same ? 0 : 1));
      const swapped = row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1];
      if (swapped) cost = Math.min(cost, beforeLast[column - 2]! + 1);
      current.push(cost);
    }
    beforeLast = last;
    last = current;
  }
  return last[b.length]!;
}
