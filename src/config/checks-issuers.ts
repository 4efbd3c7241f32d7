/**
 * Who may vouch for a client: the `jwt_*` keys and the rows of turnstile.issuers. Finds sources that cannot work, and
 * sources that vouch for more than meant. The files it reads hold public keys and certificates.
 */
import {
  type CheckContext,
  databaseNames,
  everyDatabaseHasAudience,
  httpFault,
  issuerUrlFault,
  pathFault,
  say,
  voiceFor,
} from './check-context.ts';
import { mayMakeSame } from './checks-roles.ts';
import type { Config, IssuerConfig, RoleRuleConfig } from './config.ts';
import { didYouMean } from './faults.ts';
import { checkJwksFile } from './json-checks.ts';
import { compileNames } from './name-pattern.ts';
import { checkCaFile, checkPublicKeyFile } from './pem-checks.ts';
import { ISSUERS } from './schema.ts';
import { hasFlatKeySource } from './token-use.ts';

/** Reports every finding about sources of tokens; `isFlat` when the `jwt_*` keys are meant to be one. */
export function checkIssuers(config: Config, isFlat: boolean, context: CheckContext): void {
  checkFlatKeys(config, isFlat, context);
  for (const [index, row] of config.issuers.entries()) checkIssuer(config, row, index, context);
  checkShared(config, context);
}

function checkFlatKeys(config: Config, isFlat: boolean, context: CheckContext): void {
  const { jwt, turnstile } = config;
  const isGiven = (key: string): boolean => context.reader.isGiven('general', key);
  const { fault, warn, weakness } = voiceFor(context, 'general');
  if (jwt.publicKeyFile !== null && jwt.jwksUrl !== null) {
    warn('jwt_jwks_url', 'has no effect beside jwt_public_key_file, which wins');
  }
  if (jwt.publicKeyFile !== null) {
    checkPublicKeyFile(jwt.publicKeyFile, turnstile.jwtAlgorithms, (message) =>
      fault('jwt_public_key_file', message),
    );
  }
  if (jwt.jwksUrl !== null) {
    const problem = httpFault(jwt.jwksUrl, config);
    if (problem !== null) fault('jwt_jwks_url', problem);
  }
  if (isFlat && !isGiven('jwt_audience') && !everyDatabaseHasAudience(config)) {
    weakness(
      'jwt_audience',
      'is not set: a token that the issuer made for any other application opens this one too',
    );
  }
  const pin = voiceFor(context, 'turnstile');
  if (isFlat && turnstile.jwtIssuer === null) {
    pin.weakness(
      'jwt_issuer',
      'is not set: whoever the keys of jwt_public_key_file or jwt_jwks_url sign for may enter, every tenant of a shared issuer included',
    );
  } else if (!isFlat && turnstile.jwtIssuer !== null) {
    pin.warn('jwt_issuer', 'has no effect without jwt_public_key_file or jwt_jwks_url');
  }
  const path = pathFault(jwt.usernameClaim);
  if (path !== null) fault('jwt_username_claim', path);
  if (isFlat && isEmailRole(config, turnstile.jwtIssuer, null)) {
    weakness(
      'jwt_username_claim',
      'makes a role of an e-mail address that the token need not call verified; a row of turnstile.issuers asks for that',
    );
  }
}

function checkIssuer(config: Config, row: IssuerConfig, index: number, context: CheckContext): void {
  if (row.issuer === '') return;
  const label = `turnstile.issuers[${index}]`;
  const { fault, warn, weakness } = voiceFor(context, label);
  const first = config.issuers.findIndex((other) => other.issuer === row.issuer);
  if (first !== index) fault('issuer', `is the issuer of turnstile.issuers[${first}] already`);
  checkKeySource(config, row, label, context);
  if (row.audiences.length === 0 && config.jwt.audience === null && !everyDatabaseHasAudience(config)) {
    weakness('audiences', 'are not set: a token that it made for any other application opens this one too');
  }
  const path = row.usernameClaim === null ? null : pathFault(row.usernameClaim);
  if (path !== null) fault('username_claim', path);
  try {
    compileNames(row.allowedRoles);
  } catch (error) {
    fault('allowed_roles', (error as Error).message);
  }
  const names = databaseNames(config);
  for (const name of names.size === 0 ? [] : row.databases) {
    if (!names.has(name)) fault('databases', `there is no database "${name}"${didYouMean(name, names)}`);
  }
  const isByEmail = isEmailRole(config, row.issuer, row.usernameClaim);
  if (!row.requireVerifiedEmail && isByEmail) {
    weakness(
      'require_verified_email',
      'false: whoever may write any address into an account of the issuer is the role of that address',
    );
  } else if (context.reader.isGiven(label, 'require_verified_email') && !isByEmail) {
    warn('require_verified_email', 'has no effect: no role of the issuer comes from the claim email');
  }
}

