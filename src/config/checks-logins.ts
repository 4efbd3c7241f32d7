/**
 * How clients prove themselves: auth_type, the rows of turnstile.login_rules, client certificates, anonymous users,
 * and whether each user of users.toml can log in at all. Rules that nothing reaches and doors left open are called
 * by their name. Reads certificates only.
 */
import { isIP } from 'node:net';
import {
  type CheckContext,
  databaseNames,
  isLoopback,
  issuerUrlFault,
  lengthFault,
  needsServerUser,
  say,
  voiceFor,
} from './check-context.ts';
import type { Config, LoginMethod, LoginRuleConfig, UserConfig } from './config.ts';
import { didYouMean } from './faults.ts';
import { compileNames } from './name-pattern.ts';
import { checkCaFile } from './pem-checks.ts';
import { oauthIssuerOf, usesTokens } from './token-use.ts';

/** Reports every finding about logins, those of each user aside. */
export function checkLogins(config: Config, context: CheckContext): void {
  checkAuthType(config, context);
  checkPlaintext(config, context);
  checkClientCertificates(config, context);
  for (const index of config.loginRules.keys()) checkRule(config, index, context);
  checkOauth(config, context);
  checkAnonymous(config, context);
}

function checkAuthType(config: Config, context: CheckContext): void {
  const { authType, tlsClientRequired, host } = config.general;
  const { weakness } = voiceFor(context, 'general');
  // What every client meets in a rule first is not auth_type's any more.
  if (config.loginRules.some(isCatchAll)) return;
  if (authType === 'trust') {
    weakness(
      'auth_type',
      'trust asks nobody for a proof: whoever reaches the port is any user of users.toml',
    );
  }
  if (authType === 'plain' && !tlsClientRequired && !isLoopback(host)) {
    weakness('auth_type', 'plain sends passwords as they are; set tls_client_required');
  }
}

/** A token needs a connection that it may be presented on. */
function checkPlaintext(config: Config, context: CheckContext): void {
  const { general, turnstile } = config;
  if (!usesTokens(config) || general.tlsCertificate !== null) return;
  if (context.reader.isFaulty('general', 'tls_certificate')) return;
  if (turnstile.allowPlaintextTokens === 'never') {
    const message = 'never, but there is no tls_certificate: no token could be presented';
    say(context, 'fault', 'turnstile', 'allow_plaintext_tokens', message);
  } else if (turnstile.allowPlaintextTokens === 'loopback' && !isLoopback(general.host)) {
    const message = 'is not set: tokens are accepted from this machine only (allow_plaintext_tokens)';
    say(context, 'warn', 'general', 'tls_certificate', message);
  }
}

function checkClientCertificates(config: Config, context: CheckContext): void {
  const { tlsClientCaCertificate, tlsCertificate } = config.general;
  const { fault } = voiceFor(context, 'general');
  const isGiven = context.reader.isGiven('general', 'tls_client_ca_certificate');
  if (tlsClientCaCertificate !== null) {
    checkCaFile(tlsClientCaCertificate, (message) => fault('tls_client_ca_certificate', message));
    if (tlsCertificate === null && !context.reader.isFaulty('general', 'tls_certificate')) {
      fault('tls_client_ca_certificate', 'needs tls_certificate: without it clients cannot use TLS');
    }
  }
  for (const [index, user] of config.users.entries()) {
    const voice = voiceFor(context, `users[${index}]`);
    if (user.tlsClientCertificateRequired === true && !isGiven) {
      voice.fault('tls_client_certificate_required', 'is true, but there is no tls_client_ca_certificate');
    } else if (user.identity !== null && !isGiven) {
      voice.weakness(
        'identity',
        'has no effect without tls_client_ca_certificate: no certificate is looked at',
      );
    }
    if (user.identity === null) continue;
    const twin = config.users.findIndex((other) => other.identity === user.identity);
    if (twin < index && config.users[twin]!.name !== user.name) {
      voice.fault('identity', `is the identity of users[${twin}] already`);
    }
  }
}

function checkRule(config: Config, index: number, context: CheckContext): void {
  const rule = config.loginRules[index]!;
  const label = `turnstile.login_rules[${index}]`;
  const { fault, warn, weakness } = voiceFor(context, label);
  for (const address of rule.address) {
    const problem = addressFault(address);
    if (problem !== null) fault('address', `"${address}" ${problem}`);
  }
  try {
    compileNames(rule.user);
  } catch (error) {
    fault('user', (error as Error).message);
  }
  const names = new Set([...databaseNames(config), config.admin.name]);
  for (const name of rule.database) {
    if (names.has(name)) continue;
    const hint = name === 'all' ? '; leave the key out for all' : didYouMean(name, names);
    if (names.size > 1) fault('database', `there is no database "${name}"${hint}`);
  }
  checkRuleMethod(config, rule, label, context);
  const isConsole = rule.database.length === 1 && rule.database[0] === config.admin.name;
  if (rule.method === 'trust' && !isConsole) {
    weakness('method', 'trust asks nobody for a proof: whoever the row fits is any user of users.toml');
  }
  const earlier = config.loginRules.findIndex((other, at) => at < index && covers(other, rule));
  if (earlier !== -1) {
    warn('method', `has no effect: turnstile.login_rules[${earlier}] fits whenever this row does`);
  }
}

