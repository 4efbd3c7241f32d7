/**
 * How the role of a token is had at PostgreSQL: which of the three ways the configuration says, and the password of
 * the one that has one. Pure.
 */
import type { Secret } from '../base/secret.ts';
import type { BackendIdentity, Config } from '../config/config.ts';
import { derivePassword } from './derived-password.ts';

/** The row of the role in [[turnstile.users]], else that of the database in [[turnstile.databases]], else [turnstile]. */
export function backendIdentityOf(
  config: Pick<Config, 'turnstile' | 'turnstileUsers' | 'turnstileDatabases'>,
  role: string,
  database: string,
): BackendIdentity {
  const ofRole = config.turnstileUsers.find((row) => row.name === role)?.backendIdentity ?? null;
  const ofDatabase = config.turnstileDatabases.find((row) => row.name === database)?.backendIdentity ?? null;
  return ofRole ?? ofDatabase ?? config.turnstile.backendIdentity;
}

/** The derived password of a role in a database's cluster; null without `backend_password_key`. */
export function backendPasswordOf(
  config: Pick<Config, 'turnstile' | 'turnstileDatabases'>,
  role: string,
  database: string,
): Secret | null {
  const { backendPasswordKey: key, backendPasswordGeneration: generation, backendCluster } = config.turnstile;
  const ofDatabase = config.turnstileDatabases.find((row) => row.name === database)?.backendCluster ?? null;
  if (key === null) return null;
  return derivePassword({ key, cluster: ofDatabase ?? backendCluster, role, generation });
}
