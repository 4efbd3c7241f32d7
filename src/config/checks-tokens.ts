/**
 * What tokens must hold, and for how long they count; and every key about them that does nothing because no login
 * takes one. Who may sign them is checks-issuers.ts. A token never comes here.
 */
import {
  type CheckContext,
  databaseNames,
  everyDatabaseHasAudience,
  needsServerUser,
  pathFault,
  say,
  voiceFor,
} from './check-context.ts';
import { checkIssuers } from './checks-issuers.ts';
import type { Config } from './config.ts';
import { checkRevocationFile } from './json-checks.ts';
import { JWT } from './schema.ts';
import { hasFlatKeySource, usesTokens } from './token-use.ts';

/** Reports every finding about tokens. Without a login that takes one, the keys that have no effect. */
export function checkTokens(config: Config, context: CheckContext): void {
  if (!usesTokens(config)) return checkUnused(config, context);
  const { reader } = context;
  const isFlat =
    hasFlatKeySource(config) ||
    reader.isFaulty('general', 'jwt_public_key_file') ||
    reader.isFaulty('general', 'jwt_jwks_url');
  if (!isFlat && config.issuers.length === 0) {
    const what =
      'needs jwt_public_key_file, jwt_jwks_url or a row of turnstile.issuers to verify tokens with';
    for (const [label, key, method] of askers(config)) {
      say(context, 'fault', label, key, `${method} ${what}`);
    }
  }
  checkIssuers(config, isFlat, context);
  checkProvisioning(config, context);
  checkClaims(config, context);
  checkDatabasesOfTokens(config, context);
  checkLife(config, context);
}

/** Where a token is asked for: label, key, and the word that does it. */
function askers(config: Config): [label: string, key: string, method: string][] {
  const found: [string, string, string][] = [];
  if (config.general.authType === 'jwt') found.push(['general', 'auth_type', 'jwt']);
  for (const [index, rule] of config.loginRules.entries()) {
    if (rule.method !== 'jwt' && rule.method !== 'oauth') continue;
    found.push([`turnstile.login_rules[${index}]`, 'method', rule.method]);
  }
  return found;
}

function checkProvisioning(config: Config, context: CheckContext): void {
  const { jwt } = config;
  const { fault, warn } = voiceFor(context, 'general');
  const isServerUserGiven = context.reader.isGiven('general', 'jwt_server_user');
  if (jwt.userAutoProvision && !isServerUserGiven && needsServerUser(config)) {
    fault(
      'jwt_user_auto_provision',
      'needs jwt_server_user: somebody has to log in to PostgreSQL for the role',
    );
  }
  if (jwt.userAutoProvisionReadOnly && !jwt.userAutoProvision) {
    warn('jwt_user_auto_provision_read_only', 'has no effect without jwt_user_auto_provision');
  }
  if (jwt.serverPassword !== null && !isServerUserGiven) {
    warn('jwt_server_password', 'has no effect without jwt_server_user');
  }
}

function checkClaims(config: Config, context: CheckContext): void {
  const { turnstile } = config;
  const { fault, warn, weakness } = voiceFor(context, 'turnstile');
  for (const [key, paths] of [
    ['database_claims', turnstile.databaseClaims],
    ['access_claim', [turnstile.accessClaim]],
    ['permissions_claim', [turnstile.permissionsClaim]],
    ['admin_claim', turnstile.adminClaim === null ? [] : [turnstile.adminClaim]],
  ] as const) {
    const problem = paths.map(pathFault).find((found) => found !== null);
    if (problem !== undefined) fault(key, problem);
  }
  if (turnstile.databaseClaimRequired && turnstile.databaseClaims.length === 0) {
    fault('database_claim_required', 'is true, but database_claims is empty: no token could enter');
  }
  if (turnstile.allowPlaintextTokens === 'always') {
    weakness(
      'allow_plaintext_tokens',
      'always: tokens cross the network as they are, and who reads one can use it',
    );
  }
  if (turnstile.allowHttpIssuers === 'always') {
    weakness('allow_http_issuers', 'always: who can answer for the issuer can make every token valid');
  }
  if (turnstile.maxTokenLifetimeSeconds === Number.POSITIVE_INFINITY) {
    warn('max_token_lifetime', '0: a token that leaked is good for as long as its issuer says');
  }
}