function checkRuleMethod(config: Config, rule: LoginRuleConfig, label: string, context: CheckContext): void {
  const { general, turnstile, users, admin } = config;
  const { fault, warn, weakness } = voiceFor(context, label);
  const hasTls = general.tlsCertificate !== null || context.reader.isGiven('general', 'tls_certificate');
  if (rule.tls === 'on' && !hasTls) warn('tls', 'on, but there is no tls_certificate: the row fits nobody');
  if (rule.tls === 'off' && general.tlsClientRequired) {
    warn('tls', 'off, but tls_client_required is true: the row fits nobody');
  }
  const isToken = rule.method === 'jwt' || rule.method === 'oauth';
  if (isToken && rule.tls === 'off' && turnstile.allowPlaintextTokens === 'never') {
    fault('method', `${rule.method} without TLS, which allow_plaintext_tokens never permits`);
  }
  if (rule.method === 'cert') {
    if (!context.reader.isGiven('general', 'tls_client_ca_certificate')) {
      fault('method', 'cert needs tls_client_ca_certificate to check certificates against');
    }
    if (rule.tls === 'off') fault('tls', 'off, but a certificate is shown by TLS alone');
    if (users.every((user) => user.identity === null)) {
      fault('method', 'cert needs a user of users.toml with an identity');
    }
  }
  const isPlain = rule.method === 'plain' && rule.tls !== 'on' && !general.tlsClientRequired;
  if (isPlain && !isLoopback(general.host) && !rule.address.every(isLoopback)) {
    weakness('method', 'plain sends passwords as they are; set tls = "on"');
  }
  if (rule.database.length !== 1 || rule.database[0] !== admin.name) return;
  if (isToken && turnstile.adminClaim === null) {
    fault('method', `${rule.method} needs admin_claim: without it no token opens the console`);
  } else if (!isToken && rule.method !== 'scram' && rule.method !== 'reject') {
    warn('method', 'has no effect: the console takes SCRAM, or a token with admin_claim');
  }
}

function addressFault(address: string): string | null {
  const [host = '', bits, more] = address.split('/');
  const version = host.includes('%') ? 0 : isIP(host);
  if (version === 0 || more !== undefined) {
    return address === 'all'
      ? 'is no address; leave the key out for all'
      : 'must be an address or a range such as 10.0.0.0/8';
  }
  if (bits === undefined) return null;
  const most = version === 4 ? 32 : 128;
  return /^\d{1,3}$/.test(bits) && Number(bits) <= most
    ? null
    : `must have a length from 0 to ${most} after the slash`;
}

function isCatchAll(rule: LoginRuleConfig): boolean {
  return rule.database.length + rule.user.length + rule.address.length === 0 && rule.tls === 'any';
}

/** True when `earlier` fits every client that `later` fits, as far as their texts show. */
function covers(earlier: LoginRuleConfig, later: LoginRuleConfig): boolean {
  const includes = (wide: readonly string[], narrow: readonly string[]): boolean =>
    wide.length === 0 || (narrow.length > 0 && narrow.every((entry) => wide.includes(entry)));
  return (
    includes(earlier.database, later.database) &&
    includes(earlier.user, later.user) &&
    includes(earlier.address, later.address) &&
    (earlier.tls === 'any' || earlier.tls === later.tls)
  );
}

function checkOauth(config: Config, context: CheckContext): void {
  const { turnstile } = config;
  const { fault, warn } = voiceFor(context, 'turnstile');
  const rule = config.loginRules.findIndex((row) => row.method === 'oauth');
  if (rule === -1) {
    // Without any login by token, checks-tokens.ts has said so already.
    if (!usesTokens(config)) return;
    for (const key of ['oauth_issuer', 'oauth_scope']) {
      if (context.reader.isGiven('turnstile', key))
        warn(key, 'has no effect without a login rule of method oauth');
    }
    return;
  }
  const issuer = oauthIssuerOf(config);
  if (issuer === null) {
    const message = 'oauth needs oauth_issuer or a row of turnstile.issuers to send clients to';
    say(context, 'fault', `turnstile.login_rules[${rule}]`, 'method', message);
    return;
  }
  const problem = issuerUrlFault(issuer, config);
  if (problem === null) return;
  if (turnstile.oauthIssuer !== null) fault('oauth_issuer', problem);
  else if (config.issuers.length === 0)
    fault('jwt_issuer', `${problem}; clients of method oauth are sent to it`);
  else
    say(
      context,
      'fault',
      'turnstile.issuers[0]',
      'issuer',
      `${problem}; clients of method oauth are sent to it`,
    );
}

