/**
 * What the claims of a token whose signature is good say here: judged once per token (`readClaims`) but for the clock,
 * which is asked at every use (`judgeClock`). Pure. Whether the role may enter a database is token-identity.ts's.
 */
import { type Claims, claimAt, isBlocked, ownClaim, textClaim } from './claim-path.ts';
import { roleFromClaims, roleFromValue } from './role-from-claims.ts';
import { isRecord, isTokenType, type TokenHeader } from './token-form.ts';
import { TokenRejected, type TokenRejection } from './token-rejected.ts';
import type { TokenRules } from './token-rules.ts';

/** Times beyond this have no date (ECMAScript's time range, in seconds). */
const DATE_SECONDS_MAX = 8_640_000_000_000;

export type Access = 'ro' | 'rw';

/** What a token says of itself, every claim of the right form. */
export interface ClaimReading {
  readonly role: string;
  /** `act.sub` and the role of the subject; null for a token that is not delegated. */
  readonly delegation: { readonly actor: string; readonly subjectRole: string } | null;
  /** One list for each database claim that is there: a database must be in all of them. */
  readonly databases: readonly (readonly string[])[];
  readonly access: Access | null;
  /** By database; null when the token has no such claim. A database that is not there is denied. */
  readonly permissions: ReadonlyMap<string, Access> | null;
  /** `cnf` `x5t#S256` (RFC 8705 section 3.1): the client must hold the key of this certificate. */
  readonly certificateThumbprint: string | null;
}

/** The instants of a token, milliseconds since the epoch. */
export interface TokenClock {
  readonly expiresAtMs: number;
  readonly issuedAtMs: number | null;
}

/** Reads everything that does not depend on the clock; throws `TokenRejected`. `audiences` are also those of databases. */
export function readClaims(
  claims: Claims,
  header: TokenHeader,
  rules: TokenRules,
  audiences: readonly string[],
): ClaimReading {
  if (rules.typ !== null && !isTokenType(header.typ, rules.typ)) throw new TokenRejected('bad_typ');
  if (rules.audiences.length > 0 && !namesAudience(claims, [...rules.audiences, ...audiences])) {
    throw new TokenRejected('bad_audience');
  }
  judgeClient(claims, rules);
  if ((rules.requireJti || rules.singleUseJti) && textClaim(claims, 'jti') === null) {
    throw new TokenRejected('jti_missing');
  }
  const own = roleFromClaims(claims, rules);
  return {
    ...readDelegation(claims, rules, own),
    databases: readDatabases(claims, rules),
    access: readAccess(claims, rules),
    permissions: readPermissions(claims, rules),
    certificateThumbprint: readThumbprint(claims),
  };
}

/** Throws `TokenRejected` unless the token is good at `nowMs`. */
export function judgeClock(claims: Claims, rules: TokenRules, nowMs: number): TokenClock {
  const leewayMs = rules.leewaySeconds * 1_000;
  const exp = ownClaim(claims, 'exp');
  if (exp === undefined) throw new TokenRejected('exp_missing');
  if (typeof exp !== 'number') throw new TokenRejected('bad_exp');
  // `1e999` is valid JSON and reads as Infinity: a token for ever.
  if (!(Math.abs(exp) <= DATE_SECONDS_MAX)) throw new TokenRejected('exp_out_of_range');
  const expiresAtMs = Math.floor(exp * 1_000);
  if (expiresAtMs <= nowMs - leewayMs) throw new TokenRejected('expired');
  judgeStart(ownClaim(claims, 'nbf'), nowMs + leewayMs, 'bad_nbf', 'not_yet_valid');
  const iat = judgeStart(ownClaim(claims, 'iat'), nowMs + leewayMs, 'bad_iat', 'iat_in_future');
  const issuedAtMs = iat === null ? null : Math.floor(iat * 1_000);
  if (exp * 1_000 - (issuedAtMs ?? nowMs) > rules.maxLifetimeSeconds * 1_000) {
    throw new TokenRejected('lifetime_too_long');
  }
  return { expiresAtMs, issuedAtMs };
}

function judgeStart(
  value: unknown,
  latestMs: number,
  unfit: TokenRejection,
  early: TokenRejection,
): number | null {
  if (value === undefined) return null;
  if (typeof value !== 'number' || !(Math.abs(value) <= DATE_SECONDS_MAX)) throw new TokenRejected(unfit);
  if (value * 1_000 > latestMs) throw new TokenRejected(early);
  return value;
}

/** True when `aud` is a string, or a list of nothing but strings, and names one of `wanted` (RFC 7519 section 4.1.3). */
export function namesAudience(claims: Claims, wanted: readonly string[]): boolean {
  const value = ownClaim(claims, 'aud');
  const list: unknown[] = Array.isArray(value) ? value : [value];
  return list.every((item) => typeof item === 'string') && wanted.some((audience) => list.includes(audience));
}

