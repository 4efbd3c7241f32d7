/**
 * How a token's role is had at PostgreSQL: what SET ROLE, a certificate for all roles and derived passwords need,
 * and the keys that are idle without them. Also the key that signs claims. Reads certificates only.
 */
import type { Secret } from '../base/secret.ts';
import { backendIdentities, type CheckContext, databaseNames, say, voiceFor } from './check-context.ts';
import type { Config, UserConfig } from './config.ts';
import { didYouMean } from './faults.ts';
import { checkCertificatePair } from './pem-checks.ts';
import { usesTokens } from './token-use.ts';

/** Shorter keys can be found by trying (NIST SP 800-107 section 5.3.4 asks for the strength that is wanted). */
const KEY_BYTES_MIN = 16;

/** Reports every finding about backend identities and the keys that belong to them. */
export function checkBackend(config: Config, context: CheckContext): void {
  checkServerCertificate(config, context);
  checkDatabaseRows(config, context);
  if (hasProvisionedRoles(config)) {
    checkMappedLogins(config, context);
    checkDerivedPasswords(config, context);
  } else checkUnused(config, context);
  if (!usesTokens(config)) return;
  checkSetRole(config, context);
  checkSignedClaims(config, context);
}

/** Roles for which users.toml has no login at PostgreSQL: those of tokens, and that of anonymous users. */
function hasProvisionedRoles(config: Config): boolean {
  const { jwt, turnstile, users } = config;
  const isBare = (user: UserConfig): boolean =>
    user.serverUser === null && user.serverPassword === null && user.passwords.length === 0;
  return (usesTokens(config) && (jwt.userAutoProvision || users.some(isBare))) || !turnstile.authRequired;
}

function checkUnused(config: Config, context: CheckContext): void {
  const why = 'has no effect without jwt_user_auto_provision: users.toml says how its users log in';
  for (const key of [
    'backend_identity',
    'backend_password_key',
    'backend_password_generation',
    'backend_cluster',
  ]) {
    if (context.reader.isGiven('turnstile', key)) say(context, 'warn', 'turnstile', key, why);
  }
  for (const [section, rows] of [
    ['turnstile.databases', config.turnstileDatabases],
    ['turnstile.users', config.turnstileUsers],
  ] as const) {
    const index = rows.findIndex((row) => row.backendIdentity !== null);
    if (index !== -1) say(context, 'warn', `${section}[${index}]`, 'backend_identity', why);
  }
}

function checkServerCertificate(config: Config, context: CheckContext): void {
  const { tlsServerCertificate, tlsServerPrivateKey, tlsVerify } = config.general;
  const { fault, warn } = voiceFor(context, 'general');
  const isGiven = (key: string): boolean => context.reader.isGiven('general', key);
  if (isGiven('tls_server_certificate') !== isGiven('tls_server_private_key')) {
    const [one, other] = isGiven('tls_server_certificate')
      ? (['tls_server_certificate', 'tls_server_private_key'] as const)
      : (['tls_server_private_key', 'tls_server_certificate'] as const);
    fault(one, `is given without ${other}`);
  } else if (tlsServerCertificate !== null && tlsServerPrivateKey !== null) {
    checkCertificatePair('tls_server_certificate', tlsServerCertificate, tlsServerPrivateKey, context.nowMs, {
      certificate: (message) => fault('tls_server_certificate', message),
      key: (message) => fault('tls_server_private_key', message),
      warn: (message) => warn('tls_server_certificate', message),
    });
    if (tlsVerify === 'disabled')
      warn('tls_server_certificate', 'has no effect while tls_verify is disabled');
  }
}

function checkMappedLogins(config: Config, context: CheckContext): void {
  if (!backendIdentities(config).has('login_map')) return;
  if (
    !context.reader.isGiven('general', 'tls_server_certificate') &&
    !context.reader.isGiven('general', 'tls_server_private_key')
  ) {
    const [label, key] = placeOfIdentity(config, 'login_map');
    const message = 'login_map needs tls_server_certificate and tls_server_private_key to log in with';
    say(context, 'fault', label, key, message);
  }
  if (config.general.tlsVerify === 'disabled') {
    say(context, 'fault', 'general', 'tls_verify', 'disabled, but login_map logs in by TLS');
  }
  for (const [index, row] of config.databases.entries()) {
    if (!row.host.startsWith('/') || identityOfDatabase(config, row.name) !== 'login_map') continue;
    say(context, 'fault', `databases[${index}]`, 'host', 'is a Unix socket, which has no TLS for login_map');
  }
}

