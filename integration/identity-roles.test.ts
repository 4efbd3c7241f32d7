/** The policy on roles end to end: which names and which attributes no token enters, and what PostgreSQL says. */
import { escapeIdentifier } from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { rsa } from '../test/auth/support.ts';
import { asSuperuser, createRole } from '../test/support/postgres.ts';
import {
  cleanUp,
  expectNoSecrets,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  type PoolerFiles,
  publicKeyFile,
  serverSessions,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

let world: World;
const roles: { drop(): Promise<void> }[] = [];
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
  for (const role of roles) await role.drop();
});

/** A role that the service user may take, gone at the end. */
async function grantedRole(prefix: string, attributes = ''): Promise<string> {
  const role = await createRole(prefix, { attributes });
  roles.push(role);
  await allow(role.name);
  return role.name;
}

const allow = (role: string): Promise<unknown> =>
  asSuperuser([`GRANT ${escapeIdentifier(role)} TO ${world.service} WITH INHERIT FALSE, SET TRUE`]);

function start(files: PoolerFiles = {}): Promise<LoginPooler> {
  return startLoginPooler({
    databases: [world.row()],
    ...files,
    general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa), ...files.general }),
  });
}

/** By the placeholder user, so that the role is the token's alone. */
const enter = (role: string): Table => ({
  user: 'jwt',
  password: mint(rsa, role),
  database: world.database,
});

const refusedRole = (role: string): object => ({
  severity: 'FATAL',
  code: '28000',
  message: `role "${role}" is not permitted to log in through this pooler`,
});

describe('names', () => {
  let pooler: LoginPooler;
  beforeAll(async () => {
    pooler = await start({ turnstile: { reserved_roles: ['keeper'] }, admin: { user: 'boss' } });
  });
  afterAll(() => pooler.stop());

  test.each([
    ['none', 'role_reserved'],
    ['NONE', 'role_reserved'],
    ['public', 'role_reserved'],
    ['current_user', 'role_reserved'],
    ['session_user', 'role_reserved'],
    ['user', 'role_reserved'],
    ['pg_monitor', 'role_reserved'],
    ['pg_read_all_data', 'role_reserved'],
    ['keeper', 'role_reserved'],
    ['boss', 'role_is_admin'],
    ['a"b', 'role_pattern'],
    ["a'b", 'role_pattern'],
    ['a\\b', 'role_pattern'],
    ['a;b', 'role_pattern'],
    ['a b', 'role_pattern'],
    ['aß', 'role_pattern'],
    ['-a', 'role_pattern'],
    ['a\nb', 'role_bad_character'],
    ['x'.repeat(64), 'role_too_long'],
    ['ü'.repeat(32), 'role_too_long'],
  ])('%j is refused before PostgreSQL is asked', async (role, reason) => {
    const from = pooler.lines.length;
    expect(await pooler.refusal(enter(role))).toMatchObject({ code: '28000', severity: 'FATAL' });
    const lines = pooler.lines.slice(from).filter((line) => line['reason'] !== undefined);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatchObject({ message: 'auth_reject', reason, code: '28000' });
    expect([...pooler.worker.view.pools.pools()]).toEqual([]);
  });

  test('the service user is never entered as itself', async () => {
    expect(await pooler.refusal(enter(world.service))).toEqual(refusedRole(world.service));
    expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'role_reserved' });
  });

  test('a name of 63 bytes is entered whole', async () => {
    const long = `${'l'.repeat(58)}_${process.pid % 10_000}`.padEnd(63, 'z');
    await asSuperuser([`CREATE ROLE ${long} LOGIN`]);
    try {
      await allow(long);
      expect((await pooler.ask(enter(long)))['current_user']).toBe(long);
    } finally {
      pooler.worker.view.reconnect(null);
      await asSuperuser([`DROP ROLE ${long}`]);
    }
  });

  test('role_pattern may let other names through, and they are taken as they are', async () => {
    const wide = await start({ turnstile: { role_pattern: '.+' } });
    const name = `odd "'\\; ${process.pid} é`;
    await asSuperuser([`CREATE ROLE ${escapeIdentifier(name)} LOGIN`]);
    try {
      await allow(name);
      expect((await wide.ask(enter(name)))['current_user']).toBe(name);
      expect(await wide.refusal(enter('none'))).toEqual(refusedRole('none'));
    } finally {
      wide.stop();
      await asSuperuser([`DROP ROLE ${escapeIdentifier(name)}`]);
    }
  });
});

