/**
 * Ways out of the role, on all three backend identities. Under login_map and login_password none leads anywhere. Under
 * set_role those that can be read are refused; the others, marked `hidden`, leave the role for as long as the request
 * lasts, and neither the same client's next transaction nor the next client has anything of it.
 */
import type { Client, ClientConfig } from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { BackendIdentity } from '../src/config/config.ts';
import {
  type BackendWorld,
  DATABASE,
  IDENTITIES,
  makeBackendWorld,
  roleOf,
  SERVICE,
} from './support/backend-world.ts';
import { cleanUp, expectNoSecrets, type LoginPooler, until } from './support/login-support.ts';

const WHO = 'SELECT session_user::text, current_user::text';

interface Form {
  readonly name: string;
  /** Each text is one Query message, `values` makes it Parse, Bind, Execute. `{bob}` is the role to become. */
  readonly steps: readonly (string | { text: string; values: readonly string[] })[];
  /** What set_role makes of it. `harmless`: it may run, and changes nothing. */
  readonly underSetRole: 'refused' | 'hidden' | 'harmless';
}

const FORMS: readonly Form[] = [
  ...[
    'RESET ROLE',
    'SET ROLE none',
    'SET ROLE DEFAULT',
    'SET ROLE TO DEFAULT',
    'SET ROLE {bob}',
    "SET ROLE '{bob}'",
    'set /* no */ role -- no\n {bob}',
    'SET LOCAL ROLE {bob}',
    'SET SESSION ROLE {bob}',
    "SET role = '{bob}'",
    'SET "role" TO {bob}',
    'SET U&"\\0072ole" TO {bob}',
    'SET SESSION AUTHORIZATION DEFAULT',
    'SET SESSION AUTHORIZATION {bob}',
    "SET session_authorization TO '{bob}'",
    'RESET SESSION AUTHORIZATION',
    'RESET session_authorization',
    "SELECT set_config('role', '{bob}', false)",
    "SELECT set_config('role', 'none', true)",
    "SELECT pg_catalog.set_config('session_authorization', '{bob}', false)",
    "SELECT set_config('ro' || 'le', '{bob}', false)",
    "SELECT set_config(setting_name => 'role', new_value => 'none', is_local => false)",
    "SELECT set_config(name, '{bob}', false) FROM pg_settings WHERE name LIKE 'role'",
    "UPDATE pg_settings SET setting = '{bob}' WHERE name = 'role'",
    'SELECT 1; SET ROLE {bob}; SELECT 2',
    'BEGIN; SET LOCAL ROLE {bob}; COMMIT',
    'COMMIT; RESET ROLE',
    "EXPLAIN ANALYZE SELECT set_config('role', '{bob}', false)",
    "CREATE TEMP TABLE t AS SELECT set_config('role', '{bob}', false)",
    "DECLARE c CURSOR WITH HOLD FOR SELECT set_config('role', '{bob}', false)",
    "COPY (SELECT set_config('role', '{bob}', false)) TO STDOUT",
    "PREPARE p AS SELECT set_config('role', '{bob}', false)",
    "PREPARE p (text) AS SELECT set_config($1, '{bob}', false)",
    "CREATE VIEW v AS SELECT set_config('role', '{bob}', false)",
    "VALUES (set_config('role', '{bob}', false))",
    'DO $$ BEGIN SET ROLE {bob}; END $$',
    "DO 'BEGIN RESET ROLE; END'",
    "DO $$ BEGIN PERFORM set_config('role', '{bob}', false); END $$",
    'CREATE FUNCTION f() RETURNS int LANGUAGE sql SET role = {bob} AS $$SELECT 1$$',
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT set_config('role', '{bob}', false)$$",
    'ALTER ROLE {alice} SET role = {bob}',
    'ALTER ROLE CURRENT_USER SET role TO {bob}',
    'ALTER DATABASE app SET role = {bob}',
  ].map((text): Form => ({ name: text, steps: [text], underSetRole: 'refused' })),
  {
    name: 'set_config with all its arguments bound',
    steps: [{ text: 'SELECT set_config($1, $2, false)', values: ['role', '{bob}'] }],
    underSetRole: 'refused',
  },
  {
    name: 'RESET ROLE by Parse, Bind, Execute',
    steps: [{ text: 'RESET ROLE', values: [] }],
    underSetRole: 'refused',
  },
  ...['DISCARD ALL', 'RESET ALL', 'DISCARD PLANS'].map(
    (text): Form => ({ name: text, steps: [text], underSetRole: 'harmless' }),
  ),
  {
    name: 'ROLLBACK of the transaction that took the role, as far as anybody can tell',
    steps: ['BEGIN', 'SELECT 1', 'ROLLBACK'],
    underSetRole: 'harmless',
  },
  {
    name: 'a savepoint that is rolled back over a failed statement',
    steps: ['BEGIN', 'SAVEPOINT s', 'SELECT 1', 'ROLLBACK TO s', 'ROLLBACK AND CHAIN', 'COMMIT'],
    underSetRole: 'harmless',
  },
  {
    name: 'a search_path that leads set_config and current_user elsewhere',
    steps: ['SET search_path = evil, pg_catalog', 'SELECT 1', 'BEGIN', 'ROLLBACK', 'RESET search_path'],
    underSetRole: 'harmless',
  },
  {
    name: 'ALTER ROLE … SET search_path for the sessions to come',
    steps: ['ALTER ROLE {alice} SET search_path = evil, pg_catalog'],
    underSetRole: 'harmless',
  },
  {
    name: 'DO that puts its statement together',
    steps: ["DO $$ BEGIN EXECUTE 'SET ' || 'RO' || 'LE {bob}'; END $$"],
    underSetRole: 'hidden',
  },
  {
    name: 'DO that puts RESET ROLE together',
    steps: ["DO $$ BEGIN EXECUTE reverse('ELOR TESER'); END $$"],
    underSetRole: 'hidden',
  },
  {
    name: 'DO that puts SESSION AUTHORIZATION together, which PostgreSQL refuses',
    steps: ["DO $$ BEGIN EXECUTE 'SET SESSION AUTHO' || 'RIZATION {bob}'; END $$"],
    underSetRole: 'refused',
  },
  {
    name: 'DO with a computed setting name',
    steps: ["DO $$ BEGIN PERFORM set_config('ro' || 'le', '{bob}', false); END $$"],
    underSetRole: 'hidden',
  },
  {
    name: 'DO in a transaction whose savepoint is rolled back',
    steps: [
      'BEGIN',
      "DO $$ BEGIN EXECUTE 'SET ' || 'RO' || 'LE {bob}'; END $$",
      'SAVEPOINT s',
      'SELECT 1',
      'ROLLBACK TO s',
      'COMMIT',
    ],
    underSetRole: 'hidden',
  },
  {
    name: 'DO in a transaction that is rolled back',
    steps: ['BEGIN', "DO $$ BEGIN EXECUTE 'SET ' || 'RO' || 'LE {bob}'; END $$", 'ROLLBACK'],
    underSetRole: 'hidden',
  },
  {
    name: 'DO that commits in its middle',
    steps: ["DO $$ BEGIN EXECUTE 'SET ' || 'RO' || 'LE {bob}'; COMMIT; END $$"],
    underSetRole: 'hidden',
  },
  {
    name: 'a function that is there already, with a computed statement',
    steps: ["SELECT public.run_text('SET RO', 'LE {bob}')"],
    underSetRole: 'hidden',
  },
  {
    name: 'the same with its text bound',
    steps: [{ text: 'SELECT public.run_text($1, $2)', values: ['RESET RO', 'LE'] }],
    underSetRole: 'hidden',
  },
  {
    name: 'a procedure',
    steps: ["CALL public.call_text('SET RO', 'LE {bob}')"],
    underSetRole: 'hidden',
  },
  {
    name: 'a prepared statement in SQL, executed',
    steps: ['PREPARE flee AS SELECT public.run_text($1, $2)', "EXECUTE flee('SET RO', 'LE {bob}')"],
    underSetRole: 'hidden',
  },
  {
    name: 'a function of one’s own, made and called in one string',
    steps: [
      "CREATE OR REPLACE FUNCTION pg_temp.f(n text) RETURNS text LANGUAGE sql AS 'SELECT set_config($1 || chr(101), ''{bob}'', false)'; SELECT pg_temp.f('rol')",
    ],
    underSetRole: 'hidden',
  },
  {
    name: 'a trigger',
    steps: ["INSERT INTO public.triggers VALUES ('SET RO', 'LE {bob}')"],
    underSetRole: 'hidden',
  },
  { name: 'a view', steps: ['SELECT * FROM public.way_out'], underSetRole: 'hidden' },
  { name: 'an operator', steps: ["SELECT 'SET RO' ->>> 'LE {bob}'"], underSetRole: 'hidden' },
  {
    name: 'SQL in a literal that a built-in function runs',
    steps: ["SELECT * FROM ts_stat('SELECT to_tsvector(public.run_text(''SET RO'', ''LE {bob}''))')"],
    underSetRole: 'hidden',
  },
];