function checkKeySource(config: Config, row: IssuerConfig, label: string, context: CheckContext): void {
  const { fault, warn } = voiceFor(context, label);
  const algorithms = row.algorithms.length > 0 ? row.algorithms : config.turnstile.jwtAlgorithms;
  const given = [
    ...(context.reader.isGiven(label, 'jwks_url') ? ['jwks_url'] : []),
    ...(context.reader.isGiven(label, 'jwks_file') ? ['jwks_file'] : []),
    ...(context.reader.isGiven(label, 'public_key_file') ? ['public_key_file'] : []),
    ...(row.discovery ? ['discovery'] : []),
  ];
  const [, second] = given;
  if (given.length === 0) {
    fault('issuer', 'needs one of jwks_url, jwks_file, public_key_file and discovery = true');
  }
  if (second !== undefined) fault(second, `is given together with ${given[0]}; keep one of them`);
  if (row.jwksUrl !== null) {
    const problem = httpFault(row.jwksUrl, config);
    if (problem !== null) fault('jwks_url', problem);
  }
  if (row.publicKeyFile !== null) {
    checkPublicKeyFile(row.publicKeyFile, algorithms, (message) => fault('public_key_file', message));
  }
  if (row.jwksFile !== null) {
    const { allowMissingKid } = config.turnstile;
    checkJwksFile(row.jwksFile, algorithms, allowMissingKid, (message) => fault('jwks_file', message));
  }
  if (row.caFile !== null) checkCaFile(row.caFile, (message) => fault('ca_file', message));
  if (row.discovery) checkDiscovery(config, row, label, context);

  const isFetched = row.jwksUrl !== null || row.discovery;
  const isIdle = (key: string): boolean => context.reader.isGiven(label, key);
  if (!isFetched && isIdle(ISSUERS.jwksCacheTtlSeconds.key)) {
    warn('jwks_cache_ttl', 'has no effect without jwks_url or discovery');
  }
  if (!isFetched && row.caFile !== null) warn('ca_file', 'has no effect without jwks_url or discovery');
  if (!row.discovery && row.jwksOrigins.length > 0) warn('jwks_origins', 'has no effect without discovery');
}

/** OpenID Connect Discovery 1.0 section 3: an issuer is an https URL without query and fragment. */
function checkDiscovery(config: Config, row: IssuerConfig, label: string, context: CheckContext): void {
  const { fault } = voiceFor(context, label);
  const problem = issuerUrlFault(row.issuer, config);
  if (problem !== null) fault('issuer', `${problem}; discovery asks it`);
  for (const origin of row.jwksOrigins) {
    if (!URL.canParse(origin) || new URL(origin).origin !== origin) {
      fault('jwks_origins', `"${origin}" must be an origin such as https://keys.example.com`);
      continue;
    }
    const unsafe = httpFault(origin, config);
    if (unsafe !== null) fault('jwks_origins', `"${origin}" ${unsafe}`);
  }
}

interface Source {
  readonly label: string;
  readonly key: string;
  readonly name: string;
  readonly issuer: string | null;
  readonly allowedRoles: readonly string[];
  readonly databases: readonly string[];
}

function sourcesOf(config: Config): Source[] {
  const rows = config.issuers.map((row, index) => ({
    label: `turnstile.issuers[${index}]`,
    key: 'allowed_roles',
    name: `turnstile.issuers[${index}]`,
    issuer: row.issuer,
    allowedRoles: row.allowedRoles,
    databases: row.databases,
  }));
  if (!hasFlatKeySource(config)) return rows;
  const key = config.jwt.publicKeyFile === null ? 'jwt_jwks_url' : 'jwt_public_key_file';
  return [
    { label: 'general', key, name: key, issuer: config.turnstile.jwtIssuer, allowedRoles: [], databases: [] },
    ...rows,
  ];
}

/** Two issuers that can name one role: each is then as strong as the weaker of the two. */
function checkShared(config: Config, context: CheckContext): void {
  const sources = sourcesOf(config);
  for (const [index, source] of sources.entries()) {
    const twin = sources.slice(0, index).find((earlier) => mayMeet(earlier, source, config));
    if (twin === undefined) continue;
    const message = `may name the same roles as ${twin.name}: give both an allowed_roles without a role in common, role_rules with different prefixes, or databases without one in common`;
    say(context, 'weakness', source.label, source.key, message);
  }
}

function mayMeet(one: Source, other: Source, config: Config): boolean {
  if (!sharesNames(one.databases, other.databases, false)) return false;
  if (!sharesNames(one.allowedRoles, other.allowedRoles, true)) return false;
  const [outputs, others] = [one, other].map((source) => {
    const rules = rulesFor(config, source.issuer);
    return rules.length === 0 ? [{ addPrefix: null, addSuffix: null }] : rules;
  });
  return outputs!.some((rule) => others!.some((another) => mayMakeSame(rule, another)));
}

/** True unless the two lists are sure to have nothing in common; an empty list stands for everything. */
function sharesNames(one: readonly string[], other: readonly string[], hasPatterns: boolean): boolean {
  if (one.length === 0 || other.length === 0) return true;
  if (!hasPatterns) return one.some((name) => other.includes(name));
  const isPattern = (entry: string): boolean => entry.startsWith('/');
  // Whether two expressions have a name in common is not for us to find out.
  if (one.some(isPattern) && other.some(isPattern)) return true;
  try {
    const [fitsOne, fitsOther] = [compileNames(one), compileNames(other)];
    return (
      one.some((name) => !isPattern(name) && fitsOther(name)) ||
      other.some((name) => !isPattern(name) && fitsOne(name))
    );
  } catch {
    return false;
  }
}

/** The rules for the tokens of an issuer; where there is one, the username claim is not looked at. */
function rulesFor(config: Config, issuer: string | null): RoleRuleConfig[] {
  return config.roleRules.filter((rule) => rule.issuer === null || issuer === null || rule.issuer === issuer);
}

/** True when a role of this issuer may come from an e-mail address. */
function isEmailRole(config: Config, issuer: string | null, usernameClaim: string | null): boolean {
  const claims = rulesFor(config, issuer).map((rule) => rule.claim);
  if (claims.length === 0) claims.push(usernameClaim ?? config.jwt.usernameClaim);
  return claims.some((claim) => !claim.includes('://') && claim.split('.').at(-1) === 'email');
}