describe('attributes', () => {
  test.each([
    'SUPERUSER',
    'BYPASSRLS',
    'REPLICATION',
    'CREATEROLE',
  ])('a %s role is refused, and let in where allowed by name', async (attribute) => {
    const role = await grantedRole('strong', attribute);
    const pooler = await start();
    expect(await pooler.refusal(enter(role))).toEqual(refusedRole(role));
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'role_privileged', code: '28000' });
    pooler.stop();
    const lenient = await start({ turnstile: { allowed_privileged_roles: [role] } });
    expect((await lenient.ask(enter(role)))['current_user']).toBe(role);
    lenient.stop();
  });

  test('a role whose VALID UNTIL has passed is refused, one whose time is still to come is not', async () => {
    const past = await grantedRole('past', "VALID UNTIL '2020-01-01'");
    const later = await grantedRole('later', "VALID UNTIL '2100-01-01'");
    const pooler = await start();
    expect(await pooler.refusal(enter(past))).toEqual(refusedRole(past));
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'role_expired' });
    expect((await pooler.ask(enter(later)))['current_user']).toBe(later);
    expect((await pooler.ask(enter(world.alice)))['current_user']).toBe(world.alice);
    pooler.stop();
  });

  test('a NOLOGIN role is refused, and let in where nologin_roles says so', async () => {
    const role = await grantedRole('team');
    await asSuperuser([`ALTER ROLE ${role} NOLOGIN`]);
    const pooler = await start();
    expect(await pooler.refusal(enter(role))).toEqual(refusedRole(role));
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'role_nologin' });
    pooler.stop();
    const lenient = await start({ turnstile: { nologin_roles: 'allow' } });
    expect((await lenient.ask(enter(role)))['current_user']).toBe(role);
    lenient.stop();
  });

  test('with login_group only its members are let in, those of its members too, and a group that is not there has none', async () => {
    const [group, between] = [await createRole('group'), await createRole('between')];
    roles.push(group, between);
    const [member, indirect, stranger] = [
      await grantedRole('member'),
      await grantedRole('indirect'),
      await grantedRole('stranger'),
    ];
    await asSuperuser([
      `GRANT ${group.name} TO ${member}, ${between.name} WITH INHERIT FALSE, SET FALSE`,
      `GRANT ${between.name} TO ${indirect}`,
    ]);
    const pooler = await start({ turnstile: { login_group: group.name } });
    for (const role of [member, indirect]) {
      expect((await pooler.ask(enter(role)))['current_user']).toBe(role);
    }
    expect(await pooler.refusal(enter(stranger))).toEqual(refusedRole(stranger));
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'role_not_in_group' });
    pooler.stop();
    const empty = await start({ turnstile: { login_group: 'no_such_group' } });
    expect(await empty.refusal(enter(member))).toEqual(refusedRole(member));
    empty.stop();
  });

  test('a role cannot move its own VALID UNTIL by the settings that say how numbers are printed', async () => {
    const past = await grantedRole('past', "VALID UNTIL '2020-01-01'");
    await asSuperuser([`ALTER ROLE ${world.service} SET extra_float_digits = -15`]);
    try {
      const pooler = await start();
      expect(await pooler.refusal(enter(past))).toEqual(refusedRole(past));
      pooler.stop();
    } finally {
      await asSuperuser([`ALTER ROLE ${world.service} RESET extra_float_digits`]);
    }
  });

  test('the first session under SET ROLE is the occasion to say what it does not protect from', async () => {
    const pooler = await start();
    await pooler.ask(enter(world.alice));
    await pooler.ask(enter(world.bob));
    expect(pooler.logged('backend_identity is set_role: ')).toEqual([
      expect.objectContaining({ level: 'warn', server_user: world.service }),
    ]);
    pooler.stop();
  });

  test('a role that the service user was not granted is refused', async () => {
    const role = await createRole('foreign');
    roles.push(role);
    const pooler = await start();
    expect(await pooler.refusal(enter(role.name))).toEqual(refusedRole(role.name));
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'role_denied' });
    pooler.stop();
  });
});

