/**
 * What an administrator has to do in PostgreSQL for a backend identity, as text to read and to run: SQL, and as
 * comments the lines of pg_hba.conf, pg_ident.conf and CloudNativePG. It connects to nothing; of a password only
 * its SCRAM verifier is printed.
 */
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { escapeIdentifier, escapeLiteral } from 'pg';
import { backendIdentityOf, backendPasswordOf } from '../auth/backend-identity.ts';
import { scramVerifier } from '../auth/derived-password.ts';
import { checkRoleName } from '../auth/role-policy.ts';
import type { ScramKeys } from '../auth/scram-keys.ts';
import type { BackendIdentity, Config } from '../config/config.ts';

export interface ProvisionOptions {
  readonly config: Config;
  readonly roles: readonly string[];
  /** Null: every database, if they agree. */
  readonly database: string | null;
  /** Null: what the configuration says. */
  readonly identity: BackendIdentity | null;
  readonly scramKeys: ScramKeys;
}

/** One role, what it logs in by, and for login_password which cluster's password it has. */
interface RolePlan {
  readonly role: string;
  readonly identity: BackendIdentity;
  readonly database: string;
}

/** The group of pg_hba.conf when `login_group` names none. */
export const SUGGESTED_GROUP = 'jwt_users';

/** The text, with a line end. Throws RangeError with a sentence for roles or options that cannot work. */
export async function provisionSql(options: ProvisionOptions): Promise<string> {
  const { config } = options;
  const plans = options.roles.map((role) => planRole(role, options));
  const lines = [
    '-- Roles for pgturnstile. Run it as a superuser, or as a role with CREATEROLE and ADMIN on these roles.',
    '-- For PostgreSQL 16 and newer; where something is different before, it is said.',
  ];
  const byIdentity = (identity: BackendIdentity): RolePlan[] =>
    plans.filter((plan) => plan.identity === identity);
  const roles = plans.map((plan) => `--   CREATE ROLE ${escapeIdentifier(plan.role)} LOGIN;`);
  lines.push('', '-- What is not there yet (no password: a token is the way in):', ...roles);
  lines.push(...membershipLines(config, plans));
  lines.push(...setRoleLines(config, byIdentity('set_role'), options.database));
  lines.push(...loginMapLines(config, byIdentity('login_map')));
  lines.push(...(await loginPasswordLines(options, byIdentity('login_password'))));
  return `${lines.join('\n')}\n`;
}

function planRole(role: string, { config, database, identity }: ProvisionOptions): RolePlan {
  const refusal = checkRoleName(role, { ...config.turnstile, adminUser: config.admin.user });
  if (refusal !== null) {
    throw new RangeError(`no token may become the role ${JSON.stringify(role)} (${refusal})`);
  }
  const names = [...new Set(config.databases.map((row) => row.name))];
  if (database !== null && !names.includes(database)) {
    throw new RangeError(`there is no database ${JSON.stringify(database)} in the configuration`);
  }
  const candidates = (database === null ? names : [database]).map((name) => {
    const how = identity ?? backendIdentityOf(config, role, name);
    const cluster =
      config.turnstileDatabases.find((row) => row.name === name)?.backendCluster ??
      config.turnstile.backendCluster;
    return { plan: { role, identity: how, database: name }, key: JSON.stringify([how, cluster]) };
  });
  const first = candidates[0];
  if (first === undefined) throw new RangeError('there is no database in the configuration');
  if (candidates.some(({ key }) => key !== first.key)) {
    throw new RangeError('the databases differ in backend_identity or backend_cluster: name one of them');
  }
  return first.plan;
}

function membershipLines(config: Config, plans: readonly RolePlan[]): string[] {
  const { loginGroup } = config.turnstile;
  const byMap = plans.some((plan) => plan.identity === 'login_map');
  if (loginGroup === null && !byMap) return [];
  const group = escapeIdentifier(loginGroup ?? SUGGESTED_GROUP);
  const lines = [
    '',
    '-- The group of those who may enter. Nobody gets a right by it, and nobody can become it.',
    `--   CREATE ROLE ${group} NOLOGIN;`,
  ];
  if (loginGroup === null) {
    lines.push(
      `-- Write login_group = "${SUGGESTED_GROUP}" below [turnstile] too, so that it is checked at login.`,
    );
  }
  for (const { role } of plans) {
    lines.push(`GRANT ${group} TO ${escapeIdentifier(role)} WITH INHERIT FALSE, SET FALSE, ADMIN FALSE;`);
  }
  lines.push(
    '-- Before PostgreSQL 16 without the words from WITH on. A member of a member is let in as well:',
    `-- grant the roles above to nobody whom a token must not be (pgturnstile doctor lists those).`,
  );
  return lines;
}

