/**
 * What a good token is, by issuer: the rows of `[[turnstile.issuers]]` and the `jwt_*` keys, each with what it leaves
 * to the others filled in. Pure. It knows neither keys nor tokens, but for the `iss` by which an entry is picked.
 */
import type { Config, IssuerConfig, RoleRuleConfig } from '../config/config.ts';
import { compileRoleMatch, type RoleMatch } from '../config/role-match.ts';
import { hasFlatKeySource } from '../config/token-use.ts';

/** The parts of a configuration that decide about tokens. */
export type TokenConfig = Pick<
  Config,
  'jwt' | 'turnstile' | 'databases' | 'issuers' | 'roleRules' | 'turnstileDatabases' | 'turnstileUsers'
>;

/** A row of `[[turnstile.role_rules]]`, its expression compiled. */
export interface RoleRule extends Omit<RoleRuleConfig, 'match'> {
  readonly match: RoleMatch | null;
}

/** The rules for the tokens of one issuer. */
export interface TokenRules {
  /** `issuer` of the row; null for the `jwt_*` keys. */
  readonly source: string | null;
  /** The `iss` that is asked for; null accepts any, and none. */
  readonly issuer: string | null;
  /** A token must carry one of them, or one of a database's; empty asks for none. */
  readonly audiences: readonly string[];
  readonly algorithms: readonly string[];
  readonly usernameClaim: string;
  /** Those for this issuer, in their order. Where there is one, the username claim is not looked at. */
  readonly roleRules: readonly RoleRule[];
  /** As written: names, and expressions after a slash; empty allows all. */
  readonly allowedRoles: readonly string[];
  readonly typ: string | null;
  readonly allowedClients: readonly string[];
  /** `claimed`: an email_verified that is there must be true. `always`: it must be there as well. */
  readonly verifiedEmail: 'claimed' | 'always';
  readonly maxLifetimeSeconds: number;
  readonly leewaySeconds: number;
  readonly requireJti: boolean;
  readonly singleUseJti: boolean;
  readonly databaseClaims: readonly string[];
  readonly accessClaim: string;
  readonly permissionsClaim: string;
  readonly delegation: 'actor' | 'reject';
}

/** The rules of every entry: the rows in their order, then the `jwt_*` keys if they name a key source. */
export function tokenRulesOf(config: TokenConfig): TokenRules[] {
  const rules = config.issuers.map((row) => rowRules(config, row));
  return hasFlatKeySource(config) ? [...rules, flatRules(config)] : rules;
}

/** The rules of the `jwt_*` keys. Throws `RangeError` for a role rule whose expression does not compile. */
export function flatRules(config: TokenConfig): TokenRules {
  const { jwt, turnstile } = config;
  return {
    ...sharedRules(config, null, turnstile.jwtIssuer),
    source: null,
    issuer: turnstile.jwtIssuer,
    audiences: jwt.audience === null ? [] : [jwt.audience],
    algorithms: turnstile.jwtAlgorithms,
    usernameClaim: jwt.usernameClaim,
    allowedRoles: [],
    typ: null,
    allowedClients: [],
    verifiedEmail: 'claimed',
    maxLifetimeSeconds: turnstile.maxTokenLifetimeSeconds,
  };
}

function rowRules(config: TokenConfig, row: IssuerConfig): TokenRules {
  const { jwt, turnstile } = config;
  const audiences = row.audiences.length > 0 || jwt.audience === null ? row.audiences : [jwt.audience];
  return {
    ...sharedRules(config, row.issuer, row.issuer),
    source: row.issuer,
    issuer: row.issuer,
    audiences,
    algorithms: row.algorithms.length > 0 ? row.algorithms : turnstile.jwtAlgorithms,
    usernameClaim: row.usernameClaim ?? jwt.usernameClaim,
    allowedRoles: row.allowedRoles,
    typ: row.typ,
    allowedClients: row.allowedClients,
    verifiedEmail: row.requireVerifiedEmail ? 'always' : 'claimed',
    maxLifetimeSeconds: row.maxTokenLifetimeSeconds ?? turnstile.maxTokenLifetimeSeconds,
  };
}