describe('a role that PostgreSQL does not know', () => {
  test('is refused with 28000, remembered for 5 s, and causes no retry storm', async () => {
    const pooler = await start();
    const before = await sessionsEver();
    const refusals = await Promise.all(
      Array.from({ length: 30 }, () => pooler.refusal(enter('nobody_at_all'))),
    );
    for (let again = 0; again < 20; again++) refusals.push(await pooler.refusal(enter('nobody_at_all')));
    expect(refusals).toHaveLength(50);
    for (const refusal of refusals) expect(refusal).toEqual(refusedRole('nobody_at_all'));
    const attempts = pooler.logged('cannot connect to PostgreSQL').length;
    expect(attempts).toBeGreaterThan(0);
    expect(attempts).toBeLessThanOrEqual(4);
    expect([...pooler.worker.view.pools.pools()]).toEqual([]);
    const after = await sessionsEver();
    expect(after - before).toBeLessThanOrEqual(attempts);
    expect(await serverSessions(world.service)).toBe(0);
    // Nobody else waits because of it.
    expect((await pooler.ask(enter(world.alice)))['current_user']).toBe(world.alice);
    pooler.stop();
  });

  test('that is made while it is remembered is let in once the 5 s are over', async () => {
    const pooler = await start();
    const name = `late_${process.pid}`;
    const refusedAtMs = performance.now();
    expect(await pooler.refusal(enter(name))).toEqual(refusedRole(name));
    await asSuperuser([`CREATE ROLE ${name} LOGIN`]);
    try {
      await allow(name);
      expect(await pooler.refusal(enter(name))).toEqual(refusedRole(name));
      await until('the role', async () => {
        try {
          return (await pooler.ask(enter(name)))['current_user'] === name;
        } catch {
          return false;
        }
      });
      expect(performance.now() - refusedAtMs).toBeGreaterThan(4_900);
      expect(pooler.logged('cannot connect to PostgreSQL')).toHaveLength(1);
    } finally {
      pooler.stop();
      await asSuperuser([`DROP ROLE ${name}`]);
    }
  });

  test('with missing_role = "server_user" runs as the service user, with a warning at start and at login', async () => {
    const pooler = await start({ turnstile: { missing_role: 'server_user' } });
    expect(pooler.warnings.join('\n')).toContain('turnstile.missing_role: server_user: ');
    expect(await pooler.ask(enter('not_there'))).toMatchObject({
      session_user: world.service,
      current_user: world.service,
    });
    expect(pooler.logged('missing_role: ')[0]).toMatchObject({ level: 'warn', role: 'not_there' });
    // It is the fall-back for a role that is missing, not for one that is refused.
    const strong = await grantedRole('strong', 'BYPASSRLS');
    expect(await pooler.refusal(enter(strong))).toEqual(refusedRole(strong));
    expect((await pooler.ask(enter(world.alice)))['current_user']).toBe(world.alice);
    pooler.stop();
  });
});

test('a role that is dropped while its pool lives: the next login gets 28000 and the others go on', async () => {
  const pooler = await start({ general: { default_pool_size: 1 } });
  const role = await grantedRole('brief');
  await pooler.ask(enter(role));
  pooler.worker.view.reconnect(null);
  await until('no session', async () => (await serverSessions(world.service)) === 0);
  await asSuperuser([`DROP ROLE ${role}`]);
  const client = await pooler.connect(enter(role)).catch((error: Error & { code: string }) => error);
  if (client instanceof Error) expect(client.code).toBe('28000');
  else await expect(client.query('SELECT 1')).rejects.toMatchObject({ code: '28000' });
  expect((await pooler.ask(enter(world.alice)))['current_user']).toBe(world.alice);
  pooler.stop();
});

