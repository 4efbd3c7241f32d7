/**
 * From the configuration to a login at PostgreSQL: as whom, by what proof, with which settings. Decides nothing
 * about who may; the pools and the doctor ask for the same targets here, so that the doctor tries what is run.
 */
import { readFileSync } from 'node:fs';
import { backendPasswordOf } from '../auth/backend-identity.ts';
import type { Identity } from '../auth/identity.ts';
import type { BackendIdentity, Config, DatabaseConfig, UserConfig } from '../config/config.ts';
import type { ServerTarget } from './server-login.ts';
import type { ServerTls } from './server-tls.ts';

/** Of an identity, what its login at PostgreSQL follows from. */
export type TargetIdentity = Pick<Identity, 'role' | 'user' | 'readOnly'>;

/** The login of an identity at a host; `backend` is null for a user who logs in by a row of users.toml. */
export function serverTarget(
  config: Config,
  database: DatabaseConfig,
  identity: TargetIdentity,
  backend: BackendIdentity | null,
  tls: ServerTls,
): ServerTarget {
  const { general, tcp, turnstile } = config;
  const { user, role, readOnly } = identity;
  const startupParameters: Record<string, string> = {};
  const statementTimeoutMs = user?.statementTimeoutMs ?? database.statementTimeoutMs;
  const lockTimeoutMs = user?.lockTimeoutMs ?? database.lockTimeoutMs;
  if (statementTimeoutMs !== null) startupParameters['statement_timeout'] = String(statementTimeoutMs);
  if (lockTimeoutMs !== null) startupParameters['lock_timeout'] = String(lockTimeoutMs);
  if (readOnly) startupParameters['default_transaction_read_only'] = 'on';
  return {
    host: database.host,
    port: database.port,
    database: database.databaseName,
    ...loginOf(config, database, identity, backend),
    setRole: backend === 'set_role' ? role : null,
    backendIdentity: backend,
    loginGroup: turnstile.loginGroup,
    readBackendStart: turnstile.claimsMacKey !== null,
    tls,
    startupParameters,
    connectTimeoutMs: general.connectTimeoutMs,
    keepalive: { enabled: tcp.keepalive, initialDelayMs: tcp.timeMs ?? 0 },
  };
}

/** A role that logs in as itself does so whatever the database's row says: that row's user is another. */
function loginOf(
  config: Config,
  database: DatabaseConfig,
  { role, user }: TargetIdentity,
  backend: BackendIdentity | null,
): Pick<ServerTarget, 'user' | 'password'> {
  switch (backend) {
    case 'login_map':
      return { user: role, password: null };
    case 'login_password':
      return { user: role, password: backendPasswordOf(config, role, database.name) };
    case 'set_role':
      return {
        user: database.user ?? config.jwt.serverUser ?? role,
        password: database.password ?? config.jwt.serverPassword,
      };
    case null:
      return {
        user: database.user ?? user?.serverUser ?? role,
        password: database.password ?? user?.serverPassword ?? user?.passwords[0] ?? null,
      };
    default:
      return backend satisfies never;
  }
}

/** Throws the system's error when a certificate, its key or the CA file cannot be read. */
export function serverTlsOf(general: Config['general']): ServerTls {
  const { tlsVerify: mode, tlsServerCaCertificate: ca, tlsServerCertificate, tlsServerPrivateKey } = general;
  const clientCertificate =
    tlsServerCertificate === null || tlsServerPrivateKey === null
      ? null
      : { chain: readFileSync(tlsServerCertificate, 'utf8'), key: readFileSync(tlsServerPrivateKey, 'utf8') };
  return { mode, caCertificate: ca === null ? null : readFileSync(ca, 'utf8'), clientCertificate };
}

/** Whose connections are made for the role, not by a row of users.toml: tokens' and anonymous logins without one. */
export function isProvisioned(identity: Identity): boolean {
  return (identity.token !== null || identity.method === 'anonymous') && !hasOwnLogin(identity.user);
}

/** True when a row of users.toml says how to log in at PostgreSQL by itself. */
export function hasOwnLogin(user: UserConfig | null): boolean {
  return (
    user !== null && (user.serverUser !== null || user.serverPassword !== null || user.passwords.length > 0)
  );
}