function checkAnonymous(config: Config, context: CheckContext): void {
  const { turnstile, jwt } = config;
  const { fault, warn, weakness } = voiceFor(context, 'turnstile');
  if (turnstile.authRequired) {
    if (turnstile.anonymousRole !== null) warn('anonymous_role', 'has no effect while auth_required is true');
    if (turnstile.anonymousUsers.length > 0) {
      warn('anonymous_users', 'has no effect while auth_required is true');
    }
    return;
  }
  if (!context.reader.isGiven('turnstile', 'anonymous_role')) {
    fault('auth_required', 'is false, but there is no anonymous_role to let clients in as');
  }
  if (turnstile.anonymousUsers.length === 0 && !context.reader.isFaulty('turnstile', 'anonymous_users')) {
    fault('auth_required', 'is false, but anonymous_users names nobody to let in');
  }
  weakness('auth_required', 'false: whoever says that they are one of anonymous_users is let in');
  if (turnstile.anonymousRole === null) return;
  const problem = anonymousRoleFault(turnstile.anonymousRole, config);
  if (problem !== null) fault('anonymous_role', problem);
  for (const name of turnstile.anonymousUsers) {
    if (name === config.admin.user) fault('anonymous_users', `"${name}" is the user of the admin console`);
    else if (turnstile.placeholderUsers.includes(name)) {
      fault('anonymous_users', `"${name}" is in placeholder_users: it stands for whoever the token says`);
    } else if (config.users.some((user) => user.name === name)) {
      warn('anonymous_users', `"${name}" is a user of users.toml too: it becomes anonymous_role, unasked`);
    }
  }
  const isStatic = config.users.some((user) => user.name === turnstile.anonymousRole);
  if (!isStatic && jwt.serverUser === null && needsServerUser(config)) {
    if (context.reader.isGiven('general', 'jwt_server_user')) return;
    fault('anonymous_role', 'needs jwt_server_user: somebody has to log in to PostgreSQL for the role');
  }
}

/** What the rules on names say of a role, as far as the configuration can tell. */
function anonymousRoleFault(role: string, config: Config): string | null {
  const { turnstile, admin, jwt } = config;
  const length = lengthFault(role);
  if (length !== null) return length;
  if (role === admin.user || role === jwt.serverUser || turnstile.reservedRoles.includes(role)) {
    return `"${role}" is a reserved role, the admin user or jwt_server_user`;
  }
  if (role.toLowerCase() === 'none' || role.startsWith('pg_')) return `"${role}" is a reserved name`;
  const rows = config.users.filter((user) => user.name === role);
  if (rows.some((user) => user.passwords.length > 0 || user.identity !== null)) {
    return `"${role}" is a user of users.toml with a proof of its own`;
  }
  const isDisabled = config.turnstileUsers.some((row) => row.name === role && row.disabled);
  if (isDisabled) return `"${role}" is disabled in turnstile.users`;
  return turnstile.rolePattern.test(role) ? null : 'does not match role_pattern';
}

const PASSWORD_METHODS: readonly LoginMethod[] = ['scram', 'md5', 'plain'];

/** Can this user log in at all? */
export function checkUserProof(config: Config, index: number, context: CheckContext): void {
  const { general, jwt, turnstile, admin } = config;
  const user = config.users[index]!;
  const { fault, warn } = voiceFor(context, `users[${index}]`);
  const isFaulty = (key: string): boolean => context.reader.isFaulty(`users[${index}]`, key);
  const hasPassword = user.passwords.length > 0 || isFaulty('password') || isFaulty('passwords');
  const usesToken = jwt.userSuffix === null || user.name.endsWith(jwt.userSuffix);
  const byDefault: LoginMethod = general.authType === 'jwt' && !usesToken ? 'scram' : general.authType;
  const methods = methodsOf(user, byDefault, config);
  if (!hasPassword && methods.length > 0 && methods.every((method) => PASSWORD_METHODS.includes(method))) {
    if (general.authType !== 'jwt')
      fault('password', `is missing, and auth_type ${general.authType} needs one`);
    else warn('password', 'is missing, and without jwt_user_suffix the user has no token either');
  }
  if (!methods.includes('jwt') && !methods.includes('oauth')) return;
  if (turnstile.placeholderUsers.includes(user.name)) {
    fault('name', `"${user.name}" is in placeholder_users: it stands for any role`);
  }
  if (
    turnstile.reservedRoles.includes(user.name) ||
    user.name === admin.user ||
    user.name === jwt.serverUser
  ) {
    warn('name', `"${user.name}" is reserved: no token enters as it`);
  }
}

/** What the user may be asked for, over all addresses; `byDefault` where no rule is sure to fit. */
function methodsOf(user: UserConfig, byDefault: LoginMethod, config: Config): LoginMethod[] {
  const methods: LoginMethod[] = [];
  for (const rule of config.loginRules) {
    if (!fitsUser(rule, user)) continue;
    if (rule.method !== 'reject') methods.push(rule.method);
    if (rule.database.length + rule.address.length === 0 && rule.tls === 'any') return methods;
  }
  return [...methods, byDefault];
}

function fitsUser(rule: LoginRuleConfig, user: UserConfig): boolean {
  const isThere =
    user.allDatabases ||
    rule.database.length === 0 ||
    rule.database.some((name) => user.databases.includes(name));
  try {
    return isThere && (rule.user.length === 0 || compileNames(rule.user)(user.name));
  } catch {
    return false;
  }
}
