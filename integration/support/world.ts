/**
 * The small world that the relay's, the session's and the pools' tests share: a database, two roles that may log in
 * themselves (so that a direct connection can be the model), a service role that may only become them, tokens, and
 * poolers of both kinds in front of it. Nothing here asserts anything.
 */
import { asSuperuser, createDatabase, createRole, sharedPostgres } from '../../test/support/postgres.ts';
import { ScriptedClient } from '../../test/support/scripted-client.ts';
import {
  databaseRow,
  makeIssuer,
  type PoolerOverrides,
  type RunningPooler,
  startPooler,
  type TestIssuer,
  type TomlTable,
} from './pooler.ts';

/** `static`: users.toml, the login is the role. `set_role`: tokens, a service role becomes the role. */
export type PoolKind = 'static' | 'set_role';

export interface World {
  readonly database: string;
  readonly alice: string;
  readonly bob: string;
  readonly service: string;
  readonly issuer: TestIssuer;
  /** Everything in the public schema made anew: table items (id, name) with three rows. */
  reset(): Promise<void>;
  /** A connection straight to PostgreSQL. */
  direct(role: string, parameters?: Record<string, string>): Promise<ScriptedClient>;
  /** The overrides that make a pooler of a kind; `general` is added to them. */
  overrides(kind: PoolKind, general?: TomlTable, more?: PoolerOverrides): PoolerOverrides;
  pooler(kind: PoolKind, general?: TomlTable, more?: PoolerOverrides): Promise<RunningPooler>;
  /** A client of the pooler, logged in as a role whatever its kind. */
  login(pooler: RunningPooler, role: string, parameters?: Record<string, string>): Promise<ScriptedClient>;
  drop(): Promise<void>;
}

export const PASSWORD = 'world-password';

const RESET = [
  'DROP SCHEMA public CASCADE',
  'CREATE SCHEMA public',
  'GRANT ALL ON SCHEMA public TO PUBLIC',
  'CREATE TABLE public.items (id int PRIMARY KEY, name text)',
  "INSERT INTO public.items VALUES (1, 'one'), (2, 'two'), (3, 'three')",
  'GRANT ALL ON public.items TO PUBLIC',
].join(';');

export async function makeWorld(): Promise<World> {
  const database = await createDatabase('relay');
  const alice = await createRole('alice', { password: PASSWORD });
  const bob = await createRole('bob', { password: PASSWORD });
  const service = await createRole('service', {
    password: PASSWORD,
    attributes: 'NOINHERIT',
    maySetRole: [alice.name, bob.name],
  });
  await asSuperuser([
    `GRANT CREATE, TEMPORARY ON DATABASE ${database.name} TO ${alice.name}, ${bob.name}`,
    `GRANT SET ON PARAMETER log_statement TO PUBLIC`,
  ]);
  const issuer = makeIssuer();
  const { primary } = sharedPostgres();
  const world: World = {
    database: database.name,
    alice: alice.name,
    bob: bob.name,
    service: service.name,
    issuer,
    reset: async () => {
      await asSuperuser([RESET], { database: database.name });
    },
    direct: (role, parameters = {}) =>
      ScriptedClient.login({
        ...primary,
        user: role,
        password: PASSWORD,
        database: database.name,
        parameters,
      }),
    overrides: (kind, general = {}, more = {}) => {
      const databases = [databaseRow(database.name), ...(more.databases ?? [])];
      if (kind === 'static') {
        const user = (name: string): TomlTable => ({ name, password: PASSWORD, database: database.name });
        return {
          ...more,
          general: { auth_type: 'trust', ...general },
          databases,
          users: [user(alice.name), user(bob.name), ...(more.users ?? [])],
        };
      }
      return {
        ...more,
        general: {
          auth_type: 'jwt',
          jwt_public_key_file: 'issuer.pem',
          jwt_user_auto_provision: true,
          jwt_server_user: service.name,
          jwt_server_password: PASSWORD,
          ...general,
        },
        databases,
        files: { 'issuer.pem': issuer.publicKeyPem, ...more.files },
      };
    },
    pooler: (kind, general, more) => startPooler(world.overrides(kind, general, more)),
    login: async (pooler, role, parameters = {}) =>
      ScriptedClient.login({
        port: pooler.port,
        user: role,
        password: pooler.config.general.authType === 'jwt' ? await issuer.token(role) : '',
        database: database.name,
        parameters,
      }),
    drop: async () => {
      await database.drop();
      for (const role of [service, bob, alice]) await role.drop();
    },
  };
  await world.reset();
  return world;
}

/** Resolves when no server connection is lent or being cleaned; throws after `timeoutMs`. */
export async function untilPoolsRest(pooler: RunningPooler, timeoutMs = 5_000): Promise<void> {
  await until(
    () => {
      for (const pool of pooler.worker.view.pools.pools()) {
        if (pool.activeCount + pool.cleaningCount + pool.connectingCount > 0) return false;
      }
      return true;
    },
    'the pools rest',
    timeoutMs,
  );
}

/** Resolves when the condition holds; throws after `timeoutMs`. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what: string,
  timeoutMs = 5_000,
): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`waited ${timeoutMs} ms until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