describe('a privileged service user', () => {
  test.each([
    'SUPERUSER',
    'BYPASSRLS',
    'REPLICATION',
    'CREATEROLE',
  ])('that is %s: nobody gets in, and the log says why', async (attribute) => {
    const password = newPassword();
    const service = await createRole('root', { password, attributes: attribute, maySetRole: [world.alice] });
    roles.push(service);
    const general = { jwt_server_user: service.name, jwt_server_password: password };
    const pooler = await start({ general });
    const refusal = await pooler.refusal(enter(world.alice));
    expect(refusal).toMatchObject({ severity: 'FATAL', code: '28000' });
    expect(refusal.message).toContain('its server user is privileged');
    expect(pooler.logged('allow_privileged_server_user')[0]).toMatchObject({
      level: 'error',
      server_user: service.name,
    });
    pooler.stop();

    const lenient = await start({ general, turnstile: { allow_privileged_server_user: true } });
    expect(lenient.warnings.join('\n')).toContain('allow_privileged_server_user: true');
    expect(await lenient.ask(enter(world.alice))).toMatchObject({
      session_user: service.name,
      current_user: world.alice,
    });
    await lenient.ask(enter(world.alice));
    expect(lenient.logged('the server user is privileged')).toHaveLength(1);
    expect(lenient.logged('the server user is privileged')[0]).toMatchObject({ level: 'warn' });
    lenient.stop();
  });
});

test('a row of users.toml is no way for a token into a privileged role; its password still is', async () => {
  const password = newPassword();
  const strong = await createRole('strong', { password, attributes: 'BYPASSRLS' });
  roles.push(strong);
  const users = [
    { name: strong.name, password, database: world.database },
    { name: 'harmless', database: world.database, server_user: strong.name, server_password: password },
  ];
  const pooler = await start({ users });
  for (const name of [strong.name, 'harmless']) {
    expect(await pooler.refusal(enter(name))).toEqual(refusedRole(name));
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'role_privileged', role: name });
    // Also once the connection is there.
    expect(await pooler.refusal(enter(name))).toEqual(refusedRole(name));
  }
  pooler.stop();
  const lenient = await start({ users, turnstile: { allowed_privileged_roles: [strong.name] } });
  for (const name of [strong.name, 'harmless']) {
    expect((await lenient.ask(enter(name)))['session_user']).toBe(strong.name);
  }
  lenient.stop();
  const scram = await start({ users: [users[0]!], general: { auth_type: 'scram' } });
  const row = await scram.ask({ user: strong.name, password, database: world.database });
  expect(row['session_user']).toBe(strong.name);
  scram.stop();
});

test('settings of the role or of the client do not move the check of who is there', async () => {
  const role = await grantedRole('tricky');
  await asSuperuser(
    [
      'CREATE SCHEMA evil',
      `CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT $2'`,
      `CREATE FUNCTION evil."current_user"() RETURNS text LANGUAGE sql AS $$SELECT 'postgres'$$`,
      `CREATE TABLE evil.pg_roles AS SELECT * FROM pg_catalog.pg_roles LIMIT 0`,
      'GRANT USAGE ON SCHEMA evil TO PUBLIC',
      'GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC',
      `ALTER ROLE ${world.service} SET search_path = evil, pg_catalog`,
    ],
    { database: world.database },
  );
  try {
    const pooler = await start();
    expect(await pooler.ask({ ...enter(role), options: '-c search_path=evil,pg_catalog' })).toMatchObject({
      current_user: role,
      session_user: world.service,
    });
    const client = await pooler.connect({ ...enter(role), options: '-c search_path=evil,pg_catalog' });
    await client.query('BEGIN');
    await client.query('ROLLBACK');
    expect((await client.query('SELECT current_user::text AS me')).rows[0].me).toBe(role);
    await client.end();
    pooler.stop();
  } finally {
    await asSuperuser([`ALTER ROLE ${world.service} RESET search_path`]);
  }
});

/** Sessions that PostgreSQL has ever begun for the test's database, as far as its statistics know yet. */
async function sessionsEver(): Promise<number> {
  const [row] = await asSuperuser([
    `SELECT sessions::int FROM pg_stat_database WHERE datname = '${world.database}'`,
  ]);
  return Number(row?.['sessions']);
}