type SharedRules = Pick<
  TokenRules,
  | 'leewaySeconds'
  | 'requireJti'
  | 'singleUseJti'
  | 'databaseClaims'
  | 'accessClaim'
  | 'permissionsClaim'
  | 'delegation'
  | 'roleRules'
>;

function sharedRules(config: TokenConfig, source: string | null, issuer: string | null): SharedRules {
  const { turnstile } = config;
  return {
    leewaySeconds: turnstile.jwtLeewaySeconds,
    requireJti: turnstile.requireJti,
    singleUseJti: turnstile.singleUseJti,
    databaseClaims: turnstile.databaseClaims,
    accessClaim: turnstile.accessClaim,
    permissionsClaim: turnstile.permissionsClaim,
    delegation: turnstile.delegation,
    // An entry that takes any issuer keeps the rules of all; the token's iss decides among them.
    roleRules: config.roleRules
      .filter(
        (rule) => rule.issuer === null || rule.issuer === issuer || (source === null && issuer === null),
      )
      .map((rule) => ({ ...rule, match: rule.match === null ? null : compileRoleMatch(rule.match) })),
  };
}

/**
 * Picks the entry for an `iss` that nobody has verified yet: the row of that issuer, else the entry of the `jwt_*`
 * keys if it takes it, else null.
 */
export function pickEntry<T extends { readonly rules: TokenRules }>(
  entries: readonly T[],
  iss: unknown,
): T | null {
  const row = entries.find(({ rules }) => rules.source !== null && rules.source === iss);
  if (row !== undefined) return row;
  const flat = entries.find(({ rules }) => rules.source === null);
  return flat !== undefined && (flat.rules.issuer === null || flat.rules.issuer === iss) ? flat : null;
}

/** Audiences of databases of their own: a token for one of them is good, though only there. */
export function databaseAudiences(config: Pick<Config, 'turnstileDatabases'>): string[] {
  return config.turnstileDatabases.flatMap((row) => row.audiences);
}

/**
 * What is open in a configuration that works, as short codes: `any_issuer`, `any_audience`, `any_database`,
 * `unverified_email`. Empty when nothing is.
 */
export function findInsecureReasons(config: TokenConfig): string[] {
  const rules = tokenRulesOf(config);
  const names = new Set(config.databases.map((row) => row.name));
  const ownAudience = new Set(
    config.turnstileDatabases.filter((row) => row.audiences.length > 0).map((row) => row.name),
  );
  const isEveryDatabaseTold = [...names].every((name) => ownAudience.has(name));
  const limited = new Set(config.issuers.filter((row) => row.databases.length > 0).map((row) => row.issuer));
  const isOpen = (entry: TokenRules): boolean => entry.source === null || !limited.has(entry.source);
  const isEmail = (path: string): boolean => path.split('.').at(-1) === 'email';
  const found: string[] = [];
  if (rules.some(({ issuer }) => issuer === null)) found.push('any_issuer');
  if (rules.some(({ audiences }) => audiences.length === 0) && !isEveryDatabaseTold)
    found.push('any_audience');
  if (
    names.size > 1 &&
    !config.turnstile.databaseClaimRequired &&
    !isEveryDatabaseTold &&
    rules.some(isOpen)
  ) {
    found.push('any_database');
  }
  const takesEmail = (entry: TokenRules): boolean =>
    entry.roleRules.length > 0
      ? entry.roleRules.some((rule) => isEmail(rule.claim))
      : isEmail(entry.usernameClaim);
  if (rules.some((entry) => entry.verifiedEmail === 'claimed' && takesEmail(entry))) {
    found.push('unverified_email');
  }
  return found;
}
