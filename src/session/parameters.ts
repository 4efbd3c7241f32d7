/**
 * The settings of a session as values that can be compared by identity: a client's set and the set in force on a
 * server connection are the same object when nothing has to be sent. Pure; it knows no socket.
 */
import { Lru } from '../base/lru.ts';

/** Reported by PostgreSQL but not to be set by a session (GUC_REPORT with a fixed or derived value). */
const REPORT_ONLY: ReadonlySet<string> = new Set([
  'is_superuser',
  'session_authorization',
  'server_version',
  'server_encoding',
  'integer_datetimes',
  'in_hot_standby',
  'scram_iterations',
]);

/** Settings that cannot change what a statement text means, so they do not split the prepared statements. */
const PARSE_NEUTRAL: ReadonlySet<string> = new Set([
  'application_name',
  'statement_timeout',
  'lock_timeout',
  'idle_in_transaction_session_timeout',
  'idle_session_timeout',
  'transaction_timeout',
  'client_min_messages',
  'extra_float_digits',
]);

/** So are claims, which a backend like PostgREST sets for each of its requests. */
function isParseNeutral(name: string): boolean {
  return PARSE_NEUTRAL.has(name) || name.startsWith('request.jwt.') || name.startsWith('turnstile.');
}

/** Values set beyond the server's defaults. Immutable; equal sets are mostly, not always, one object. */
export class ParameterSet {
  /** Lower-case name → value as PostgreSQL shows it. */
  readonly values: ReadonlyMap<string, string>;
  /** The part of the set that can change the meaning of a statement text, as a key. */
  readonly parseKey: string;

  constructor(values: ReadonlyMap<string, string>) {
    this.values = values;
    let key = '';
    for (const [name, value] of values) if (!isParseNeutral(name)) key += `${name}\u0001${value}\u0002`;
    this.parseKey = key;
  }
}

/** Hands out one object per set of values; forgets the least used ones, which costs a comparison and no more. */
export class ParameterSets {
  readonly empty: ParameterSet = new ParameterSet(new Map());
  readonly #known = new Lru<string, ParameterSet>(KNOWN_MAX);

  of(values: ReadonlyMap<string, string>): ParameterSet {
    if (values.size === 0) return this.empty;
    const sorted = [...values].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    let key = '';
    for (const [name, value] of sorted) key += `${name}\u0001${value}\u0002`;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const made = new ParameterSet(new Map(sorted));
    this.#known.set(key, made);
    return made;
  }

  /** The set with one value changed; null takes the name out. */
  with(set: ParameterSet, name: string, value: string | null): ParameterSet {
    const current = set.values.get(name);
    if (current === (value ?? undefined)) return set;
    const values = new Map(set.values);
    if (value === null) values.delete(name);
    else values.set(name, value);
    return this.of(values);
  }
}

/** True when a reported value is one that a session may have chosen. */
export function isSessionSetting(name: string): boolean {
  return !REPORT_ONLY.has(name);
}

/** What must be set to get from one set to the other; null is "back to the default". Null when nothing. */
export function parameterDifference(
  from: ParameterSet,
  to: ParameterSet,
): { names: string[]; values: (string | null)[] } | null {
  const names: string[] = [];
  const values: (string | null)[] = [];
  for (const [name, value] of to.values) {
    if (from.values.get(name) === value) continue;
    names.push(name);
    values.push(value);
  }
  for (const name of from.values.keys()) {
    if (to.values.has(name)) continue;
    names.push(name);
    values.push(null);
  }
  return names.length === 0 ? null : { names, values };
}

/** A PostgreSQL text[] literal; null elements are NULL. */
export function textArrayLiteral(values: readonly (string | null)[]): string {
  const items = values.map((value) =>
    value === null ? 'NULL' : `"${value.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`,
  );
  return `{${items.join(',')}}`;
}

const KNOWN_MAX = 10_000;
