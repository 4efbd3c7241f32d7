/**
 * What keys mean together: combinations that cannot work, that open a door, or that do less than they seem to.
 * Each finding names the key and the place to change. Sees a whole configuration and where its values came from.
 * Pools, TLS, databases and users are here; tokens, roles, logins and PostgreSQL's side in files of their own.
 */
import { type CheckContext, type Draft, lengthFault, say, voiceFor } from './check-context.ts';
import { checkBackend } from './checks-backend.ts';
import { checkLogins, checkUserProof } from './checks-logins.ts';
import { checkRoles } from './checks-roles.ts';
import { checkTokens } from './checks-tokens.ts';
import type { Config, DatabaseConfig } from './config.ts';
import { didYouMean } from './faults.ts';
import { checkCaFile, checkCertificatePair } from './pem-checks.ts';
import { usesTokens } from './token-use.ts';

/** Reports every finding to the context's log. Faulty values were replaced by defaults and are not judged again. */
export function checkConfig(draft: Draft, context: CheckContext): void {
  const { config } = draft;
  checkPools(config, context);
  checkTls(config, context);
  checkLogins(config, context);
  checkTokens(config, context);
  if (usesTokens(config)) checkRoles(config, context);
  checkBackend(config, context);
  checkReserved(config, context);
  checkDatabases(config, context);
  for (const index of draft.userRows.keys()) checkUser(draft, index, context);
}

function checkPools(config: Config, context: CheckContext): void {
  const { general, turnstile } = config;
  if (general.minPoolSize > general.defaultPoolSize) {
    const message = `is more than default_pool_size (${general.defaultPoolSize}), which is the limit`;
    say(context, 'warn', 'general', 'min_pool_size', message);
  }
  if (general.serverLifetimeJitterMs > general.serverLifetimeMs) {
    say(context, 'warn', 'general', 'server_lifetime_jitter', 'is more than server_lifetime');
  }
  const cap = Math.min(turnstile.maxServerConnections, turnstile.maxServerConnectionsPerDatabase);
  if (general.defaultPoolSize > cap) {
    const message = `is more than max_server_connections or max_server_connections_per_database allow (${cap})`;
    say(context, 'warn', 'general', 'default_pool_size', message);
  }
}

function checkTls(config: Config, context: CheckContext): void {
  const { tlsCertificate, tlsPrivateKey, tlsClientRequired, tlsServerCaCertificate, tlsVerify } =
    config.general;
  const { nowMs } = context;
  const certificate = (message: string): void => say(context, 'fault', 'general', 'tls_certificate', message);
  const key = (message: string): void => say(context, 'fault', 'general', 'tls_private_key', message);
  if (tlsCertificate !== null && tlsPrivateKey === null) certificate('is given without tls_private_key');
  else if (tlsPrivateKey !== null && tlsCertificate === null) key('is given without tls_certificate');
  else if (tlsCertificate !== null && tlsPrivateKey !== null) {
    const warn = (message: string): void => say(context, 'warn', 'general', 'tls_certificate', message);
    checkCertificatePair('tls_certificate', tlsCertificate, tlsPrivateKey, nowMs, { certificate, key, warn });
  } else if (tlsClientRequired && !context.reader.isFaulty('general', 'tls_certificate')) {
    const message = 'is true, but there is no tls_certificate: no client could connect';
    say(context, 'fault', 'general', 'tls_client_required', message);
  }
  if (tlsServerCaCertificate === null) return;
  checkCaFile(tlsServerCaCertificate, (message) =>
    say(context, 'fault', 'general', 'tls_server_ca_certificate', message),
  );
  if (tlsVerify === 'disabled' || tlsVerify === 'prefer') {
    const message = `has no effect while tls_verify is ${tlsVerify}`;
    say(context, 'warn', 'general', 'tls_server_ca_certificate', message);
  }
}

/** Names that tokens may not have, against the lists beside them. */
function checkReserved(config: Config, context: CheckContext): void {
  const { turnstile, admin } = config;
  const { fault, warn } = voiceFor(context, 'turnstile');
  for (const name of turnstile.placeholderUsers) {
    if (turnstile.reservedRoles.includes(name) || name === admin.user) {
      fault(
        'placeholder_users',
        `"${name}" is a reserved role or the admin user and cannot be a placeholder`,
      );
    }
  }
  for (const name of turnstile.allowedPrivilegedRoles) {
    if (!turnstile.reservedRoles.includes(name)) continue;
    warn('allowed_privileged_roles', `"${name}" is also in reserved_roles, which wins`);
  }
}

