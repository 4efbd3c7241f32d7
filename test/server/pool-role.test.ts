/** What a connection has to become again before somebody else has it, by what its login is and what ran on it. */
import { expect, onTestFinished, test } from 'vitest';
import type { Identity } from '../../src/auth/identity.ts';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { createLogger } from '../../src/base/log.ts';
import type { Pool } from '../../src/server/pool.ts';
import { PoolDirectory } from '../../src/server/pool-directory.ts';
import type { ServerConnection } from '../../src/server/server-connection.ts';
import type { RoleAttributes } from '../../src/server/server-identity.ts';
import { ParameterSets } from '../../src/session/parameters.ts';
import { makeUser } from '../auth/support.ts';
import { testConfig } from '../support/worker.ts';

function poolOf(backend: string, isStatic: boolean): Pool {
  const config = testConfig({ serverPort: 1, turnstile: `backend_identity = "${backend}"` });
  const directory = new PoolDirectory({
    config,
    scramKeys: new ScramKeys(),
    parameterSets: new ParameterSets(),
    now: () => 0,
    log: createLogger({ level: 'silent', format: 'json', destination: { write: () => {} } }),
  });
  onTestFinished(() => directory.destroy());
  const identity: Identity = {
    role: 'alice',
    method: isStatic ? 'scram' : 'anonymous',
    user: isStatic ? makeUser('alice') : null,
    readOnly: false,
    token: null,
  };
  return directory.acquire(identity, 'app') as Pool;
}

const may = { maySetRole: true } as RoleAttributes;
const mayNot = { maySetRole: false } as RoleAttributes;
const seen = { roleInDoubt: false } as ServerConnection;
const unseen = { roleInDoubt: true } as ServerConnection;

const CASES: [what: string, pool: () => Pool, RoleAttributes | null, ServerConnection, string | null][] = [
  ['set_role, always', () => poolOf('set_role', false), mayNot, seen, 'alice'],
  [
    'a login that can become nobody, after plain statements',
    () => poolOf('login_map', false),
    mayNot,
    seen,
    null,
  ],
  [
    'a login that can become nobody as far as was known, after code',
    () => poolOf('login_map', false),
    mayNot,
    unseen,
    'none',
  ],
  [
    'a login that may become others, since triggers show in no text',
    () => poolOf('login_map', false),
    may,
    seen,
    'none',
  ],
  ['a static user, after plain statements', () => poolOf('set_role', true), may, seen, null],
  ['a static user that may become others, after code', () => poolOf('set_role', true), may, unseen, 'none'],
  ['a static user that can become nobody, after code', () => poolOf('set_role', true), mayNot, unseen, null],
  [
    'a static user of whom nothing is known, after code',
    () => poolOf('set_role', true),
    null,
    unseen,
    'none',
  ],
];
test.each(CASES)('%s', (_what, make, attributes, server, expected) => {
  const pool = make();
  pool.roleAttributes = attributes;
  expect(pool.roleToAssert(server)).toBe(expected);
});
