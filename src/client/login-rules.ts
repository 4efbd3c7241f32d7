/**
 * Which proof a client is asked for, whether the connection may carry it, and who a users.toml user is once the
 * proof was right. Decisions only: no socket, no message. Tokens have their own rules in auth/token-identity.ts.
 */
import { harmlessText } from '../auth/harmless-text.ts';
import type { Identity } from '../auth/identity.ts';
import { SCRAM_ITERATIONS, type ScramKeys } from '../auth/scram-keys.ts';
import { takesToken } from '../auth/token-identity.ts';
import type { Secret } from '../base/secret.ts';
import type { Config, TurnstileConfig, UserConfig } from '../config/config.ts';
import { SqlState } from '../protocol/pg-error.ts';
import { fatal } from './login-errors.ts';

/** What the startup packet says about who comes and where to. */
export interface LoginRequest {
  readonly user: string;
  readonly database: string;
}

/** How a client has to prove itself. */
export type LoginPlan =
  | { readonly kind: 'token' }
  /** No passwords: the user is unknown or has none, goes all the way, and fails at its end. */
  | {
      readonly kind: 'scram' | 'md5' | 'plain';
      readonly passwords: readonly Secret[];
      readonly admin: boolean;
    }
  | { readonly kind: 'trust' };

/** The proof for this user and database. The console always takes SCRAM, whatever `auth_type` says. */
export function planLogin(request: LoginRequest, config: Config): LoginPlan {
  const { admin, general } = config;
  if (request.database === admin.name) {
    const passwords = request.user === admin.user ? [admin.password] : [];
    return { kind: 'scram', passwords, admin: true };
  }
  if (general.authType === 'trust') return { kind: 'trust' };
  if (general.authType === 'jwt' && takesToken(request.user, config)) return { kind: 'token' };
  const kind = general.authType === 'jwt' ? 'scram' : general.authType;
  return { kind, passwords: findUser(request, config)?.passwords ?? [], admin: false };
}

/** True for proofs that whoever listens on the line could use again. */
export function sendsSecretInClear(plan: LoginPlan): boolean {
  return plan.kind === 'token' || plan.kind === 'plain';
}

/** Whether such a proof may be asked for on an unencrypted connection from this address. */
export function mayAskInClear(
  remoteAddress: string,
  allow: TurnstileConfig['allowPlaintextTokens'],
): boolean {
  return allow === 'always' || (allow === 'loopback' && isLoopback(remoteAddress));
}

/** 127.0.0.0/8, ::1, 127.0.0.0/8 mapped into IPv6, and '' (a Unix socket has no address). */
export function isLoopback(remoteAddress: string): boolean {
  return /^$|^::1$|^(?:::ffff:)?127\.\d+\.\d+\.\d+$/i.test(remoteAddress);
}

/**
 * The users.toml user whose proof was right. Throws FATAL 28000 (trust asks nobody, so an unknown user comes this
 * far), 42501 (not his database) or 3D000 (his, but it is not there).
 */
export function identityFromUser(
  request: LoginRequest,
  config: Config,
  method: Exclude<Identity['method'], 'jwt'>,
): Identity {
  const user = findUser(request, config);
  const database = harmlessText(request.database);
  if (user === null) {
    throw fatal(
      SqlState.InvalidAuthorizationSpecification,
      `role "${harmlessText(request.user)}" does not exist`,
      'user_unknown',
    );
  }
  if (!mayEnter(user, request.database)) {
    throw fatal(
      SqlState.InsufficientPrivilege,
      `permission denied for database "${database}"`,
      'database_denied',
    );
  }
  const hosts = config.databases.filter((row) => row.name === request.database);
  if (hosts.length === 0) {
    throw fatal(SqlState.InvalidCatalogName, `database "${database}" does not exist`, 'database_unknown');
  }
  const readOnly = user.readOnly ?? hosts.some((row) => row.readOnly === true);
  return { role: user.name, method, user, readOnly, token: null };
}

/** The row for this user and database; a row for other databases when there is none, so that the proof is asked. */
function findUser(request: LoginRequest, config: Config): UserConfig | null {
  const rows = config.users.filter((row) => row.name === request.user);
  return rows.find((row) => mayEnter(row, request.database)) ?? rows[0] ?? null;
}

function mayEnter(user: UserConfig, database: string): boolean {
  return user.allDatabases || user.databases.includes(database);
}

/**
 * Derives the SCRAM keys of everybody who may be asked for them, so that a first login takes no longer than that
 * of an unknown user. For the start and after each change of users.toml; one password at a time.
 */
export async function deriveLoginKeys(config: Config, keys: ScramKeys): Promise<void> {
  const { admin, general, users } = config;
  const derive = async (name: string, password: Secret): Promise<unknown> =>
    keys.derive(password.reveal(), keys.saltFor(name), SCRAM_ITERATIONS);
  await derive(admin.user, admin.password);
  if (general.authType !== 'scram' && general.authType !== 'jwt') return;
  for (const user of users) {
    for (const password of user.passwords) await derive(user.name, password);
  }
}