function checkDerivedPasswords(config: Config, context: CheckContext): void {
  const { turnstile } = config;
  const { warn } = voiceFor(context, 'turnstile');
  const isDerived = backendIdentities(config).has('login_password');
  checkKeyLength(turnstile.backendPasswordKey, 'backend_password_key', context);
  if (isDerived && !context.reader.isGiven('turnstile', 'backend_password_key')) {
    const [label, key] = placeOfIdentity(config, 'login_password');
    say(context, 'fault', label, key, 'login_password needs backend_password_key to derive passwords from');
  }
  if (isDerived) return;
  for (const key of ['backend_password_key', 'backend_password_generation', 'backend_cluster']) {
    if (context.reader.isGiven('turnstile', key)) warn(key, 'has no effect without login_password');
  }
  for (const [index, row] of config.turnstileDatabases.entries()) {
    if (row.backendCluster === null) continue;
    const label = `turnstile.databases[${index}]`;
    say(context, 'warn', label, 'backend_cluster', 'has no effect without login_password');
  }
}

/** What belongs to the service user alone. */
function checkSetRole(config: Config, context: CheckContext): void {
  const { turnstile, jwt } = config;
  const { fault, warn, weakness } = voiceFor(context, 'turnstile');
  const isServerUserGiven = context.reader.isGiven('general', 'jwt_server_user');
  if (turnstile.allowPrivilegedServerUser && (jwt.serverUser !== null || isServerUserGiven)) {
    weakness('allow_privileged_server_user', 'true: a session that escapes its role is superuser');
  }
  const isSetRole = backendIdentities(config).has('set_role');
  if (!isSetRole && turnstile.nologinRoles === 'allow') {
    warn('nologin_roles', 'has no effect: without set_role each role logs in itself');
  }
  if (turnstile.missingRole !== 'server_user') return;
  if (!isSetRole) return fault('missing_role', 'server_user: without set_role no session is jwt_server_user');
  weakness(
    'missing_role',
    'server_user: a token for a role that does not exist runs with the rights of jwt_server_user',
  );
  if (!isServerUserGiven) fault('missing_role', 'server_user needs jwt_server_user');
}

function checkSignedClaims(config: Config, context: CheckContext): void {
  const { turnstile } = config;
  const { fault, warn } = voiceFor(context, 'turnstile');
  checkKeyLength(turnstile.claimsMacKey, 'claims_mac_key', context);
  const isGiven = context.reader.isGiven('turnstile', 'claims_mac_key');
  if (!/^[A-Za-z0-9_-]{1,32}$/.test(turnstile.claimsMacKeyId)) {
    fault('claims_mac_key_id', 'must be 1 to 32 letters, digits, - and _');
  } else if (!isGiven && context.reader.isGiven('turnstile', 'claims_mac_key_id')) {
    warn('claims_mac_key_id', 'has no effect without claims_mac_key');
  }
  if (isGiven && turnstile.claimsSetting === 'none') {
    fault('claims_mac_key', 'signs the setting of claims_setting, which is none');
  }
}

function checkKeyLength(key: Secret | null, name: string, context: CheckContext): void {
  if (key === null || Buffer.byteLength(key.reveal()) >= KEY_BYTES_MIN) return;
  say(context, 'fault', 'turnstile', name, `must have at least ${KEY_BYTES_MIN} bytes, and be random`);
}

function checkDatabaseRows(config: Config, context: CheckContext): void {
  const names = databaseNames(config);
  const hasOwn = (name: string): boolean =>
    config.turnstileDatabases.some((row) => row.name === name && row.backendIdentity !== null);
  if (names.size > 0 && [...names].every(hasOwn) && context.reader.isGiven('turnstile', 'backend_identity')) {
    const message = 'has no effect: every database names its own';
    say(context, 'warn', 'turnstile', 'backend_identity', message);
  }
  for (const [index, row] of config.turnstileDatabases.entries()) {
    if (row.name === '') continue;
    const { fault, warn } = voiceFor(context, `turnstile.databases[${index}]`);
    const first = config.turnstileDatabases.findIndex((other) => other.name === row.name);
    if (first !== index) fault('name', `"${row.name}" is in turnstile.databases[${first}] already`);
    if (names.size > 0 && !names.has(row.name)) {
      fault('name', `there is no database "${row.name}"${didYouMean(row.name, names)}`);
    }
    if (row.audiences.length === 0 && row.backendIdentity === null && row.backendCluster === null) {
      warn('name', 'has no effect: it says nothing of the database');
    }
  }
}

function identityOfDatabase(config: Config, name: string): Config['turnstile']['backendIdentity'] {
  const row = config.turnstileDatabases.find((candidate) => candidate.name === name);
  return row?.backendIdentity ?? config.turnstile.backendIdentity;
}

/** Where the configuration first asks for this identity. */
function placeOfIdentity(config: Config, identity: string): [label: string, key: string] {
  const ofDatabase = config.turnstileDatabases.findIndex((row) => row.backendIdentity === identity);
  const ofUser = config.turnstileUsers.findIndex((row) => row.backendIdentity === identity);
  if (config.turnstile.backendIdentity === identity) return ['turnstile', 'backend_identity'];
  if (ofDatabase !== -1) return [`turnstile.databases[${ofDatabase}]`, 'backend_identity'];
  return [`turnstile.users[${ofUser}]`, 'backend_identity'];
}
