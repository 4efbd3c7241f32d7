import { afterEach, describe, expect, test, vi } from 'vitest';
import type { Identity } from '../../src/auth/identity.ts';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { createLogger } from '../../src/base/log.ts';
import { Secret } from '../../src/base/secret.ts';
import type { Config } from '../../src/config/config.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import type { Pool } from '../../src/server/pool.ts';
import { PoolDirectory } from '../../src/server/pool-directory.ts';
import { ParameterSets } from '../../src/session/parameters.ts';
import { testConfig } from '../support/worker.ts';

let nowMs = 0;
let directory: PoolDirectory;

function open(turnstile = '', change: Partial<Config> = {}): void {
  nowMs = 1_000;
  const config = testConfig({ serverPort: 1, turnstile });
  directory = new PoolDirectory({
    config: { ...config, jwt: { ...config.jwt, serverUser: 'service' }, ...change },
    scramKeys: new ScramKeys(),
    parameterSets: new ParameterSets(),
    now: () => nowMs,
    log: createLogger({ level: 'silent', format: 'json', destination: { write: () => {} } }),
  });
}

afterEach(() => directory.destroy());

const byToken = (role: string): Identity => ({
  role,
  method: 'jwt',
  user: null,
  readOnly: false,
  token: {} as NonNullable<Identity['token']>,
});
const take = (role: string, database = 'app'): Pool => {
  const pool = directory.acquire(byToken(role), database);
  if (pool instanceof PgError) throw pool;
  return pool;
};
const refusal = (role: string, database = 'app'): string | null => {
  const pool = directory.acquire(byToken(role), database);
  return pool instanceof PgError ? pool.code : null;
};

