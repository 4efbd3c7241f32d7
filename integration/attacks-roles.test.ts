/**
 * Names that are no roles, roles that nobody may become, and startup packets that try to be more than they are.
 * What must hold of every refusal is checked by `expectOutcome`; here stands what is tried and what must be said.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encodeErrorResponse } from '../src/protocol/message-writer.ts';
import { PgError } from '../src/protocol/pg-error.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import {
  type AttackWorld,
  badToken,
  deniedDatabase,
  entersAs,
  expectOutcome,
  makeAttackWorld,
  type Outcome,
  refusedRole,
  refusedWith,
} from './support/attacks.ts';
import { cleanUp, expectNoSecrets, type LoginPooler, newPassword } from './support/login-support.ts';

let world: AttackWorld;
let pooler: LoginPooler;
const staticPassword = newPassword();
const adminPassword = newPassword();
beforeAll(async () => {
  world = await makeAttackWorld();
  pooler = await world.start({
    users: [{ name: 'static_user', password: staticPassword, database: world.other }],
    admin: { user: 'root', password: adminPassword },
  });
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
});

const asRole = (role: string, user = 'jwt', outcome: Outcome = refusedRole(role)): Promise<void> =>
  expectOutcome(
    pooler,
    world,
    { user, database: world.database, secret: world.token({ sub: role }) },
    outcome,
  );

describe('names that no token becomes', () => {
  test.each([
    ['with a double quote', 'a"b'],
    ['with a backslash', 'a\\b'],
    ['with a single quote', "a'b"],
    ['with a semicolon', 'a;b'],
    ['with a space', 'a b'],
    ['of symbols', '🦆'],
    ['none, which SET ROLE takes for no role', 'none'],
    ['NONE', 'NONE'],
    ['public', 'public'],
    ['current_user, which may be the name of a role', 'current_user'],
    ['session_user', 'session_user'],
    ['user', 'user'],
    ['pg_monitor', 'pg_monitor'],
    ['pg_anything', 'pg_anything'],
    ['the superuser', 'postgres'],
    ['the role of streaming replicas', 'streaming_replica'],
    ["another pooler's role", 'cnpg_pooler_pgbouncer'],
    ['the user of the console', 'root'],
    ['of 64 bytes, which PostgreSQL would cut', 'a'.repeat(64)],
    ['of 64 bytes by a character of two', `${'a'.repeat(62)}ä`],
    ['that PostgreSQL does not know', 'nobody_at_all'],
  ])('%s', (_name, role) => asRole(role));

  test('with a line end or a tab, shown escaped', async () => {
    for (const role of ['a\nb', 'a\tb']) {
      const client = await ScriptedClient.connect({ port: pooler.port });
      client.sendStartup({ user: 'jwt', database: world.database });
      await client.expect('R');
      client.sendPassword(world.token({ sub: role }));
      const error = await client.expectFatal();
      expect(error.code).toBe('28000');
      expect(error.message).not.toMatch(/[\n\t]/);
    }
  });

  test("the pooler's own server user", () => asRole(world.service));
  test('a superuser', () => asRole(world.roles.superuser));
  test('a role with BYPASSRLS', () => asRole(world.roles.bypassRls));
  test('a role with REPLICATION', () => asRole(world.roles.replication));
  test('a role with CREATEROLE', () => asRole(world.roles.createRole));
  test('a role without LOGIN', () => asRole(world.roles.nologin));
  test('a role whose VALID UNTIL is past, which SET ROLE would not mind', () => asRole(world.roles.expired));

  test('a role that was refused is not asked for again at once, however often it comes', async () => {
    for (let round = 0; round < 5; round++) await asRole('nobody_of_five');
    const asked = pooler.lines.filter(
      (line) =>
        line.level !== 'debug' && line['role'] === 'nobody_of_five' && line['reason'] === 'role_unknown',
    );
    expect(asked.length).toBeLessThanOrEqual(5);
    expect(
      [...pooler.worker.view.pools.pools()].filter((pool) => pool.options.role === 'nobody_of_five'),
    ).toEqual([]);
  });
});

describe('who the client says it is', () => {
  test('another user than the role, and no placeholder, is refused by its own name', () =>
    expectOutcome(
      pooler,
      world,
      { user: world.bob, database: world.database, secret: world.token() },
      refusedRole(world.bob),
    ));

  test('the placeholder stands for whoever the token says', () =>
    expectOutcome(
      pooler,
      world,
      { user: 'jwt', database: world.database, secret: world.token() },
      entersAs(world.alice),
    ));

  test('a token is not a password of a static user of another database, nor the other way round', async () => {
    const attempt = { user: 'static_user', database: world.database };
    await expectOutcome(
      pooler,
      world,
      { ...attempt, secret: world.token({ sub: 'static_user' }) },
      deniedDatabase(world.database),
    );
    await expectOutcome(pooler, world, { ...attempt, secret: `${staticPassword}x` }, badToken('static_user'));
  });

  test('no user at all is refused in the words of PostgreSQL', async () => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ database: world.database });
    const error = await client.expectFatal();
    expect([error.code, error.message]).toEqual([
      '28000',
      'no PostgreSQL user name specified in startup packet',
    ]);
  });
});

describe('databases', () => {
  const into = (database: string, outcome: Outcome, claims = {}): Promise<void> =>
    expectOutcome(pooler, world, { user: world.alice, database, secret: world.token(claims) }, outcome);

  test('a path, a foreign pooler, and names by the hundred make no pool and no difference', async () => {
    const before = [...pooler.worker.view.pools.pools()].length;
    for (const name of [
      '../x',
      'pgbouncer',
      ...Array.from({ length: 100 }, (_, index) => `made_up_${index}`),
    ]) {
      await into(name, refusedWith('3D000', `database "${name}" does not exist`));
    }
    expect([...pooler.worker.view.pools.pools()]).toHaveLength(before);
  });

  test('a missing one is the name of the user, as everywhere, and is judged like any other', async () => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ user: world.alice });
    await client.expect('R');
    client.sendPassword(world.token({ ns: world.database }));
    const error = await client.expectFatal();
    expect([error.code, error.message]).toEqual(['42501', `permission denied for database "${world.alice}"`]);
  });

  test('the console asks for its own password, and a token is none', async () => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    await expect(
      client.login({ user: 'root', database: 'admin', password: world.token({ sub: 'root' }) }),
    ).rejects.toThrow(/password authentication failed/);
    const other = await ScriptedClient.connect({ port: pooler.port });
    await other.login({ user: 'root', database: 'admin', password: adminPassword });
    other.destroy();
  });
});

describe('startup parameters that would change who the session is', () => {
  const refusedParameter = (name: string): Outcome =>
    refusedWith('42501', `permission denied to set parameter "${name}"`);

  test.each([
    ['role', { role: 'postgres' }, 'role'],
    ['Role, in other letters', { Role: 'postgres' }, 'Role'],
    ['session_authorization', { session_authorization: 'postgres' }, 'session_authorization'],
    ['is_superuser', { is_superuser: 'on' }, 'is_superuser'],
    ['the claims', { 'request.jwt.claims': '{"sub":"victim"}' }, 'request.jwt.claims'],
    ['one claim', { 'request.jwt.claim.sub': 'victim' }, 'request.jwt.claim.sub'],
    ['our signature', { 'turnstile.mac': '00' }, 'turnstile.mac'],
    ['role in options', { options: '-c role=postgres' }, 'role'],
    ['role in options, written long', { options: '--role=postgres' }, 'role'],
    ['role in options, without the space', { options: '-crole=postgres' }, 'role'],
    ['role in options, with an escaped space', { options: '-c role=a\\ b' }, 'role'],
    ['claims in options', { options: '-c request.jwt.claims=x' }, 'request.jwt.claims'],
  ])('%s', async (_name, parameters, named) => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({
      user: world.alice,
      database: world.database,
      ...(parameters as Record<string, string>),
    });
    const first = await client.readFrame();
    expect(first.type).toBe('E');
    const { code, message } = refusedParameter(named) as { code: string; message: string };
    expect(first.body.toString('latin1')).toContain(`C${code}\0`);
    expect(first.body.toString('latin1').toLowerCase()).toContain(message.toLowerCase());
    await client.readToEnd();
  });

  test.each([
    ['with a quote', 'x" TO DEFAULT; RESET ROLE; --'],
    ['with a semicolon', 'a;b'],
    ['with a space', 'a b'],
    ['of 255 letters and a quote', `${'a'.repeat(255)}"`],
  ])('a parameter name %s is never put into SQL', async (_name, name) => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ user: world.alice, database: world.database, [name]: 'x' });
    const first = await client.readFrame();
    expect(first.type).toBe('E');
    expect(first.body.toString('latin1')).toMatch(/C(42704|42501|08P01)\0/);
    await client.readToEnd();
  });

  test.each(['true', '1', 'on', 'database'])('replication=%s is no way in', async (value) => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ user: world.alice, database: world.database, replication: value });
    const first = await client.readFrame();
    expect([first.type, first.body.toString('latin1')]).toEqual([
      'E',
      expect.stringMatching(/C(28000|0A000)\0/),
    ]);
    await client.readToEnd();
  });
});

describe('messages where others are expected', () => {
  const begin = async (): Promise<ScriptedClient> => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ user: world.alice, database: world.database });
    await client.expect('R');
    return client;
  };
  const violation = async (client: ScriptedClient): Promise<void> => {
    const error = await client.expectFatal();
    expect([error.severity, error.code]).toEqual(['FATAL', '08P01']);
  };

  test('a query instead of a password', async () => {
    const client = await begin();
    client.sendQuery('SELECT 1');
    await violation(client);
  });

  test('a password message longer than anything we read is not waited for', async () => {
    for (const declared of [0x7fffffff, 64 * 1024 + 5, 3, -1, 0]) {
      const client = await begin();
      client.sendFrame('p', 'x', declared);
      await violation(client);
    }
  });

  test('NUL in the password, and bytes behind its end', async () => {
    for (const body of ['a\0b\0', `${world.token()}\0x`, `${world.token()}\0\0\0`]) {
      const client = await begin();
      client.sendFrame('p', body);
      await violation(client);
    }
  });

  test('a SASL answer where a password is asked for', async () => {
    const client = await begin();
    client.sendFrame('p', 'SCRAM-SHA-256\0\0\0\0\0');
    const error = await client.expectFatal();
    expect(['08P01', '28P01']).toContain(error.code);
  });

  test('a good token, byte by byte, is as good as in one piece', async () => {
    const client = await begin();
    const token = Buffer.from(`${world.token()}\0`);
    const header = Buffer.alloc(5);
    header.write('p');
    header.writeInt32BE(token.length + 4, 1);
    await client.sendInPieces(Buffer.concat([header, token]), 1);
    expect((await client.expect('R')).readInt32BE(0)).toBe(0);
    client.destroy();
  });

  test('a startup packet past 10,000 bytes, and an older protocol', async () => {
    const big = await ScriptedClient.connect({ port: pooler.port });
    big.sendStartup({ user: world.alice, database: world.database, application_name: 'x'.repeat(10_000) });
    expect((await big.readToEnd()).toString('latin1')).toMatch(/08P01/);
    const old = await ScriptedClient.connect({ port: pooler.port });
    old.sendStartup({ user: world.alice }, 0x00020000);
    expect((await old.expectFatal()).code).toBe('0A000');
  });

  test('a cancel request with a guessed key stops nobody', async () => {
    const client = await ScriptedClient.login({
      port: pooler.port,
      user: world.alice,
      database: world.database,
      password: world.token(),
    });
    client.sendQuery('SELECT pg_sleep(0.3)');
    for (let guess = 0; guess < 20; guess++) {
      const attacker = await ScriptedClient.connect({ port: pooler.port });
      attacker.sendCancelRequest(guess, Buffer.from([0, 0, 0, guess]));
      await attacker.readToEnd();
    }
    expect((await client.readReply()).error).toBeNull();
    await client.terminate();
  });
});

describe('a fault of ours in the verifier', () => {
  test('is a refusal like any other, and the process lives on', async () => {
    const wanted = encodeErrorResponse(
      new PgError({
        code: '28P01',
        severity: 'FATAL',
        message: `password authentication failed for user "${world.alice}"`,
      }),
      { severity: 'FATAL' },
    );
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ user: world.alice, database: world.database });
    await client.expect('R');
    // A surrogate pair cut in half is what text functions throw on.
    client.sendPassword(`${world.token()}\ud800`);
    expect((await client.readToEnd()).toString('latin1')).toBe(wanted.toString('latin1'));
    await expectOutcome(
      pooler,
      world,
      { user: world.alice, database: world.database, secret: world.token() },
      entersAs(world.alice),
    );
  });
});
