/** What the role watch does without an answer, which no PostgreSQL can be made to withhold: nothing to anybody. */
import { beforeEach, describe, expect, test } from 'vitest';
import type { RoleAttributes } from '../../src/auth/role-policy.ts';
import { createLogger } from '../../src/base/log.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import type { Pool } from '../../src/server/pool.ts';
import { readRoleRow } from '../../src/server/role-facts.ts';
import { type RoleUser, RoleWatch } from '../../src/server/role-watch.ts';
import { ParameterSet } from '../../src/session/parameters.ts';

const GOOD: RoleAttributes & { name: string } = {
  name: 'alice',
  canLogin: true,
  superuser: false,
  bypassRls: false,
  replication: false,
  createRole: false,
  validUntilMs: null,
  inLoginGroup: null,
};
const INTERVAL_MS = 5_000;
const WALL_MS = 1_800_000_000_000;

class StubPool {
  readonly hostKey: string = 'db:5432';
  readonly options = { provisioned: true, role: 'alice' };
  readonly sessions = new Set<object>();
  roleAttributes: typeof GOOD | null = GOOD;
  roleCheckedMs = 0;
  closed = false;
  idleCount = 0;
  waitingCount = 0;
  checkouts = 0;
  cancelled = 0;
  answer: PgError | null = null;

  checkout(): PgError | null {
    this.checkouts++;
    return this.answer;
  }
  destroyed = 0;
  destroy(): void {
    this.destroyed++;
  }
  cancelWait(): boolean {
    this.cancelled++;
    return true;
  }
}

let pool: StubPool;
let spare: StubPool;
let lines: string[];
let refused: string[];
let watch: RoleWatch;
const user = (subjectRole: string | null = null): RoleUser => ({
  pool: pool as unknown as Pool,
  identity: { role: 'alice', token: { subjectRole } },
});
const users = (): RoleUser[] => [user()];

beforeEach(() => {
  pool = new StubPool();
  spare = new StubPool();
  lines = [];
  refused = [];
  watch = new RoleWatch({
    policy: {
      roleCheckIntervalMs: INTERVAL_MS,
      allowedPrivilegedRoles: [],
      nologinRoles: 'reject',
      loginGroup: null,
    },
    emptyParameters: new ParameterSet(new Map()),
    log: createLogger({
      level: 'debug',
      format: 'json',
      destination: { write: (line: string) => void lines.push(line) },
    }),
    makeSpare: () => spare as unknown as Pool,
    onRefused: (role) => void refused.push(role),
  });
});

describe('a round', () => {
  test('that gets no connection is given up after a second, and said to have failed after a minute', () => {
    watch.tick(0, users);
    expect([pool.checkouts, pool.cancelled]).toEqual([1, 0]);
    watch.tick(1_001, users);
    expect(pool.cancelled).toBe(1);
    for (let nowMs = 1_100; nowMs < 150_000; nowMs += 100) watch.tick(nowMs, users);
    expect(pool.checkouts).toBe(pool.cancelled);
    // Then it asks on a connection of its own, and gives that back each time.
    expect(pool.checkouts).toBe(3);
    expect(spare.checkouts).toBeGreaterThan(20);
    expect([spare.cancelled, spare.destroyed]).toEqual([spare.checkouts, spare.checkouts]);
    expect(refused).toEqual([]);
    expect(lines.filter((line) => line.includes('could not be looked up'))).toHaveLength(2);
  });

  test('is skipped while clients wait in every pool', () => {
    pool.waitingCount = 1;
    for (let nowMs = 0; nowMs < 15_000; nowMs += 100) watch.tick(nowMs, users);
    expect([pool.checkouts, spare.checkouts, lines.length]).toEqual([0, 0, 0]);
    for (let nowMs = 15_000; nowMs < 70_000; nowMs += 100) watch.tick(nowMs, users);
    expect(pool.checkouts).toBe(0);
    expect(spare.checkouts).toBeGreaterThan(5);
    expect(lines[0]).toContain('busy');
  });

  test('that fails drains nobody, and says so once a minute', () => {
    const down = new PgError({ code: '57P03', message: 'the database system is shutting down' });
    pool.answer = down;
    spare.answer = down;
    for (let nowMs = 0; nowMs < 100_000; nowMs += 100) watch.tick(nowMs, users);
    expect(pool.checkouts).toBe(3);
    expect(spare.checkouts).toBeGreaterThan(10);
    expect(refused).toEqual([]);
    expect(lines).toHaveLength(2);
    expect(lines[0]).toContain('57P03');
  });

  test('is not begun where nobody is logged in', () => {
    watch.tick(0, () => []);
    expect(pool.checkouts).toBe(0);
  });

  test('asks nothing of a pool that is closed', () => {
    pool.closed = true;
    watch.tick(0, users);
    expect(pool.checkouts).toBe(0);
  });
});

describe('a login', () => {
  const admit = (who: RoleUser, nowMs: number): (PgError | null)[] => {
    const answers: (PgError | null)[] = [];
    watch.admit(who, nowMs, WALL_MS, (error) => answers.push(error));
    return answers;
  };

  test('costs no question when the pool has come up within the interval', () => {
    expect(admit(user(), INTERVAL_MS)).toEqual([null]);
    expect(pool.checkouts).toBe(0);
  });

  test('asks again later, and goes on as before when there is no answer', () => {
    const answers = admit(user(), INTERVAL_MS * 3);
    expect([answers.length, pool.checkouts, pool.sessions.size]).toEqual([0, 1, 1]);
    watch.tick(INTERVAL_MS * 3 + 1_001, users);
    expect([answers, pool.sessions.size]).toEqual([[null], 0]);
  });

  test.each([
    ['role_nologin', { canLogin: false }],
    ['role_privileged', { superuser: true }],
    ['role_expired', { validUntilMs: WALL_MS - 1 }],
  ])('is refused by what the pool was told of its role (%s)', (reason, attributes) => {
    pool.roleAttributes = { ...GOOD, ...attributes };
    expect(admit(user(), 100)).toMatchObject([{ code: '28000', reason, severity: 'FATAL' }]);
  });

  test('for somebody of whom nothing can be learnt is refused as for now', () => {
    const answers = admit(user('human'), 100);
    watch.tick(1_200, users);
    expect(answers).toMatchObject([{ code: '57P03', severity: 'FATAL', reason: 'roles_unknown' }]);
  });

  test('that runs as the service user is not judged by that one', () => {
    pool.roleAttributes = { ...GOOD, name: 'service', superuser: true };
    expect(admit(user(), 100)).toEqual([null]);
  });
});

test('a row of another form is no fact', () => {
  const row = ['alice', 't', 'f', 'f', 'f', 'f', null, 'f'];
  expect(readRoleRow(row, false)).toEqual(['alice', { ...GOOD, name: undefined }]);
  expect(readRoleRow(row, true)?.[1].inLoginGroup).toBe(false);
  expect(readRoleRow([...row.slice(0, 6), '1700000000', 't'], true)?.[1]).toMatchObject({
    validUntilMs: 1_700_000_000_000,
    inLoginGroup: true,
  });
  for (const bad of [[], row.slice(1), [...row, 't'], ['alice', null, ...row.slice(2)]]) {
    expect(readRoleRow(bad, false)).toBeNull();
  }
  expect(readRoleRow([...row.slice(0, 6), '2e+09', 'f'], false)).toBeNull();
});