describe('PoolDirectory', () => {
  test('gives one pool for one role of one database, and none for a database that does not exist', () => {
    open();
    expect(take('alice')).toBe(take('alice'));
    expect(take('alice')).not.toBe(take('alice', 'other'));
    expect(refusal('alice', 'nowhere')).toBe('3D000');
    expect([...directory.pools()].length).toBe(2);
  });

  test('provisioned pools log in as the service user and take the role, and keep nothing warm', () => {
    open();
    const { target, settings, provisioned } = take('alice').options;
    expect([target.user, target.setRole, settings.sizeMin, provisioned]).toEqual([
      'service',
      'alice',
      0,
      true,
    ]);
  });

  test('a pool that made room is looked after until its last connection is clean or closed', () => {
    open('max_roles = 1');
    const first = take('first');
    let serverCount = 1;
    Object.defineProperty(first, 'serverCount', { get: () => serverCount });
    take('second');
    expect(first.closed).toBe(true);
    const ticked = vi.spyOn(first, 'tick');
    directory.tick(nowMs);
    expect(ticked).toHaveBeenCalledTimes(1);
    serverCount = 0;
    directory.tick(nowMs);
    directory.tick(nowMs);
    expect(ticked).toHaveBeenCalledTimes(2);
  });

  test('max_roles: the role that was unused for longest makes room, one in use never does', () => {
    open('max_roles = 2');
    const first = take('first');
    nowMs += 10;
    const second = take('second');
    second.sessions.add({});
    nowMs += 10;
    take('third');
    expect(first.closed).toBe(true);
    for (const pool of directory.pools()) pool.sessions.add({});
    expect(refusal('fourth')).toBe('53300');
    expect(second.closed).toBe(false);
  });

  test('a refused role is remembered for five seconds, a server that was away is not', () => {
    open();
    const pool = take('ghost');
    directory.reject(pool, new PgError({ code: '28000', message: 'no', severity: 'FATAL' }));
    expect(pool.closed).toBe(true);
    expect(refusal('ghost')).toBe('28000');
    expect([...directory.pools()].length).toBe(0);
    nowMs += 4_999;
    expect(refusal('ghost')).toBe('28000');
    nowMs += 1;
    expect(refusal('ghost')).toBeNull();
    directory.reject(take('away'), new PgError({ code: '08006', message: 'no', severity: 'FATAL' }));
    expect(refusal('away')).toBeNull();
  });

  test('a pool that others are logged in to survives one refused login', () => {
    open();
    const pool = take('alice');
    pool.sessions.add({});
    directory.reject(pool, new PgError({ code: '28000', message: 'no', severity: 'FATAL' }));
    expect([pool.closed, take('alice') === pool]).toEqual([false, true]);
  });

  test('a provisioned pool that nobody uses is forgotten at the next tick', () => {
    open();
    const pool = take('alice');
    pool.sessions.add({});
    directory.tick(nowMs);
    expect([...directory.pools()]).toEqual([pool]);
    pool.sessions.clear();
    directory.tick(nowMs);
    expect([...directory.pools()]).toEqual([]);
  });

  describe('backend identities', () => {
    const secretKey = 'backend_password_key = "0123456789abcdef0123456789abcdef"';
    const database = { audiences: [], backendCluster: null };

    test('the row of the role beats that of the database, and that beats [turnstile]', () => {
      open('backend_identity = "login_map"', {
        turnstileDatabases: [{ name: 'app', ...database, backendIdentity: 'login_password' }],
        turnstileUsers: [
          { name: 'alice', backendIdentity: 'set_role', disabled: false },
          { name: 'bob', backendIdentity: null, disabled: false },
        ],
      });
      const how = (role: string, name: string): unknown => take(role, name).options.target.backendIdentity;
      expect([how('alice', 'app'), how('bob', 'app'), how('carol', 'app'), how('carol', 'other')]).toEqual([
        'set_role',
        'login_password',
        'login_password',
        'login_map',
      ]);
    });

    test('login_map and login_password log in as the role, and nothing guards or takes a role', () => {
      open(`backend_identity = "login_password"\n${secretKey}`);
      const { target } = take('alice').options;
      expect([target.user, target.setRole, take('alice').guardedRole]).toEqual(['alice', null, null]);
      expect(target.password?.reveal()).toMatch(/^[\w-]{43}$/);
      expect(target.password?.reveal()).not.toBe(take('bob').options.target.password?.reveal());
      open('backend_identity = "login_map"');
      const byMap = take('alice').options.target;
      expect([byMap.user, byMap.password, byMap.setRole]).toEqual(['alice', null, null]);
    });

    test('a user or password in the row of the database is for set_role alone', () => {
      const row = { user: 'owner', password: new Secret('of the owner') };
      for (const backend of ['login_map', 'login_password', 'set_role']) {
        open(`backend_identity = "${backend}"\n${secretKey}`);
        const { databases } = testConfig({ serverPort: 1 });
        open(`backend_identity = "${backend}"\n${secretKey}`, {
          databases: databases.map((one) => ({ ...one, ...row })),
        });
        const { user, password } = take('alice').options.target;
        const isOwner = backend === 'set_role';
        expect([user, password === row.password]).toEqual([isOwner ? 'owner' : 'alice', isOwner]);
      }
    });

    test('an anonymous login is a role’s as a token’s is, in the same pool', () => {
      open();
      const anonymous: Identity = { ...byToken('anon'), method: 'anonymous', token: null };
      expect(directory.acquire(anonymous, 'app')).toBe(take('anon'));
      expect(take('anon').options.provisioned).toBe(true);
    });

    test('read-only logins of a role never share connections with its others', () => {
      open();
      const readOnly = directory.acquire({ ...byToken('alice'), readOnly: true }, 'app') as Pool;
      expect(readOnly).not.toBe(take('alice'));
      expect(readOnly.options.target.startupParameters).toEqual({ default_transaction_read_only: 'on' });
      expect(take('alice').options.target.startupParameters).toEqual({});
    });
  });

  test('a role that is forgotten loses its pools on that host, and its logins are refused for a while', () => {
    open();
    const pool = take('alice');
    const other = take('bob');
    directory.forgetRole(
      'alice',
      pool.hostKey,
      new PgError({ code: '28000', message: 'no', severity: 'FATAL' }),
    );
    expect([pool.closed, other.closed, refusal('alice')]).toEqual([true, false, '28000']);
    nowMs += 5_000;
    expect(refusal('alice')).toBeNull();
  });
});