/** With several databases a token should say which. */
function checkDatabasesOfTokens(config: Config, context: CheckContext): void {
  const names = databaseNames(config);
  if (names.size < 2 || config.turnstile.databaseClaimRequired) return;
  if (everyDatabaseHasAudience(config)) return;
  if (!hasFlatKeySource(config) && config.issuers.every((row) => row.databases.length > 0)) return;
  const message = `false: a token that names no database may enter every one of ${names.size}; require the claim, give each database audiences of its own, or each issuer its databases`;
  say(context, 'weakness', 'turnstile', 'database_claim_required', message);
}

function checkLife(config: Config, context: CheckContext): void {
  const { turnstile } = config;
  const { fault, warn, weakness } = voiceFor(context, 'turnstile');
  if (turnstile.onTokenExpiry === 'ignore') {
    weakness('on_token_expiry', 'ignore: a session goes on for as long as its client likes');
  }
  if (turnstile.onTokenExpiry !== 'drain' && context.reader.isGiven('turnstile', 'expiry_grace')) {
    warn('expiry_grace', `has no effect while on_token_expiry is ${turnstile.onTokenExpiry}`);
  }
  if (turnstile.onKeyRemoved === 'ignore') {
    weakness('on_key_removed', 'ignore: sessions outlive the key that vouched for them');
  }
  if (turnstile.revocationFile !== null) {
    checkRevocationFile(turnstile.revocationFile, (message) => fault('revocation_file', message));
  }
}

const UNUSED_SECTIONS = [
  ['turnstile.issuers', 'issuer', 'issuers'],
  ['turnstile.role_rules', 'claim', 'roleRules'],
  ['turnstile.claim_settings', 'claim', 'claimSettings'],
  ['turnstile.users', 'name', 'turnstileUsers'],
] as const;

/** Keys of [turnstile] that speak of tokens alone. */
const UNUSED_KEYS: readonly string[] = [
  'allow_http_issuers',
  'jwt_algorithms',
  'jwt_issuer',
  'jwt_leeway',
  'max_token_lifetime',
  'allow_missing_kid',
  'require_jti',
  'single_use_jti',
  'database_claims',
  'database_claim_required',
  'access_claim',
  'permissions_claim',
  'delegation',
  'claims_setting',
  'claims_mac_key',
  'claims_mac_key_id',
  'admin_claim',
  'oauth_issuer',
  'oauth_scope',
  'on_token_expiry',
  'expiry_grace',
  'max_session',
  'revocation_file',
  'on_key_removed',
];

function checkUnused(config: Config, context: CheckContext): void {
  const why = `has no effect while auth_type is ${config.general.authType}`;
  const more = context.reader.isGiven('turnstile', 'auth_required') && !config.turnstile.authRequired;
  for (const spec of Object.values(JWT)) {
    // Anonymous users come in through the same service user.
    if (more && (spec === JWT.serverUser || spec === JWT.serverPassword)) continue;
    if (context.reader.isGiven('general', spec.key)) say(context, 'warn', 'general', spec.key, why);
  }
  const noToken = `${why} and no login rule asks for a token`;
  for (const key of UNUSED_KEYS) {
    if (context.reader.isGiven('turnstile', key)) say(context, 'warn', 'turnstile', key, noToken);
  }
  for (const [section, key, field] of UNUSED_SECTIONS) {
    if (config[field].length > 0) say(context, 'warn', `${section}[0]`, key, noToken);
  }
}