function checkDatabases(config: Config, context: CheckContext): void {
  const { databases, admin, jwt } = config;
  if (databases.length === 0 && !context.log.isFaulty('databases')) {
    const place = { file: context.configFile, line: 0, key: 'databases' };
    context.log.warn(place, 'there is none: every login will be refused');
  }
  const firstRows = new Map<string, number>();
  const hosts = new Map<string, number>();
  for (const [index, row] of databases.entries()) {
    if (row.name === '') continue;
    const label = `databases[${index}]`;
    const fault = (key: string, message: string): void => say(context, 'fault', label, key, message);
    const warn = (key: string, message: string): void => say(context, 'warn', label, key, message);
    if (row.name === admin.name)
      fault('name', `"${row.name}" is the name of the admin console ([admin] name)`);
    const first = firstRows.get(row.name);
    if (first === undefined) firstRows.set(row.name, index);
    else if (row.poolerMode !== null && row.poolerMode !== databases[first]!.poolerMode) {
      warn('pooler_mode', `differs from databases[${first}] of the same name, which comes first and wins`);
    }
    const host = JSON.stringify([row.name, row.host, row.port, row.databaseName]);
    const twin = hosts.get(host);
    if (twin !== undefined) fault('host', `is the same host, port and database as databases[${twin}]`);
    else hosts.set(host, index);
    if (row.role === 'auto') warn('role', 'auto is not detected yet: the host gets no traffic');
    if (row.user !== null && usesTokens(config) && jwt.serverUser !== null && row.user !== jwt.serverUser) {
      fault('user', 'differs from jwt_server_user: name one server user, so that no token runs as the other');
    }
    checkPoolSizes(config, label, row, context);
  }
  for (const [name, first] of firstRows) {
    const rows = databases.filter((row) => row.name === name);
    checkCluster(rows, `databases[${first}]`, context);
  }
}

function checkCluster(rows: readonly DatabaseConfig[], label: string, context: CheckContext): void {
  const count = (role: string): number => rows.filter((row) => row.role === role).length;
  if (count('primary') === 0) {
    say(context, 'warn', label, 'role', 'no host of this database is its primary: clients cannot use it');
  }
  if (count('primary') > 1) {
    say(context, 'warn', label, 'role', 'several hosts of this database are primary: the first one is used');
  }
  if (count('auto') > 0 && count('auto') < rows.length) {
    say(context, 'warn', label, 'role', 'auto beside fixed roles: PgDog would not detect the roles either');
  }
}

function checkUser(draft: Draft, index: number, context: CheckContext): void {
  const { config, userRows } = draft;
  const user = config.users[index]!;
  const row = userRows[index]!;
  if (user.name === '') return;
  const label = `users[${index}]`;
  const fault = (key: string, message: string): void => say(context, 'fault', label, key, message);
  const warn = (key: string, message: string): void => say(context, 'warn', label, key, message);
  const length = lengthFault(user.name);
  if (length !== null) fault('name', length);
  checkUserProof(config, index, context);

  const isListGiven = context.reader.isGiven(label, 'databases');
  if (row.allDatabases && (row.database !== null || isListGiven)) {
    warn('all_databases', 'is true: database and databases have no effect');
  } else if (row.database !== null && isListGiven) {
    warn('databases', 'has no effect beside database');
  } else if (!row.allDatabases && user.databases.length === 0) {
    warn('databases', 'names no database: the user may enter none');
  }
  const key = row.database === null ? 'databases' : 'database';
  const names = new Set(config.databases.map((database) => database.name));
  for (const name of user.allDatabases ? [] : user.databases) {
    if (names.size > 0 && !names.has(name)) {
      fault(key, `there is no database "${name}"${didYouMean(name, names)}`);
    }
  }
  for (let other = 0; other < index; other++) {
    const earlier = config.users[other]!;
    if (earlier.name !== user.name) continue;
    const shared = user.databases.find((name) => earlier.databases.includes(name));
    if (shared === undefined && !user.allDatabases && !earlier.allDatabases) continue;
    const where = shared === undefined ? 'the same databases' : `database "${shared}"`;
    fault('name', `"${user.name}" has ${where} in users[${other}] already`);
  }
  checkPoolSizes(config, label, user, context);
}

function checkPoolSizes(
  config: Config,
  label: string,
  row: { poolSize: number | null; minPoolSize: number | null },
  context: CheckContext,
): void {
  if (row.minPoolSize === null) return;
  const size = row.poolSize ?? config.general.defaultPoolSize;
  if (row.minPoolSize > size) {
    say(context, 'warn', label, 'min_pool_size', `is more than pool_size (${size}), which is the limit`);
  }
}
