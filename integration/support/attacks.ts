/**
 * What the attack suites share: a world with every kind of role, a server that publishes whatever key set a test
 * wants, and one way to try a login that checks all that must hold of every refusal: the exact bytes, one line in
 * the log, a closed socket, nothing of the token anywhere, and PostgreSQL untouched. Knows no single attack.
 */
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect } from 'vitest';
import { encodeErrorResponse } from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import { type KeyPair, otherRsa, p256, rsa, signParts, toJwk } from '../../test/auth/support.ts';
import { asSuperuser, createDatabase, createRole, sharedPostgres } from '../../test/support/postgres.ts';
import { ScriptedClient } from '../../test/support/scripted-client.ts';
import {
  type LoginPooler,
  newPassword,
  secretToken,
  startLoginPooler,
  type Table,
  until,
} from './login-support.ts';

/** A text that stands in every token, so that a leak of its claims can be seen. */
export const CANARY = 'canary-5d1f0c';

export type Answer = (response: ServerResponse) => void;

/** Serves what it is told under each path, and counts. Loopback only. */
export class KeyServer {
  readonly #server: Server;
  readonly #answers = new Map<string, Answer>();
  readonly #hits = new Map<string, number>();
  port = 0;

  constructor() {
    this.#server = createServer((request, response) => {
      const path = request.url ?? '';
      this.#hits.set(path, (this.#hits.get(path) ?? 0) + 1);
      const answer = this.#answers.get(path);
      if (answer === undefined) response.writeHead(404).end();
      else answer(response);
    });
  }

  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    this.port = (this.#server.address() as AddressInfo).port;
    return this;
  }

  url(path: string): string {
    return `http://127.0.0.1:${this.port}${path}`;
  }

  /** Requests for the path so far; for all paths without one. */
  hits(path?: string): number {
    if (path !== undefined) return this.#hits.get(path) ?? 0;
    return [...this.#hits.values()].reduce((sum, count) => sum + count, 0);
  }

  on(path: string, answer: Answer): void {
    this.#answers.set(path, answer);
  }

  /** A key set with these keys. */
  publish(path: string, keys: readonly Table[]): void {
    this.on(path, json({ keys }));
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export function json(value: unknown, status = 200, headers: Record<string, string> = {}): Answer {
  return (response) =>
    response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(value));
}

/** A public key as a JWKS carries it. */
export function jwk(keys: KeyPair, kid: string, more: Table = {}): Table {
  return { ...toJwk(keys.publicKey), kid, use: 'sig', ...more };
}

export interface AttackWorld {
  readonly keys: KeyServer;
  /** Published by the first issuer under `a1` (RSA) and `a2` (EC). */
  readonly issuerA: string;
  /** Published by the second issuer under `b1` (another RSA key). */
  readonly issuerB: string;
  readonly database: string;
  readonly other: string;
  readonly alice: string;
  readonly bob: string;
  readonly roles: Readonly<
    Record<'superuser' | 'bypassRls' | 'replication' | 'createRole' | 'nologin' | 'expired', string>
  >;
  readonly service: string;
  /** A pooler with both issuers, both databases and provisioning, changed as a test wants. */
  start(more?: {
    general?: Table;
    turnstile?: Table;
    issuerA?: Table;
    issuerB?: Table;
    users?: Table[];
    admin?: Table;
  }): Promise<LoginPooler>;
  /** A token of the first issuer for alice; a claim of `undefined` is left out. */
  token(claims?: Table, header?: Table, keys?: KeyPair): string;
  drop(): Promise<void>;
}

export const AUDIENCE = 'app.db.example.com';

export async function makeAttackWorld(): Promise<AttackWorld> {
  const { primary } = sharedPostgres();
  const keys = await new KeyServer().start();
  const issuerA = keys.url('/a');
  const issuerB = keys.url('/b');
  keys.publish('/a/jwks', [jwk(rsa, 'a1'), jwk(p256, 'a2')]);
  keys.publish('/b/jwks', [jwk(otherRsa, 'b1')]);
  const database = await createDatabase('attack');
  const other = await createDatabase('attack_other');
  const login = (attributes: string): Promise<{ name: string; drop(): Promise<void> }> =>
    createRole('role', { password: newPassword(), attributes });
  const made = {
    alice: await login(''),
    bob: await login(''),
    superuser: await login('SUPERUSER'),
    bypassRls: await login('BYPASSRLS'),
    replication: await login('REPLICATION'),
    createRole: await login('CREATEROLE'),
    nologin: await createRole('nologin'),
    expired: await login("VALID UNTIL '2001-01-01'"),
  };
  await asSuperuser([`ALTER ROLE ${made.nologin.name} NOLOGIN`]);
  const servicePassword = newPassword();
  const service = await createRole('auth', {
    password: servicePassword,
    attributes: 'NOINHERIT',
    maySetRole: Object.values(made).map((role) => role.name),
  });
  const row = (name: string): Table => ({ name, host: primary.host, port: primary.port });
  const { alice, bob, ...roles } = made;
  return {
    keys,
    issuerA,
    issuerB,
    database: database.name,
    other: other.name,
    alice: alice.name,
    bob: bob.name,
    roles: Object.fromEntries(
      Object.entries(roles).map(([key, role]) => [key, role.name]),
    ) as unknown as AttackWorld['roles'],
    service: service.name,
    start: (more = {}) =>
      startLoginPooler({
        general: {
          auth_type: 'jwt',
          jwt_server_user: service.name,
          jwt_server_password: servicePassword,
          jwt_user_auto_provision: true,
          ...more.general,
        },
        turnstile: {
          failed_logins_per_address: 0,
          ...more.turnstile,
          issuers: [
            { issuer: issuerA, jwks_url: keys.url('/a/jwks'), audiences: [AUDIENCE], ...more.issuerA },
            { issuer: issuerB, jwks_url: keys.url('/b/jwks'), audiences: [AUDIENCE], ...more.issuerB },
          ],
        },
        databases: [row(database.name), row(other.name)],
        ...(more.users && { users: more.users }),
        ...(more.admin && { admin: more.admin }),
      }),
    token: (claims = {}, header = {}, signer = rsa) => {
      const now = Math.floor(Date.now() / 1000);
      const alg = signer.privateKey.asymmetricKeyType === 'ec' ? 'ES256' : 'RS256';
      const body = { iss: issuerA, sub: alice.name, aud: AUDIENCE, iat: now, exp: now + 300, note: CANARY };
      return secretToken(
        signParts({ alg, typ: 'JWT', kid: 'a1', ...header }, { ...body, ...claims }, signer.privateKey),
      );
    },
    drop: async () => {
      await keys.stop();
      for (const one of [database, other]) await one.drop();
      for (const role of [service, ...Object.values(made)]) await role.drop();
    },
  };
}

/** What a login must come to. */
export type Outcome = { kind: 'in'; role: string } | { kind: 'refused'; code: string; message: string };

export const entersAs = (role: string): Outcome => ({ kind: 'in', role });
export const refusedWith = (code: string, message: string): Outcome => ({ kind: 'refused', code, message });
/** The one answer to every bad token. */
export const badToken = (user: string): Outcome =>
  refusedWith('28P01', `password authentication failed for user "${user}"`);
export const deniedDatabase = (name: string): Outcome =>
  refusedWith('42501', `permission denied for database "${name}"`);
export const refusedRole = (role: string): Outcome =>
  refusedWith('28000', `role "${role}" is not permitted to log in through this pooler`);

export interface Attempt {
  readonly user: string;
  readonly database: string;
  readonly secret: string;
  readonly parameters?: Record<string, string>;
  /** Nothing may be asked of any issuer. */
  readonly noNetwork?: boolean;
}

/** Logs in as the attempt says and holds everything that must hold, whatever comes of it. */
export async function expectOutcome(
  pooler: LoginPooler,
  world: AttackWorld,
  attempt: Attempt,
  outcome: Outcome,
): Promise<void> {
  // The first key sets are fetched behind the start's back; what a login asks for comes after.
  await until('the first key sets', () => world.keys.hits() > 0);
  const from = pooler.lines.length;
  const hits = world.keys.hits();
  const pools = new Set(pooler.worker.view.pools.pools());
  const client = await ScriptedClient.connect({ port: pooler.port });
  try {
    client.sendStartup({ user: attempt.user, database: attempt.database, ...attempt.parameters });
    const first = await client.readFrame();
    let refusal: Buffer | null = null;
    if (first.type === 'R' && first.body.readInt32BE(0) === 3) {
      client.sendPassword(attempt.secret);
      const second = await client.readFrame();
      if (second.type === 'E') refusal = frameOf(second);
      else expect([second.type, second.body.readInt32BE(0)]).toEqual(['R', 0]);
    } else {
      expect(first.type).toBe('E');
      refusal = frameOf(first);
    }
    if (outcome.kind === 'in') {
      expect(refusal?.toString('latin1')).toBeUndefined();
      await client.readWelcome();
      const who = await client.query('SELECT current_user');
      expect(who.rows).toEqual([[outcome.role]]);
      await client.terminate();
    } else {
      const { code, message } = outcome;
      const wanted = encodeErrorResponse(new PgError({ code, message, severity: 'FATAL' }), {
        severity: 'FATAL',
      });
      expect(refusal?.toString('latin1')).toBe(wanted.toString('latin1'));
      expect((await client.readToEnd()).length).toBe(0);
      const lines = pooler.lines.slice(from).filter((line) => ['warn', 'error', 'info'].includes(line.level));
      const rejects = lines.filter(
        (line) =>
          ['auth_reject', 'login_refused'].includes(line.message) || line.message.startsWith('login refused'),
      );
      expect(rejects, JSON.stringify(lines)).toHaveLength(1);
      expect(rejects[0]?.['reason']).toMatch(/^[a-z_]+$/);
      expect(rejects[0]?.['reason']).not.toBe('verifier_failed');
      expect(lines.filter((line) => line.message === 'login_failed')).toEqual([]);
    }
  } finally {
    client.destroy();
  }
  await expectNothingLeft(pooler, outcome.kind === 'in', pools);
  if (attempt.noNetwork === true) expect(world.keys.hits()).toBe(hits);
}

function frameOf(frame: { type: string; body: Buffer }): Buffer {
  const header = Buffer.alloc(5);
  header.write(frame.type, 0, 'latin1');
  header.writeInt32BE(frame.body.length + 4, 1);
  return Buffer.concat([header, frame.body]);
}

/** No claim in the log or in a view; after a refusal no new pool with a connection. */
async function expectNothingLeft(
  pooler: LoginPooler,
  isIn: boolean,
  before: ReadonlySet<unknown>,
): Promise<void> {
  expect(JSON.stringify(pooler.lines)).not.toContain(CANARY);
  const seen = await asSuperuser([
    `SELECT count(*)::int AS count FROM pg_stat_activity WHERE strpos(query, '${CANARY}') > 0 AND pid <> pg_backend_pid()`,
  ]);
  expect(Number(seen[0]?.['count'])).toBe(0);
  if (isIn) return;
  const made = [...pooler.worker.view.pools.pools()].filter(
    (pool) => !before.has(pool) && pool.serverCount > 0 && pool.sessions.size === 0 && pool.welcome !== null,
  );
  expect(made.map((pool) => pool.options.role)).toEqual([]);
}
