/** login_map and login_password end to end: what PostgreSQL is shown, what the client is told, and what a refusal costs. */
import type { ClientConfig } from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { BackendIdentity } from '../src/config/config.ts';
import { type BackendWorld, GROUP, IDENTITIES, makeBackendWorld, roleOf } from './support/backend-world.ts';
import {
  cleanUp,
  expectNoSecrets,
  type LoginPooler,
  startLoginPooler,
  until,
} from './support/login-support.ts';

const LOGINS = ['login_map', 'login_password'] as const;
let world: BackendWorld;
beforeAll(async () => {
  world = await makeBackendWorld();
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world?.postgres.stop();
});

const login = (role: string): ClientConfig => world.login(role);
const refusedBy = (role: string): object => ({
  severity: 'FATAL',
  code: '28000',
  message: `PostgreSQL does not let role "${role}" log in for this pooler`,
});

/** A role that is provisioned and is gone afterwards. */
async function withRole(
  identity: BackendIdentity,
  name: string,
  use: (role: string) => Promise<void>,
): Promise<void> {
  await world.provision(identity, [name]);
  try {
    await use(name);
  } finally {
    await until('nobody is logged in', async () => {
      const rows = await world.asSuperuser(`SELECT 1 FROM pg_stat_activity WHERE usename = '${name}'`);
      return rows.length === 0;
    });
    await world.asSuperuser(`DROP ROLE ${name}`);
  }
}

describe.each(LOGINS)('%s', (identity) => {
  const alice = roleOf('alice', identity);

  it('needs no service user at PostgreSQL, and a user in the row of the database changes nothing', async () => {
    const files = world.files(identity);
    const [row] = files.databases;
    const pooler = await startLoginPooler({
      ...files,
      databases: [{ ...row, user: 'service', password: 'wrong' }],
    });
    expect(await pooler.ask(login(alice))).toMatchObject({ session_user: alice, current_user: alice });
    pooler.stop();
  });

  it('a role that is not ready is refused in words that do not blame the token, and the log says why', async () => {
    const stranger = `stranger_${identity}`;
    await world.asSuperuser(`CREATE ROLE ${stranger} LOGIN`);
    const lenient = await startWithoutGroup(identity);
    expect(await lenient.refusal(login(stranger))).toEqual(refusedBy(stranger));
    const line = lenient.logged('cannot connect to PostgreSQL').at(-1)!;
    expect(line).toMatchObject({ reason: `${identity}_refused`, code: '28000' });
    expect(line['why']).toMatch(identity === 'login_map' ? /pg_hba\.conf/ : /authentication failed/);
    lenient.stop();
    await world.asSuperuser(`DROP ROLE ${stranger}`);
  });

  it('a refused role costs PostgreSQL one attempt in a while, however many try, and comes back by itself', async () => {
    await withRole(identity, `late_${identity}`, async (role) => {
      await world.asSuperuser(`ALTER ROLE ${role} NOLOGIN`);
      const pooler = await world.pooler(identity);
      const refusals = await Promise.all(Array.from({ length: 30 }, () => pooler.refusal(login(role))));
      for (const refusal of refusals) expect(refusal).toEqual(refusedBy(role));
      for (let again = 0; again < 20; again++) await pooler.refusal(login(role));
      expect(pooler.logged('cannot connect to PostgreSQL').length).toBeLessThanOrEqual(4);
      // Others are not touched by it.
      expect((await pooler.ask(login(alice)))['session_user']).toBe(alice);
      await world.asSuperuser(`ALTER ROLE ${role} LOGIN`);
      await until('the role', async () => {
        try {
          return (await pooler.ask(login(role)))['session_user'] === role;
        } catch {
          return false;
        }
      });
      expect(pooler.logged('cannot connect to PostgreSQL').length).toBeLessThanOrEqual(5);
      pooler.stop();
    });
  });

  it('VALID UNTIL in the past is refused, also where PostgreSQL overlooks it', async () => {
    await withRole(identity, `past_${identity}`, async (role) => {
      await world.asSuperuser(`ALTER ROLE ${role} VALID UNTIL '2020-01-01'`);
      const pooler = await world.pooler(identity);
      const refusal = await pooler.refusal(login(role));
      expect(refusal).toMatchObject({ severity: 'FATAL', code: '28000' });
      expect(refusal.message).toContain(`role "${role}"`);
      pooler.stop();
    });
  });

  it('a privileged role is refused though PostgreSQL lets it in', async () => {
    await withRole(identity, `boss_${identity}`, async (role) => {
      await world.asSuperuser(`ALTER ROLE ${role} BYPASSRLS`);
      const pooler = await world.pooler(identity);
      expect(await pooler.refusal(login(role))).toMatchObject({
        code: '28000',
        message: `role "${role}" is not permitted to log in through this pooler`,
      });
      pooler.stop();
    });
  });

  it('a cancel request goes the same way', async () => {
    const pooler = await world.pooler(identity);
    const client = await pooler.connect(login(alice));
    const refused = expect(client.query('SELECT pg_sleep(20)')).rejects.toMatchObject({ code: '57014' });
    const [session] = [...pooler.worker.view.sessions()];
    await until('the statement', () => session!.state === 'active');
    await session!.cancel();
    await refused;
    expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await client.end();
    pooler.stop();
  });

  it('two roles never share a connection, and no text of ours shows in the statistics', async () => {
    const pooler = await world.pooler(identity, { default_pool_size: 1 });
    const pids = new Set<unknown>();
    for (const role of [alice, roleOf('bob', identity), alice]) {
      const row = await pooler.ask(login(role), 'SELECT session_user::text AS who, pg_backend_pid() AS pid');
      expect(row['who']).toBe(role);
      pids.add(row['pid']);
    }
    expect(pids.size).toBe(2);
    pooler.stop();
  });
});