let world: BackendWorld;
beforeAll(async () => {
  world = await makeBackendWorld();
  await world.asSuperuser(
    'GRANT CREATE, TEMPORARY ON DATABASE app TO PUBLIC',
    'GRANT ALL ON SCHEMA public TO PUBLIC',
    `CREATE FUNCTION public.run_text(a text, b text) RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN EXECUTE a || b; RETURN 'done'; END $$`,
    `CREATE PROCEDURE public.call_text(a text, b text) LANGUAGE plpgsql AS $$ BEGIN EXECUTE a || b; END $$`,
    'CREATE TABLE public.triggers (a text, b text)',
    `CREATE FUNCTION public.on_insert() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN EXECUTE NEW.a || NEW.b; RETURN NULL; END $$`,
    'CREATE TRIGGER flee BEFORE INSERT ON public.triggers FOR EACH ROW EXECUTE FUNCTION public.on_insert()',
    'GRANT ALL ON public.triggers TO PUBLIC',
    `CREATE VIEW public.way_out WITH (security_invoker = true) AS SELECT public.run_text('RESET RO', 'LE') AS done`,
    'GRANT ALL ON public.way_out TO PUBLIC',
    'CREATE OPERATOR public.->>> (LEFTARG = text, RIGHTARG = text, FUNCTION = public.run_text)',
    'CREATE SCHEMA evil',
    `CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT $2'`,
    `CREATE FUNCTION evil."current_user"() RETURNS text LANGUAGE sql AS $$SELECT 'postgres'$$`,
    'GRANT USAGE ON SCHEMA evil TO PUBLIC',
  );
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world?.postgres.stop();
});

