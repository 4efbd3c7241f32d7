import { afterEach, describe, expect, test } from 'vitest';
import type { Identity } from '../../src/auth/identity.ts';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { createLogger } from '../../src/base/log.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import type { Pool } from '../../src/server/pool.ts';
import { PoolDirectory } from '../../src/server/pool-directory.ts';
import { ParameterSets } from '../../src/session/parameters.ts';
import { testConfig } from '../support/worker.ts';

let nowMs = 0;
let directory: PoolDirectory;

function open(turnstile = ''): void {
  nowMs = 1_000;
  const config = testConfig({ serverPort: 1, turnstile });
  directory = new PoolDirectory({
    config: { ...config, jwt: { ...config.jwt, serverUser: 'service' } },
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
});