describe('login_password', () => {
  it('a role that gives itself another password shuts itself out of the pooler until it is provisioned again', async () => {
    await withRole('login_password', 'moody', async (role) => {
      const pooler = await world.pooler('login_password');
      const client = await pooler.connect(login(role));
      await client.query(`ALTER ROLE ${role} PASSWORD 'its own'`);
      await client.end();
      pooler.stop();
      const next = await world.pooler('login_password');
      expect(await next.refusal(login(role))).toEqual(refusedBy(role));
      next.stop();
    });
  });

  it('another cluster or generation is another password', async () => {
    const alice = roleOf('alice', 'login_password');
    for (const change of [{ backend_cluster: 'second' }, { backend_password_generation: 2 }]) {
      const pooler = await world.pooler('login_password', {}, change);
      expect(await pooler.refusal(login(alice))).toEqual(refusedBy(alice));
      pooler.stop();
    }
  });
});

describe('login_map', () => {
  it('a role that leaves the group is refused by the pooler before PostgreSQL has to', async () => {
    await withRole('login_map', 'leaver', async (role) => {
      await world.asSuperuser(`REVOKE ${GROUP} FROM ${role}`);
      const pooler = await world.pooler('login_map');
      expect(await pooler.refusal(login(role))).toEqual(refusedBy(role));
      pooler.stop();
    });
  });
});

it('one pooler serves all three, by the row of the role', async () => {
  const users = IDENTITIES.map((identity) => ({
    name: roleOf('alice', identity),
    backend_identity: identity,
  }));
  const files = world.files('set_role');
  const pooler = await startLoginPooler({ ...files, turnstile: { ...files.turnstile, users } });
  const sessionUsers = [];
  for (const { name } of users) sessionUsers.push((await pooler.ask(login(name)))['session_user']);
  expect(sessionUsers).toEqual(['service', roleOf('alice', 'login_map'), roleOf('alice', 'login_password')]);
  pooler.stop();
});

/** Without login_group, so that PostgreSQL and not the pooler says no. */
async function startWithoutGroup(identity: BackendIdentity): Promise<LoginPooler> {
  const files = world.files(identity);
  const { login_group: _, ...turnstile } = files.turnstile;
  return startLoginPooler({ ...files, turnstile });
}