/** Those that a failed expectation left behind would keep their connection in session mode. */
const clients = new Set<Client>();
afterEach(async () => {
  for (const client of clients) await client.end().catch(() => {});
  clients.clear();
});

async function connect(pooler: LoginPooler, role: string, more: ClientConfig = {}): Promise<Client> {
  const client = await pooler.connect({ ...world.login(role), ...more });
  clients.add(client);
  return client;
}

async function who(client: Client): Promise<[session: string, current: string]> {
  const { rows } = await client.query<{ session_user: string; current_user: string }>(WHO);
  return [rows[0]!.session_user, rows[0]!.current_user];
}

for (const identity of IDENTITIES) {
  for (const mode of ['transaction', 'session'] as const) {
    describe(`${identity}, ${mode} mode`, () => {
      const alice = roleOf('alice', identity);
      const bob = roleOf('bob', identity);
      const expected = [identity === 'set_role' ? SERVICE : alice, alice];
      const fill = (text: string): string => text.replaceAll('{bob}', bob).replaceAll('{alice}', alice);
      let pooler: LoginPooler;
      beforeAll(async () => {
        pooler = await world.pooler(identity, { pooler_mode: mode, default_pool_size: 1 });
      });
      afterAll(() => pooler.stop());

      /** Runs the steps up to the first error; answers with its code. */
      async function attempt(client: Client, form: Form): Promise<string | null> {
        for (const step of form.steps) {
          try {
            if (typeof step === 'string') await client.query(fill(step));
            else
              await client.query({
                text: fill(step.text),
                values: step.values.map(fill),
                name: `n${form.name.length}`,
              });
          } catch (error) {
            await client.query('ROLLBACK').catch(() => {});
            return (error as { code?: string }).code ?? 'lost';
          }
        }
        return null;
      }

      it.each(FORMS.map((form) => [form.name, form] as const))('%s', async (_name, form) => {
        const client = await connect(pooler, alice);
        const code = await attempt(client, form);
        if (identity === 'set_role') {
          if (form.underSetRole === 'refused') expect(code).toBe('42501');
          else expect(code).toBeNull();
        }
        // The same client's next transaction, by both protocols.
        expect(await who(client)).toEqual(expected);
        expect((await client.query({ text: WHO, values: [], name: 'who' })).rows).toEqual([
          { session_user: expected[0], current_user: expected[1] },
        ]);
        // One that leaves in the middle of it.
        await client.query('BEGIN');
        await attempt(client, { ...form, steps: form.steps.filter((step) => step !== 'BEGIN') });
        if (identity !== 'set_role') expect(await who(client)).toEqual(expected);
        await client.end();
        // The next client, which has the very same connection: the pool holds one.
        const next = await connect(pooler, alice);
        expect(await who(next)).toEqual(expected);
        const other = await connect(pooler, bob);
        expect((await who(other))[1]).toBe(bob);
        await other.end();
        await next.end();
        await world.asSuperuser(
          `ALTER ROLE ${alice} RESET ALL`,
          'DROP FUNCTION IF EXISTS public.f()',
          'DROP VIEW IF EXISTS public.v',
        );
      });

      it('in the startup packet: options and parameters that would change the role', async () => {
        for (const options of [
          `-c role=${bob}`,
          `-crole=${bob}`,
          `--role=${bob}`,
          `-c session_authorization=${bob}`,
          `-c\\ role=${bob}`,
        ]) {
          const refusal = await pooler.refusal({ ...world.login(alice), options });
          expect(refusal, options).toMatchObject({ severity: 'FATAL' });
        }
      });

      it('ALTER ROLE … SET by somebody else: who logs in is who the token says', async () => {
        await world.asSuperuser(
          `ALTER ROLE ${alice} SET role = '${bob}'`,
          `ALTER ROLE ${alice} SET search_path = evil, pg_catalog`,
        );
        try {
          const fresh = await world.pooler(identity, { pooler_mode: mode, default_pool_size: 1 });
          const client = await connect(fresh, alice);
          expect(await who(client)).toEqual(expected);
          await client.end();
          fresh.stop();
        } finally {
          await world.asSuperuser(`ALTER ROLE ${alice} RESET ALL`);
        }
      });
    });
  }
}

