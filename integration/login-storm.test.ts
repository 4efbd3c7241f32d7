/** Storms of logins: an issuer that hangs, bad tokens from one address and from many; good logins in the midst of it. */
import { once } from 'node:events';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ed25519, otherRsa, rsa, signParts, toJwk } from '../test/auth/support.ts';
import { createRole } from '../test/support/postgres.ts';
import { ScriptedClient, toError } from '../test/support/scripted-client.ts';
import {
  claimsFor,
  cleanUp,
  expectNoSecrets,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  publicKeyFile,
  secretToken,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

const GOOD_ISSUER = 'https://good.example.com';
const HANGING_ISSUER = 'https://hanging.example.com';

let world: World;
let carol: string;
let password: string;
let dropCarol: () => Promise<void>;

beforeAll(async () => {
  world = await makeWorld();
  password = newPassword();
  const role = await createRole('carol', { password });
  carol = role.name;
  dropCarol = () => role.drop();
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
  await dropCarol();
});

const start = (turnstile: Table = {}, general: Table = {}): Promise<LoginPooler> =>
  startLoginPooler({
    databases: [world.row()],
    users: [{ name: carol, password, database: world.database }],
    general: world.jwt({ jwt_audience: 'db', ...general }),
    turnstile: {
      issuers: [{ issuer: GOOD_ISSUER, public_key_file: publicKeyFile(rsa) }],
      max_clients: 5_000,
      ...turnstile,
    },
  });

interface Outcome {
  /** `in`, or the SQLSTATE. */
  readonly code: string;
  readonly message: string;
  readonly ms: number;
}

/** One login from its connection to its end. */
async function attempt(
  pooler: LoginPooler,
  user: string,
  secret: string,
  localAddress = '127.0.0.1',
): Promise<Outcome> {
  const startedAtMs = performance.now();
  const client = await ScriptedClient.connect({ port: pooler.port, localAddress });
  try {
    client.sendStartup({ user, database: world.database });
    let frame = await client.readFrame(30_000);
    if (frame.type === 'R') {
      client.sendPassword(secret);
      frame = await client.readFrame(30_000);
    }
    const ms = performance.now() - startedAtMs;
    if (frame.type === 'R') return { code: 'in', message: '', ms };
    return { ...toError(frame.body), ms };
  } finally {
    client.destroy();
  }
}

/** Runs `count` attempts, `width` at a time. */
async function storm(
  count: number,
  width: number,
  one: (index: number) => Promise<Outcome>,
): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) outcomes.push(await one(next++));
  };
  await Promise.all(Array.from({ length: width }, worker));
  return outcomes;
}

function tally(outcomes: readonly Outcome[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { code } of outcomes) counts[code] = (counts[code] ?? 0) + 1;
  return counts;
}

const good = (sub: string, more: Table = {}): string =>
  mint(rsa, sub, { iss: GOOD_ISSUER, aud: 'db', ...more });
const bad = (sub: string, index: number): string =>
  mint(otherRsa, sub, { iss: GOOD_ISSUER, aud: 'db', jti: String(index) });

describe('an issuer that hangs', () => {
  let issuer: Server;
  let requests = 0;
  let held: ServerResponse[] = [];
  let answers = false;

  beforeAll(async () => {
    issuer = createServer((_request, response) => {
      requests++;
      if (answers)
        response.end(JSON.stringify({ keys: [toJwk(ed25519.publicKey, { kid: 'h1', alg: 'EdDSA' })] }));
      else held.push(response);
    });
    issuer.listen(0, '127.0.0.1');
    await once(issuer, 'listening');
  });
  afterAll(() => {
    for (const response of held) response.destroy();
    held = [];
    issuer.closeAllConnections();
    issuer.close();
  });

  test('a thousand of its logins end in bounded time, by few requests, and nobody else waits', async () => {
    const { port } = issuer.address() as AddressInfo;
    const pooler = await start({
      max_logins_per_address: 3_000,
      issuers: [
        { issuer: GOOD_ISSUER, public_key_file: publicKeyFile(rsa) },
        { issuer: HANGING_ISSUER, jwks_url: `http://127.0.0.1:${port}/jwks` },
      ],
    });
    const hanging = (index: number): string =>
      secretToken(
        signParts(
          { alg: 'EdDSA', kid: 'h1' },
          claimsFor(world.bob, { iss: HANGING_ISSUER, aud: 'db', jti: String(index) }),
          ed25519.privateKey,
        ),
      );
    // Each role's pool is up, so that what is measured below is the login alone.
    expect(await attempt(pooler, world.alice, good(world.alice))).toMatchObject({ code: 'in' });
    expect(await attempt(pooler, carol, password)).toMatchObject({ code: 'in' });

    const thousand = storm(1_000, 1_000, (index) => attempt(pooler, world.bob, hanging(index)));
    await until('the storm', () => pooler.worker.view.loginCount >= 500);
    const others: Outcome[] = [];
    for (let round = 0; round < 20; round++) {
      others.push(await attempt(pooler, world.alice, good(world.alice, { jti: `new-${round}` })));
      others.push(await attempt(pooler, carol, password));
    }
    expect(tally(others)).toEqual({ in: 40 });
    expect(Math.max(...others.map(({ ms }) => ms))).toBeLessThan(2_500);

    const outcomes = await thousand;
    expect(tally(outcomes)).toEqual({ '57P03': 1_000 });
    expect(Math.max(...outcomes.map(({ ms }) => ms))).toBeLessThan(12_000);
    expect(requests).toBeLessThanOrEqual(4);

    answers = true;
    for (const response of held.splice(0)) response.destroy();
    await until(
      'the keys',
      async () => (await attempt(pooler, world.bob, hanging(9_999))).code === 'in',
      20_000,
    );
    pooler.stop();
  });
});

