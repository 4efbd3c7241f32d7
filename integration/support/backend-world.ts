/**
 * A PostgreSQL of one's own with all three backend identities: its roles, pg_hba.conf and pg_ident.conf are what
 * `pgturnstile sql provision` prints, so that the printed text is what is tested. Roles of the three ways have names
 * that end with it: alice_map, alice_password, alice_set.
 */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { escapeIdentifier } from 'pg';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import type { BackendIdentity, Config } from '../../src/config/config.ts';
import { formatFault } from '../../src/config/faults.ts';
import { loadConfig } from '../../src/config/load.ts';
import { type EmbeddedPostgres, startPostgres } from '../../src/demo/postgres.ts';
import { provisionSql } from '../../src/provision/provision-sql.ts';
import { rsa } from '../../test/auth/support.ts';
import { makeCertificate } from '../../test/support/certificates.ts';
import {
  configText,
  type LoginPooler,
  mint,
  newPassword,
  publicKeyFile,
  scratchDirectory,
  scratchFile,
  startLoginPooler,
  type Table,
  usersText,
} from './login-support.ts';

export const IDENTITIES: readonly BackendIdentity[] = ['set_role', 'login_map', 'login_password'];
export const DATABASE = 'app';
export const SERVICE = 'service';
export const GROUP = 'jwt_users';
export const COMMON_NAME = 'turnstile-pooler';

const SUFFIX: Readonly<Record<BackendIdentity, string>> = {
  set_role: 'set',
  login_map: 'map',
  login_password: 'password',
};

/** Who a person is under an identity. */
export function roleOf(person: 'alice' | 'bob', identity: BackendIdentity): string {
  return `${person}_${SUFFIX[identity]}`;
}

export class BackendWorld {
  readonly postgres: EmbeddedPostgres;
  readonly #tables: Table;
  readonly #keyFile = publicKeyFile(rsa);

  constructor(postgres: EmbeddedPostgres, general: Table) {
    this.postgres = postgres;
    this.#tables = general;
  }

  /** The keys of the two files for one identity; `general` and `turnstile` win. */
  files(
    identity: BackendIdentity,
    general: Table = {},
    turnstile: Table = {},
  ): { general: Table; turnstile: Table; databases: Table[] } {
    // By the name that its certificate carries.
    const address = { host: 'localhost', port: this.postgres.primary.port };
    return {
      general: {
        auth_type: 'jwt',
        jwt_public_key_file: this.#keyFile,
        jwt_user_auto_provision: true,
        jwt_audience: 'app',
        jwt_server_user: SERVICE,
        ...this.#tables,
        ...general,
      },
      turnstile: {
        backend_identity: identity,
        jwt_issuer: 'https://id.example.com',
        ...(identity === 'login_map' && { login_group: GROUP }),
        backend_password_key: KEY,
        ...turnstile,
      },
      databases: [{ name: DATABASE, ...address }],
    };
  }

  pooler(identity: BackendIdentity, general: Table = {}, turnstile: Table = {}): Promise<LoginPooler> {
    return startLoginPooler(this.files(identity, general, turnstile));
  }

  /** The validated configuration and the paths of its two files. */
  config(
    identity: BackendIdentity,
    general: Table = {},
    turnstile: Table = {},
  ): { config: Config; configPath: string; usersPath: string } {
    const directory = scratchDirectory();
    const configPath = path.join(directory, 'pgdog.toml');
    const usersPath = path.join(directory, 'users.toml');
    const files = this.files(identity, general, turnstile);
    writeFileSync(configPath, configText(files));
    writeFileSync(usersPath, usersText(files));
    const loaded = loadConfig({ configPath, usersPath, env: {} });
    if (loaded.config === null) throw new Error(loaded.faults.map(formatFault).join('\n'));
    return { config: loaded.config, configPath, usersPath };
  }

  /** What a client of `pg` logs in with. */
  login(role: string): { user: string; password: string; database: string } {
    const password = mint(rsa, role, { iss: 'https://id.example.com', aud: 'app' });
    return { user: role, password, database: DATABASE };
  }

  /** Runs statements in the database as the superuser. */
  async asSuperuser(...statements: string[]): Promise<Record<string, unknown>[]> {
    let rows: Record<string, unknown>[] = [];
    for (const statement of statements)
      rows = await this.postgres.query(statement, [], { database: DATABASE });
    return rows;
  }

  /** Makes roles ready by the printed SQL; answers with the whole text. */
  async provision(identity: BackendIdentity, roles: readonly string[]): Promise<string> {
    for (const role of roles) {
      await this.asSuperuser(`CREATE ROLE ${escapeIdentifier(role)} LOGIN`);
    }
    const { config } = this.config(identity);
    const text = await provisionSql({
      config,
      roles,
      database: null,
      identity: null,
      scramKeys: new ScramKeys(),
    });
    await this.asSuperuser(text);
    return text;
  }

  /** Replaces pg_ident.conf, which PostgreSQL reads again with pg_hba.conf. */
  writeIdent(lines: readonly string[]): void {
    writeFileSync(path.join(this.postgres.primary.dataDirectory, 'pg_ident.conf'), `${lines.join('\n')}\n`);
  }
}

/** Starts PostgreSQL and makes alice and bob for each identity. */
export async function makeBackendWorld(): Promise<BackendWorld> {
  const authority = makeCertificate({ name: 'backend authority', authority: true });
  const server = makeCertificate({ name: 'localhost', issuer: authority });
  const pooler = makeCertificate({ name: COMMON_NAME, issuer: authority });
  const caFile = scratchFile('ca.crt', authority.cert);
  const servicePassword = newPassword();
  const postgres = await startPostgres({
    superuserPassword: newPassword(),
    ssl: {
      certFile: scratchFile('server.crt', server.cert),
      keyFile: scratchFile('server.key', server.key),
      caFile,
    },
    settings: { log_connections: 'off', log_statement: 'none' },
  });
  try {
    await postgres.query(`CREATE DATABASE ${DATABASE}`);
    await postgres.query(`CREATE ROLE ${SERVICE} LOGIN NOINHERIT PASSWORD '${servicePassword}'`);
    await postgres.query(`CREATE ROLE ${GROUP} NOLOGIN`);
    const world = new BackendWorld(postgres, {
      tls_verify: 'verify_full',
      tls_server_ca_certificate: caFile,
      tls_server_certificate: scratchFile('pooler.crt', pooler.cert),
      tls_server_private_key: scratchFile('pooler.key', pooler.key),
      jwt_server_password: servicePassword,
    });
    let text = '';
    for (const identity of IDENTITIES) {
      const roles = [roleOf('alice', identity), roleOf('bob', identity)];
      const printed = await world.provision(identity, roles);
      if (identity === 'login_map') text = printed;
    }
    const lines = text.split('\n').map((line) => line.replace(/^--\s*/, ''));
    world.writeIdent(lines.filter((line) => line.startsWith('turnstile ') && line.includes(`+${GROUP}`)));
    await postgres.setHba(
      lines
        .filter((line) => /^host(ssl)? all \+/.test(line))
        .map((line) => line.replace('<address of the pooler>', '127.0.0.1/32')),
    );
    return world;
  } catch (error) {
    await postgres.stop();
    throw error;
  }
}

const KEY = randomBytes(24).toString('hex');
