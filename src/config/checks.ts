/**
 * What keys mean together: combinations that cannot work, that open a door, or that do less than they seem to.
 * Each finding names the key and the place to change. Sees a whole configuration and where its values came from;
 * the files it reads are certificates and public keys only. pem-checks.ts looks inside those.
 */
import type { Config, DatabaseConfig } from './config.ts';
import { didYouMean, type FaultLog } from './faults.ts';
import { checkCaFile, checkCertificatePair, checkPublicKeyFile } from './pem-checks.ts';
import { JWT, type UserRow } from './schema.ts';
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

/** NAMEDATALEN - 1: PostgreSQL cuts longer names, and two different users would become one (src/include/pg_config_manual.h). */
const NAME_BYTES_MAX = 63;

/** Reports every finding to the context's log. Faulty values were replaced by defaults and are not judged again. */
export function checkConfig(draft: Draft, context: CheckContext): void {
  const { config } = draft;
  checkPools(config, context);
  checkTls(config, context);
  checkAuth(config, context);
  if (config.general.authType === 'jwt') checkJwt(config, context);
  else checkUnusedJwt(config, context);
  checkTurnstile(config, context);
  checkDatabases(config, context);
  for (const index of draft.userRows.keys()) checkUser(draft, index, context);
}

/** Says something about a key of a section unless its value was already refused. */
function say(
  context: CheckContext,
  severity: 'fault' | 'warn',
  label: string,
  key: string,
  message: string,
): void {
  if (context.reader.isFaulty(label, key)) return;
  context.log[severity](context.reader.placeOf(label, key), message);
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
    checkCertificatePair(tlsCertificate, tlsPrivateKey, nowMs, { certificate, key, warn });
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

function checkAuth(config: Config, context: CheckContext): void {
  const { authType, tlsClientRequired, host } = config.general;
  const warn = (message: string): void => say(context, 'warn', 'general', 'auth_type', message);
  if (authType === 'trust') {
    warn('trust asks nobody for a proof: whoever reaches the port is any user of users.toml');
  }
  if (authType === 'plain' && !tlsClientRequired && !isLoopback(host)) {
    warn('plain sends passwords as they are; set tls_client_required');
  }
}

function checkJwt(config: Config, context: CheckContext): void {
  const { jwt, general, turnstile } = config;
  const isGiven = (key: string): boolean => context.reader.isGiven('general', key);
  const fault = (key: string, message: string): void => say(context, 'fault', 'general', key, message);
  const warn = (key: string, message: string): void => say(context, 'warn', 'general', key, message);
  if (!isGiven('jwt_public_key_file') && !isGiven('jwt_jwks_url')) {
    fault('auth_type', 'jwt needs jwt_public_key_file or jwt_jwks_url to verify tokens with');
  }
  if (jwt.publicKeyFile !== null && jwt.jwksUrl !== null) {
    warn('jwt_jwks_url', 'has no effect beside jwt_public_key_file, which wins');
  }
  if (jwt.publicKeyFile !== null) {
    checkPublicKeyFile(jwt.publicKeyFile, turnstile.jwtAlgorithms, (message) =>
      fault('jwt_public_key_file', message),
    );
  }
  checkIssuerUrl(config, context);
  if (!isGiven('jwt_audience')) {
    warn(
      'jwt_audience',
      'is not set: a token that the issuer made for any other application opens this one too',
    );
  }
  if (jwt.usernameClaim.split('.').includes('')) {
    fault('jwt_username_claim', 'has an empty part between dots');
  }
  if (jwt.userAutoProvision && !isGiven('jwt_server_user')) {
    fault(
      'jwt_user_auto_provision',
      'needs jwt_server_user: somebody has to log in to PostgreSQL for the role',
    );
  }
  if (jwt.userAutoProvisionReadOnly && !jwt.userAutoProvision) {
    warn('jwt_user_auto_provision_read_only', 'has no effect without jwt_user_auto_provision');
  }
  if (jwt.serverPassword !== null && !isGiven('jwt_server_user')) {
    warn('jwt_server_password', 'has no effect without jwt_server_user');
  }
  if (general.tlsCertificate === null && turnstile.allowPlaintextTokens === 'never') {
    const message = 'never, but there is no tls_certificate: no token could be presented';
    say(context, 'fault', 'turnstile', 'allow_plaintext_tokens', message);
  } else if (general.tlsCertificate === null && turnstile.allowPlaintextTokens === 'loopback') {
    if (!isLoopback(general.host)) {
      warn(
        'tls_certificate',
        'is not set: tokens are accepted from this machine only (allow_plaintext_tokens)',
      );
    }
  }
}

function checkIssuerUrl(config: Config, context: CheckContext): void {
  const { jwksUrl } = config.jwt;
  if (jwksUrl === null) return;
  const url = new URL(jwksUrl);
  const allowed = config.turnstile.allowHttpIssuers;
  if (url.protocol === 'https:' || allowed === 'always') return;
  if (allowed === 'loopback' && isLoopback(url.hostname)) return;
  const scope = allowed === 'loopback' ? 'loopback hosts only' : 'no host';
  const message = `must be https: allow_http_issuers permits http for ${scope}`;
  say(context, 'fault', 'general', 'jwt_jwks_url', message);
}

function checkUnusedJwt(config: Config, context: CheckContext): void {
  for (const spec of Object.values(JWT)) {
    if (!context.reader.isGiven('general', spec.key)) continue;
    const message = `has no effect while auth_type is ${config.general.authType}`;
    say(context, 'warn', 'general', spec.key, message);
  }
}

function checkTurnstile(config: Config, context: CheckContext): void {
  const { turnstile, admin, jwt } = config;
  const warn = (key: string, message: string): void => say(context, 'warn', 'turnstile', key, message);
  for (const name of turnstile.placeholderUsers) {
    if (turnstile.reservedRoles.includes(name) || name === admin.user) {
      const message = `"${name}" is a reserved role or the admin user and cannot be a placeholder`;
      say(context, 'fault', 'turnstile', 'placeholder_users', message);
    }
  }
  for (const name of turnstile.allowedPrivilegedRoles) {
    if (!turnstile.reservedRoles.includes(name)) continue;
    warn('allowed_privileged_roles', `"${name}" is also in reserved_roles, which wins`);
  }
  if (config.general.authType !== 'jwt') return;
  if (turnstile.allowPlaintextTokens === 'always') {
    warn(
      'allow_plaintext_tokens',
      'always: tokens cross the network as they are, and who reads one can use it',
    );
  }
  if (turnstile.allowHttpIssuers === 'always') {
    warn('allow_http_issuers', 'always: who can answer for the issuer can make every token valid');
  }
  if (turnstile.allowPrivilegedServerUser) {
    warn('allow_privileged_server_user', 'true: a session that escapes its role is superuser');
  }
  if (turnstile.missingRole !== 'server_user') return;
  warn(
    'missing_role',
    'server_user: a token for a role that does not exist runs with the rights of jwt_server_user',
  );
  if (jwt.serverUser === null && !context.reader.isGiven('general', 'jwt_server_user')) {
    say(context, 'fault', 'turnstile', 'missing_role', 'server_user needs jwt_server_user');
  }
}

function checkDatabases(config: Config, context: CheckContext): void {
  const { databases, admin, jwt, general } = config;
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
    if (
      row.user !== null &&
      general.authType === 'jwt' &&
      jwt.serverUser !== null &&
      row.user !== jwt.serverUser
    ) {
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
  if (Buffer.byteLength(user.name) > NAME_BYTES_MAX) {
    fault('name', `is longer than ${NAME_BYTES_MAX} bytes, which PostgreSQL would cut off`);
  }
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

/** Can this user log in at all? */
function checkUserProof(config: Config, index: number, context: CheckContext): void {
  const { general, jwt, turnstile, admin } = config;
  const user = config.users[index]!;
  const label = `users[${index}]`;
  const hasPassword =
    user.passwords.length > 0 ||
    context.reader.isFaulty(label, 'password') ||
    context.reader.isFaulty(label, 'passwords');
  if (general.authType !== 'jwt') {
    if (general.authType === 'trust' || hasPassword) return;
    say(context, 'fault', label, 'password', `is missing, and auth_type ${general.authType} needs one`);
    return;
  }
  const usesToken = jwt.userSuffix === null || user.name.endsWith(jwt.userSuffix);
  if (!usesToken && !hasPassword) {
    say(
      context,
      'warn',
      label,
      'password',
      'is missing, and without jwt_user_suffix the user has no token either',
    );
  }
  if (!usesToken) return;
  if (turnstile.placeholderUsers.includes(user.name)) {
    say(context, 'fault', label, 'name', `"${user.name}" is in placeholder_users: it stands for any role`);
  }
  if (
    turnstile.reservedRoles.includes(user.name) ||
    user.name === admin.user ||
    user.name === jwt.serverUser
  ) {
    say(context, 'warn', label, 'name', `"${user.name}" is reserved: no token enters as it`);
  }
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

/** True for an address or name that never leaves the machine. */
function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host);
}