describe('bad tokens', () => {
  test('ten thousand from one address cost few verifications; tokens that are known go on entering', async () => {
    const limit = 100;
    const width = 32;
    const pooler = await start({ failed_logins_per_address: limit }, { log_level: 'error' });
    const known = good(world.alice);
    expect(await attempt(pooler, world.alice, known)).toMatchObject({ code: 'in' });
    // A few tokens stand for all: they are all as unknown to the pooler as ten thousand different ones.
    const tokens = Array.from({ length: 64 }, (_, index) => bad(world.alice, index));
    const flood = (index: number): Promise<Outcome> =>
      attempt(pooler, world.alice, tokens[index % tokens.length] as string);
    const startedAtMs = performance.now();
    const outcomes = await storm(2_000, width, flood);
    const heapBefore = collectedHeap();
    const entered: Outcome[] = [];
    const passwords: Outcome[] = [];
    outcomes.push(
      ...(await storm(8_000, width, async (index) => {
        if (index % 200 === 0) entered.push(await attempt(pooler, world.alice, known));
        if (index % 200 === 100) passwords.push(await attempt(pooler, carol, password));
        return flood(index);
      })),
    );
    const grownBytes = collectedHeap() - heapBefore;
    const minutes = (performance.now() - startedAtMs) / 60_000;

    const counts = tally(outcomes);
    expect(Object.keys(counts).sort()).toEqual(['28P01', '53300']);
    // What was in the air when the budget ran out, and what came back of it since.
    expect(counts['28P01']).toBeLessThanOrEqual(limit + width + Math.ceil(limit * minutes));
    expect(new Set(outcomes.filter(({ code }) => code === '53300').map(({ message }) => message))).toEqual(
      new Set(['too many failed logins from this address']),
    );
    expect(tally(entered)).toEqual({ in: 40 });
    expect(grownBytes).toBeLessThan(16 * 1024 * 1024);
    // Another address has a budget of its own, for new tokens and for passwords.
    expect(await attempt(pooler, world.alice, good(world.alice, { jti: 'x' }), '127.0.0.9')).toMatchObject({
      code: 'in',
    });
    expect(await attempt(pooler, carol, password, '127.0.0.9')).toMatchObject({ code: 'in' });
    // A password is not remembered, so that from this address it can only come in when the budget is not spent.
    expect(tally(passwords)['53300']).toBeGreaterThan(20);
    await until('the end of all logins', () => pooler.worker.view.loginCount === 0);
    pooler.stop();
  });

  test('from two hundred addresses are checked at the rate that is set, and passwords are none of it', async () => {
    const rate = 20;
    const pooler = await start({ token_checks_per_second: rate }, { log_level: 'error' });
    const known = good(world.alice);
    expect(await attempt(pooler, world.alice, known)).toMatchObject({ code: 'in' });
    expect(await attempt(pooler, carol, password)).toMatchObject({ code: 'in' });
    const tokens = Array.from({ length: 64 }, (_, index) => bad(world.alice, index));
    const startedAtMs = performance.now();
    const others: Outcome[] = [];
    const outcomes = await storm(1_000, 32, async (index) => {
      if (index % 50 === 0) {
        others.push(await attempt(pooler, carol, password), await attempt(pooler, world.alice, known));
      }
      return attempt(pooler, world.alice, tokens[index % 64] as string, `127.0.1.${1 + (index % 200)}`);
    });
    const seconds = (performance.now() - startedAtMs) / 1_000;
    const counts = tally(outcomes);
    expect(Object.keys(counts).sort()).toEqual(['28P01', '53300']);
    expect(counts['28P01']).toBeLessThanOrEqual(rate * (Math.ceil(seconds) + 1));
    expect(tally(others)).toEqual({ in: 40 });
    pooler.stop();
  });
});

/** Bytes of the heap that are in use once all garbage is gone. */
function collectedHeap(): number {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  collect();
  collect();
  return process.memoryUsage().heapUsed;
}