/** Each of `azp` (OpenID Connect Core section 2) and `client_id` (RFC 9068 section 2.2) that is there must be allowed. */
function judgeClient(claims: Claims, rules: TokenRules): void {
  if (rules.allowedClients.length === 0) return;
  const clients = ['azp', 'client_id']
    .map((name) => ownClaim(claims, name))
    .filter((value) => value !== undefined);
  const isAllowed = (client: unknown): boolean =>
    typeof client === 'string' && rules.allowedClients.includes(client);
  if (clients.length === 0 || !clients.every(isAllowed)) throw new TokenRejected('client_not_allowed');
}

/**
 * RFC 8693 section 4.1: the outermost `act` is who acts now, what is nested in it is history. The session is the
 * actor's, by the rule that made the subject's role.
 */
function readDelegation(
  claims: Claims,
  rules: TokenRules,
  own: ReturnType<typeof roleFromClaims>,
): Pick<ClaimReading, 'role' | 'delegation'> {
  const act = ownClaim(claims, 'act');
  if (act === undefined) return { role: own.role, delegation: null };
  if (rules.delegation === 'reject') throw new TokenRejected('delegation_refused');
  if (!isRecord(act)) throw new TokenRejected('bad_act');
  const actor = textClaim(act, 'sub');
  // A subject is unique only within its issuer; the actor of another one is somebody else of that name.
  const issuer = ownClaim(act, 'iss');
  if (actor === null || (issuer !== undefined && issuer !== ownClaim(claims, 'iss'))) {
    throw new TokenRejected('bad_act');
  }
  const role = roleFromValue(actor, own.rule);
  if (role === null) throw new TokenRejected('bad_act');
  return { role, delegation: { actor, subjectRole: own.role } };
}

/** A claim that can only take away: where the way to it is blocked, nobody knows what it would have taken. */
function narrowingClaim(claims: Claims, path: string, unfit: TokenRejection): unknown {
  if (isBlocked(claims, path)) throw new TokenRejected(unfit);
  return claimAt(claims, path);
}

function readDatabases(claims: Claims, rules: TokenRules): string[][] {
  const lists: string[][] = [];
  for (const path of rules.databaseClaims) {
    const value = narrowingClaim(claims, path, 'bad_database_claim');
    if (value === undefined) continue;
    const list: unknown[] = Array.isArray(value) ? value : [value];
    if (list.length === 0 || !isTextList(list)) throw new TokenRejected('bad_database_claim');
    lists.push(list);
  }
  return lists;
}

function readAccess(claims: Claims, rules: TokenRules): Access | null {
  const value = narrowingClaim(claims, rules.accessClaim, 'bad_access_claim');
  if (value === undefined) return null;
  if (value !== 'ro' && value !== 'rw') throw new TokenRejected('bad_access_claim');
  return value;
}

/** The members of the permissions claim; attaching databases (the trailing `a`) is nothing that PostgreSQL has. */
const PERMISSION_ACCESS: Readonly<Record<string, Access>> = { ro: 'ro', roa: 'ro', rw: 'rw', rwa: 'rw' };

function readPermissions(claims: Claims, rules: TokenRules): ReadonlyMap<string, Access> | null {
  const value = narrowingClaim(claims, rules.permissionsClaim, 'bad_permissions_claim');
  if (value === undefined) return null;
  if (!isRecord(value)) throw new TokenRejected('bad_permissions_claim');
  const byDatabase = new Map<string, Access>();
  for (const [name, scope] of Object.entries(value)) {
    const access = Object.hasOwn(PERMISSION_ACCESS, name) ? PERMISSION_ACCESS[name] : undefined;
    const list = isRecord(scope) && Object.keys(scope).length === 1 ? ownClaim(scope, 'ns') : undefined;
    if (access === undefined || !Array.isArray(list) || !isTextList(list)) {
      throw new TokenRejected('bad_permissions_claim');
    }
    for (const database of list) {
      if (access === 'rw' || !byDatabase.has(database)) byDatabase.set(database, access);
    }
  }
  return byDatabase;
}

/** SHA-256 in base64url without padding. */
const THUMBPRINT = /^[\w-]{43}$/;

function readThumbprint(claims: Claims): string | null {
  const confirmation = ownClaim(claims, 'cnf');
  if (confirmation === undefined) return null;
  if (!isRecord(confirmation)) throw new TokenRejected('bad_cnf');
  const thumbprint = ownClaim(confirmation, 'x5t#S256');
  if (thumbprint === undefined) return null;
  if (typeof thumbprint !== 'string' || !THUMBPRINT.test(thumbprint)) throw new TokenRejected('bad_cnf');
  return thumbprint;
}

function isTextList(list: unknown[]): list is string[] {
  return list.every((item) => typeof item === 'string' && item !== '');
}
