/**
 * The list of what an issuer, or whoever runs the pooler, has taken back: tokens by their id, subjects up to an
 * instant, sessions of an issuer, keys. Owns the form of the list and its bounds, and finds a token in it at the price
 * of a few look-ups. Reading the file is watched-file.ts's, ending sessions is the caller's.
 */
import { ownClaim } from './claim-path.ts';
import type { TokenFacts } from './identity.ts';
import { isRecord } from './token-form.ts';
import { KeyFileFault, WatchedFile } from './watched-file.ts';

export const REVOCATION_BYTES_MAX = 1_048_576;
export const REVOCATIONS_MAX = 100_000;

const KINDS: readonly string[] = ['jti', 'sub', 'sid', 'kid'];
const MEMBERS: readonly string[] = [...KINDS, 'before', 'iss', 'exp'];

interface Revocation {
  /** Tokens issued before this are revoked; Infinity for all. Milliseconds since the epoch. */
  readonly beforeMs: number;
}

/** What of a list can still matter. */
export interface RevocationList {
  readonly size: number;
  /** Entries whose `exp` had passed. */
  readonly dropped: number;
  has(facts: TokenFacts): boolean;
}

export const NO_REVOCATIONS: RevocationList = { size: 0, dropped: 0, has: () => false };

/**
 * Reads a list: JSON, an array of `{"jti"}`, `{"sub", "before"}`, `{"sid"}` or `{"kid"}`, each with an optional `iss`
 * (only that issuer's) and an optional `exp` (after which the entry is dropped). Times are seconds since the epoch or
 * RFC 3339. Throws `KeyFileFault` that names the entry by its number: a list that is half understood revokes too little.
 */
export function decodeRevocations(text: string, nowMs: number): RevocationList {
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch {
    throw new KeyFileFault('the revocation file is not JSON');
  }
  if (!Array.isArray(list)) throw new KeyFileFault('the revocation file is not a list');
  if (list.length > REVOCATIONS_MAX) {
    throw new KeyFileFault(`the revocation file has more than ${REVOCATIONS_MAX} entries`);
  }
  const entries = new Map<string, Revocation>();
  let dropped = 0;
  for (const [index, item] of (list as unknown[]).entries()) {
    const entry = decodeEntry(item);
    if (typeof entry === 'string') throw new KeyFileFault(`entry ${index} of the revocation file ${entry}`);
    if (entry.untilMs <= nowMs) {
      dropped++;
      continue;
    }
    const beforeMs = Math.max(entry.beforeMs, entries.get(entry.key)?.beforeMs ?? Number.NEGATIVE_INFINITY);
    entries.set(entry.key, { beforeMs });
  }
  return { size: entries.size, dropped, has: (facts) => isRevoked(entries, facts) };
}

interface DecodedEntry {
  readonly key: string;
  readonly beforeMs: number;
  readonly untilMs: number;
}

/** The entry, or what is wrong with it. */
function decodeEntry(item: unknown): DecodedEntry | string {
  if (!isRecord(item)) return 'is no object';
  if (Object.keys(item).some((name) => !MEMBERS.includes(name))) return 'has an unknown member';
  const kinds = KINDS.filter((name) => Object.hasOwn(item, name));
  const kind = kinds[0];
  if (kind === undefined || kinds.length > 1) return 'must have exactly one of jti, sub, sid and kid';
  const value = item[kind];
  if (typeof value !== 'string' || value === '') return `has a ${kind} that is no non-empty string`;
  const iss = ownClaim(item, 'iss');
  if (iss !== undefined && typeof iss !== 'string') return 'has an iss that is no string';
  if ((kind === 'sub') !== Object.hasOwn(item, 'before')) {
    return kind === 'sub' ? 'has sub and no before' : 'has before and no sub';
  }
  const beforeMs = kind === 'sub' ? decodeTime(item['before']) : Number.POSITIVE_INFINITY;
  if (beforeMs === null) return 'has a before that is no time';
  const untilMs = Object.hasOwn(item, 'exp') ? decodeTime(item['exp']) : Number.POSITIVE_INFINITY;
  if (untilMs === null) return 'has an exp that is no time';
  return { key: keyOf(kind, value, iss ?? null), beforeMs, untilMs };
}

const RFC_3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)$/i;
/** ECMAScript's time range. */
const TIME_MS_MAX = 8.64e15;

function decodeTime(value: unknown): number | null {
  let ms = Number.NaN;
  if (typeof value === 'number') ms = value * 1_000;
  else if (typeof value === 'string' && RFC_3339.test(value)) ms = Date.parse(value.toUpperCase());
  return Math.abs(ms) <= TIME_MS_MAX ? ms : null;
}

function keyOf(kind: string, value: string, iss: string | null): string {
  return JSON.stringify([kind, value, iss]);
}

function isRevoked(entries: ReadonlyMap<string, Revocation>, facts: TokenFacts): boolean {
  if (entries.size === 0) return false;
  // The claims before the facts, which leave out what is too long for a log line.
  const claim = (name: string): string | null => {
    const value = ownClaim(facts.claims, name);
    return typeof value === 'string' ? value : null;
  };
  const issuer = claim('iss') ?? facts.issuer;
  const values: [string, string | null][] = [
    ['jti', claim('jti') ?? facts.tokenId],
    ['sub', claim('sub') ?? facts.subject],
    // An actor is somebody too, and may have to be kept out like a subject.
    ['sub', facts.actor],
    ['sid', claim('sid') ?? facts.sessionId],
    ['kid', facts.keyId],
  ];
  return values.some(([kind, value]) => {
    if (value === null) return false;
    return [null, ...(issuer === null ? [] : [issuer])].some((iss) => {
      const entry = entries.get(keyOf(kind, value, iss));
      // A token that does not say when it was issued may have been issued before.
      return entry !== undefined && (facts.issuedAtMs ?? Number.NEGATIVE_INFINITY) < entry.beforeMs;
    });
  });
}

export interface RevocationFileOptions {
  path: string;
  onFault?: ((message: string) => void) | undefined;
  /** Called for the first list and for each changed file. */
  onLoad?: ((list: RevocationList) => void) | undefined;
  /** Milliseconds that only go forward; default `performance.now`. */
  clock?: () => number;
  /** Milliseconds since the epoch; default `Date.now`. */
  now?: () => number;
}

/** A list in a file, read again when it changes; a bad file leaves the old list in force. */
export class RevocationFile {
  readonly #file: WatchedFile;
  #list: RevocationList = NO_REVOCATIONS;

  /** Reads the file; throws `KeyFileFault` when it is unfit. */
  static async open(options: RevocationFileOptions): Promise<RevocationFile> {
    const revocations = new RevocationFile(options);
    await revocations.#file.load();
    return revocations;
  }

  private constructor(options: RevocationFileOptions) {
    const now = options.now ?? Date.now;
    this.#file = new WatchedFile({
      path: options.path,
      what: 'the revocation file',
      bytesMax: REVOCATION_BYTES_MAX,
      take: (text) => {
        this.#list = decodeRevocations(text, now());
        options.onLoad?.(this.#list);
      },
      onFault: options.onFault,
      clock: options.clock,
    });
  }

  get list(): RevocationList {
    return this.#list;
  }

  poll(): Promise<void> {
    return this.#file.look();
  }
}
