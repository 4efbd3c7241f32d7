/**
 * What the checks of a configuration share: what they look at, how they say something about a key, and a few small
 * judgements. Knows the sections, and no rule between keys.
 */
import type { BackendIdentity, Config } from './config.ts';
import type { FaultLog } from './faults.ts';
import type { UserRow } from './schema.ts';
import type { SectionReader } from './section-reader.ts';

/** A configuration that may still have faults, with the users as they were written. */
export interface Draft {
  readonly config: Config;
  readonly userRows: readonly UserRow[];
}

export interface CheckContext {
  readonly reader: SectionReader;
  readonly log: FaultLog;
  /** Name of pgdog.toml as given, for findings about what it lacks. */
  readonly configFile: string;
  readonly nowMs: number;
}

/** A warning says that a key does less than it seems to; a weakness, that a door stands open. */
export type Severity = 'fault' | 'warn' | 'weakness';

/** Says something about a key of a section unless its value was already refused. */
export function say(
  context: CheckContext,
  severity: Severity,
  label: string,
  key: string,
  message: string,
): void {
  if (context.reader.isFaulty(label, key)) return;
  context.log[severity](context.reader.placeOf(label, key), message);
}

/** The three ways to speak about keys of one section. */
export interface Voice {
  fault: (key: string, message: string) => void;
  warn: (key: string, message: string) => void;
  weakness: (key: string, message: string) => void;
}

export function voiceFor(context: CheckContext, label: string): Voice {
  const speak =
    (severity: Severity) =>
    (key: string, message: string): void =>
      say(context, severity, label, key, message);
  return { fault: speak('fault'), warn: speak('warn'), weakness: speak('weakness') };
}

/** True for an address or name that never leaves the machine. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host);
}

/** Why http is not good enough for this address of an issuer, or null. The text must be a URL. */
export function httpFault(address: string, config: Config): string | null {
  const url = new URL(address);
  const allowed = config.turnstile.allowHttpIssuers;
  if (url.protocol === 'https:') return null;
  if (url.protocol === 'http:') {
    if (allowed === 'always' || (allowed === 'loopback' && isLoopback(url.hostname))) return null;
  }
  const scope = allowed === 'loopback' ? 'loopback hosts only' : 'no host';
  return `must be https: allow_http_issuers permits http for ${scope}`;
}

/** A dotted path has a name between any two dots; a path with :// in it is one name. */
export function pathFault(path: string): string | null {
  return !path.includes('://') && path.split('.').includes('') ? 'has an empty part between dots' : null;
}

/** Names of the databases that clients can ask for, each once. */
export function databaseNames(config: Config): Set<string> {
  return new Set(config.databases.map((row) => row.name).filter((name) => name !== ''));
}

/** Every way in which a token's role may be had at PostgreSQL by this configuration. */
export function backendIdentities(config: Config): Set<BackendIdentity> {
  const found = new Set<BackendIdentity>();
  for (const row of config.turnstileUsers) if (row.backendIdentity !== null) found.add(row.backendIdentity);
  const names = databaseNames(config);
  for (const name of names) {
    const row = config.turnstileDatabases.find((candidate) => candidate.name === name);
    found.add(row?.backendIdentity ?? config.turnstile.backendIdentity);
  }
  if (names.size === 0) found.add(config.turnstile.backendIdentity);
  return found;
}

/** True when somebody has to log in to PostgreSQL for the role of a token. */
export function needsServerUser(config: Config): boolean {
  return backendIdentities(config).has('set_role');
}

/** Why no document can be fetched from this issuer, or null. */
export function issuerUrlFault(issuer: string, config: Config): string | null {
  if (!/^https?:\/\//.test(issuer) || !URL.canParse(issuer)) return 'must be an https:// URL';
  const url = new URL(issuer);
  if (url.username !== '' || url.password !== '') return 'must not hold a user or password';
  if (/[?#]/.test(issuer)) return 'must have neither ? nor #';
  return httpFault(issuer, config);
}

/** True when every database has audiences of its own, so that the issuer's own need not exist. */
export function everyDatabaseHasAudience(config: Config): boolean {
  const names = databaseNames(config);
  const has = (name: string): boolean =>
    config.turnstileDatabases.some((row) => row.name === name && row.audiences.length > 0);
  return names.size > 0 && [...names].every(has);
}

/** NAMEDATALEN - 1: PostgreSQL cuts longer names, and two different users would become one (src/include/pg_config_manual.h). */
const NAME_BYTES_MAX = 63;

/** What is wrong with a name of PostgreSQL that is too long, or null. */
export function lengthFault(name: string): string | null {
  return Buffer.byteLength(name) > NAME_BYTES_MAX
    ? `is longer than ${NAME_BYTES_MAX} bytes, which PostgreSQL would cut off`
    : null;
}