function setRoleLines(config: Config, plans: readonly RolePlan[], database: string | null): string[] {
  if (plans.length === 0) return [];
  const rows = config.databases.filter((row) => database === null || row.name === database);
  const users = new Set(rows.map((row) => row.user ?? config.jwt.serverUser));
  const lines = [
    '',
    '-- set_role: the service user becomes the role of a token. Whoever can send any SQL can become every role',
    '-- granted to it (login_map and login_password do not have that).',
  ];
  for (const user of users) {
    if (user === null) throw new RangeError('set_role needs jwt_server_user in [general]');
    const name = escapeIdentifier(user);
    lines.push(
      `--   CREATE ROLE ${name} LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;`,
      `--   \\password ${user}`,
    );
    for (const { role } of plans) {
      lines.push(`GRANT ${escapeIdentifier(role)} TO ${name} WITH INHERIT FALSE, SET TRUE, ADMIN FALSE;`);
    }
  }
  lines.push(
    '-- Before PostgreSQL 16 without the words from WITH on: NOINHERIT of the service user does the same.',
  );
  return lines;
}

function loginMapLines(config: Config, plans: readonly RolePlan[]): string[] {
  if (plans.length === 0) return [];
  const group = hbaGroup(config.turnstile.loginGroup ?? SUGGESTED_GROUP);
  const commonName = certificateName(config) ?? '<common name of tls_server_certificate>';
  const certificate = `hostssl all ${group} <address of the pooler> cert map=${MAP}`;
  const identity = `${MAP} ${hbaWord(commonName)} ${group}`;
  return [
    '',
    '-- login_map: the pooler logs in as the role, by its own certificate (tls_server_certificate).',
    '-- pg_hba.conf, above every other line that fits these roles, since the first that fits decides:',
    `--   ${certificate}`,
    `--   host all ${group} all reject`,
    '-- The second line is needed: a role may give itself a password, and would enter by it past the pooler.',
    '-- pg_ident.conf:',
    `--   ${identity}`,
    '-- ssl_ca_file of PostgreSQL has to hold the authority of that certificate, and nobody else may get a',
    '-- certificate of this common name from it. Then: SELECT pg_reload_conf();',
    '-- Before PostgreSQL 16 pg_ident.conf knows no groups; there it takes a line for each role:',
    ...plans.map(({ role }) => `--   ${MAP} ${hbaWord(commonName)} ${hbaWord(role)}`),
    '-- CloudNativePG, in the Cluster (the certificate has to come from spec.certificates.clientCASecret):',
    '--   spec:',
    '--     postgresql:',
    '--       pg_hba:',
    `--         - ${yamlText(certificate.replace('<address of the pooler>', 'all'))}`,
    `--         - ${yamlText(`host all ${group} all reject`)}`,
    '--       pg_ident:',
    `--         - ${yamlText(identity)}`,
  ];
}

async function loginPasswordLines(
  { config, scramKeys }: ProvisionOptions,
  plans: readonly RolePlan[],
): Promise<string[]> {
  if (plans.length === 0) return [];
  const lines = [
    '',
    '-- login_password: the pooler logs in as the role, by a password that it derives from backend_password_key.',
    '-- Only verifiers stand here. A new backend_password_generation needs them printed and run again.',
  ];
  for (const { role, database } of plans) {
    const password = backendPasswordOf(config, role, database);
    if (password === null) throw new RangeError('login_password needs backend_password_key in [turnstile]');
    const verifier = await scramVerifier(password, scramKeys);
    lines.push(`ALTER ROLE ${escapeIdentifier(role)} PASSWORD ${escapeLiteral(verifier)};`);
  }
  const { loginGroup } = config.turnstile;
  const who = loginGroup === null ? plans.map(({ role }) => hbaWord(role)).join(',') : hbaGroup(loginGroup);
  lines.push(
    '-- pg_hba.conf, where it is yours to write (managed services take SCRAM from everywhere as it is):',
    `--   hostssl all ${who} <address of the pooler> scram-sha-256`,
    `--   host all ${who} all reject`,
    '-- Without the second line a role that gives itself another password enters by it past the pooler; the',
    '-- pooler itself is refused then, until the statements above are run again.',
  );
  return lines;
}

/** The name by which the certificate is mapped: pg_hba.conf's default is the common name (clientname=CN). */
export function certificateName(config: Config): string | null {
  const file = config.general.tlsServerCertificate;
  if (file === null) return null;
  try {
    const { subject } = new X509Certificate(readFileSync(file));
    const names = subject.split('\n').flatMap((line) => /^CN=(.+)$/.exec(line)?.[1] ?? []);
    return names.length === 1 && !/[\\"]/.test(names[0]!) ? names[0]! : null;
  } catch {
    return null;
  }
}

/** A word of pg_hba.conf and pg_ident.conf; in quotes no keyword, list or pattern is read into it. */
function hbaWord(word: string): string {
  const isKeyword = ['all', 'sameuser', 'samerole', 'replication'].includes(word);
  return /^[\w.$-]+$/.test(word) && !isKeyword ? word : `"${word.replaceAll('"', '""')}"`;
}

/** Members of a group: the plus sign has to stay outside of the quotes. */
function hbaGroup(group: string): string {
  return /^[\w.$-]+$/.test(group) ? `+${group}` : `+"${group.replaceAll('"', '""')}"`;
}

function yamlText(text: string): string {
  return /["'#:]/.test(text) ? `'${text.replaceAll("'", "''")}'` : text;
}

/** Name of the map in pg_ident.conf. */
const MAP = 'turnstile';