describe('the forms that set_role cannot see', () => {
  it('do leave the role while their request lasts: the list is what it says', async () => {
    const alice = roleOf('alice', 'set_role');
    const bob = roleOf('bob', 'set_role');
    const pooler = await world.pooler('set_role', { default_pool_size: 1 });
    const client = await connect(pooler, alice);
    for (const form of FORMS.filter((one) => one.underSetRole === 'hidden')) {
      await client.query('BEGIN');
      for (const step of form.steps.slice(0, form.steps.indexOf('SAVEPOINT s') < 0 ? undefined : 2)) {
        if (step === 'BEGIN' || step === 'ROLLBACK') continue;
        const fill = (text: string): string => text.replaceAll('{bob}', bob);
        // SESSION AUTHORIZATION is PostgreSQL's to refuse, and COMMIT has no place here.
        await (typeof step === 'string'
          ? client.query(fill(step))
          : client.query(step.text, step.values.map(fill))
        ).catch(() => {});
      }
      const left = await who(client).catch(() => null);
      await client.query('ROLLBACK');
      if (/AUTHORIZATION|commits/.test(form.name)) continue;
      expect(left?.[1], form.name).not.toBe(alice);
    }
    await client.end();
    pooler.stop();
  });
});

describe('a service user that is superuser, which has to be allowed by name', () => {
  it('a session user that is changed by code ends the connection before anybody else has it', async () => {
    const alice = roleOf('alice', 'set_role');
    const bob = roleOf('bob', 'set_role');
    await world.asSuperuser(`ALTER ROLE ${SERVICE} SUPERUSER`);
    try {
      for (const pooler_mode of ['transaction', 'session']) {
        const pooler = await world.pooler(
          'set_role',
          { default_pool_size: 1, pooler_mode },
          { allow_privileged_server_user: true },
        );
        const client = await connect(pooler, alice);
        await client
          .query(
            `DO $$ BEGIN EXECUTE 'RESET RO' || 'LE'; EXECUTE 'SET SESSION AUTHO' || 'RIZATION ${bob}'; END $$`,
          )
          .catch(() => {});
        const next = await who(client).catch((error: { code?: string }) => error.code);
        if (Array.isArray(next)) expect(next).toEqual([SERVICE, alice]);
        else expect(['08006', '57P01', undefined]).toContain(next);
        await client.end().catch(() => {});
        const other = await connect(pooler, alice);
        expect(await who(other)).toEqual([SERVICE, alice]);
        await other.end();
        pooler.stop();
      }
    } finally {
      await world.asSuperuser(`ALTER ROLE ${SERVICE} NOSUPERUSER`);
    }
  });
});

describe.each(['login_map', 'login_password'] as const)('%s', (identity: BackendIdentity) => {
  const alice = roleOf('alice', identity);

  it.each([
    ['SET ROLE', 'SET ROLE team'],
    ['code that cannot be seen', "DO $$ BEGIN EXECUTE 'SET RO' || 'LE team'; END $$"],
    ['a trigger', "INSERT INTO public.triggers VALUES ('SET RO', 'LE team')"],
  ])('a role that one may become by GRANT is one’s own affair, by %s, and nothing that the next client has', async (_how, sql) => {
    await world.asSuperuser(
      'CREATE ROLE team',
      `GRANT team TO ${alice}`,
      'GRANT ALL ON public.triggers TO team',
    );
    const pooler = await world.pooler(identity, { default_pool_size: 1 });
    try {
      const client = await connect(pooler, alice);
      await client.query(sql);
      await client.end();
      const next = await connect(pooler, alice);
      expect(await who(next)).toEqual([alice, alice]);
      await next.end();
    } finally {
      pooler.stop();
      await until('nobody is logged in', async () => {
        const rows = await world.asSuperuser(`SELECT 1 FROM pg_stat_activity WHERE usename = '${alice}'`);
        return rows.length === 0;
      });
      await world.asSuperuser('DROP OWNED BY team', 'DROP ROLE team');
    }
  });

  it('is who PostgreSQL’s own log and views name: session_user, and system_user by certificate', async () => {
    const pooler = await world.pooler(identity);
    const client = await connect(pooler, alice);
    const { rows } = await client.query(
      'SELECT session_user::text AS who, system_user AS how, pg_backend_pid() AS pid',
    );
    expect(rows[0]).toMatchObject({
      who: alice,
      how: identity === 'login_map' ? 'cert:CN=turnstile-pooler' : `scram-sha-256:${alice}`,
    });
    const [activity] = await world.asSuperuser(
      `SELECT usename::text AS who, datname::text AS name FROM pg_stat_activity WHERE pid = ${rows[0].pid}`,
    );
    expect(activity).toEqual({ who: alice, name: DATABASE });
    await client.end();
    pooler.stop();
  });
});
