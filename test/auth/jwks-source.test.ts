/** The JWKS endpoint as it fails in life: a real HTTP server on 127.0.0.1, a clock that the test moves. */
import { generateKeyPairSync } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import { afterEach, describe, expect, test } from 'vitest';
import { decodeJwks, JWKS_KEYS_MAX } from '../../src/auth/jwks-document.ts';
import {
  fetchByDiscovery,
  fetchFromUrl,
  findJwksUrlFault,
  JWKS_BYTES_MAX,
} from '../../src/auth/jwks-fetch.ts';
import {
  JWKS_STALE_MAX_MS,
  JWKS_UNKNOWN_KID_INTERVAL_MS,
  type JwksEvent,
  JwksSource,
} from '../../src/auth/jwks-source.ts';
import { ed25519, makeToken, makeVerifier, NOW_MS, otherRsa, p256, rsa, toJwk } from './support.ts';

const TTL_MS = 300_000;
const header = (kid: string | null, alg = 'RS256') => ({ kid, alg });
const publicJwk = (kid: string, more: Record<string, unknown> = {}) => toJwk(rsa.publicKey, { kid, ...more });
const jwks = (...keys: unknown[]): string => JSON.stringify({ keys });

type Handler = (request: IncomingMessage, response: ServerResponse) => void;
const servers: Server[] = [];

async function listen(handler: Handler): Promise<string> {
  const server = createServer(handler);
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`;
}

afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
});

/** An endpoint whose answer the test changes, and a source on it. */
async function setUp(initial: string | Handler, timeoutMs = 5_000) {
  const state = { answer: initial, requests: 0, nowMs: 1_000_000, events: [] as JwksEvent[] };
  const url = await listen((request, response) => {
    state.requests++;
    if (typeof state.answer === 'string') response.end(state.answer);
    else state.answer(request, response);
  });
  const source = new JwksSource({
    fetch: fetchFromUrl(url, { allowHttp: 'loopback', ca: null }),
    cacheTtlMs: TTL_MS,
    random: () => 0.5,
    clock: () => state.nowMs,
    timeoutMs,
    onEvent: (event) => state.events.push(event),
  });
  const faults = (): string[] =>
    state.events.flatMap((event) => (event.type === 'fetch_failed' ? [event.message] : []));
  return { state, source, url, faults };
}

const down: Handler = (request) => request.socket.destroy();

describe('one request serves many logins', () => {
  test('50 logins on a cold cache are one request', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await Promise.all(Array.from({ length: 50 }, () => source.keyFor(header('k1'))));
    expect(state.requests).toBe(1);
    expect(source.status()).toMatchObject({ generation: 1, usableKeys: 1, lastFault: null });
  });

  test('a whole login with a token of the published key', async () => {
    const { source } = await setUp(jwks(publicJwk('k1', { alg: 'RS256', use: 'sig' })));
    const verifier = makeVerifier({}, source);
    await expect(verifier.verify(makeToken(), NOW_MS)).resolves.toMatchObject({ role: 'alice' });
    await expect(verifier.verify(makeToken({}, {}, otherRsa.privateKey), NOW_MS)).rejects.toMatchObject({
      reason: 'bad_signature',
    });
  });

  test('a set is refreshed behind the logins before it is old, without holding one up', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await source.keyFor(header('k1'));
    state.nowMs += TTL_MS * 0.8 - 1;
    await source.keyFor(header('k1'));
    expect(state.requests).toBe(1);
    state.nowMs += 1;
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => {
      state.answer = (_request, response) => {
        release = () => response.end(jwks(publicJwk('k2')));
        resolve();
      };
    });
    await source.keyFor(header('k1'));
    await held;
    await source.keyFor(header('k1'));
    expect(state.requests).toBe(2);
    release();
    await expect.poll(() => source.status().generation).toBe(2);
    await expect(source.keyFor(header('k2'))).resolves.toMatchObject({ keyId: 'k2' });
  });

  test('a removed key is refused once the set was read again', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1'), publicJwk('k2')));
    await source.keyFor(header('k1'));
    state.answer = jwks(publicJwk('k2'));
    state.nowMs += TTL_MS;
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ reason: 'unknown_kid' });
  });

  test('warm fetches ahead of the first login and never throws', async () => {
    const { state, source } = await setUp(down);
    await source.warm();
    expect(source.status()).toMatchObject({ generation: 0, ageMs: null });
    state.nowMs += 1_000;
    state.answer = jwks(publicJwk('k1'));
    await source.warm();
    await source.warm();
    expect(state.requests).toBe(2);
  });
});

describe('between logins', () => {
  test('poll fetches the first set, refreshes one that is due, and says whether anything changed', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await source.poll();
    await source.poll();
    expect(state.requests).toBe(1);
    state.nowMs += TTL_MS * 0.8;
    await source.poll();
    expect(state.requests).toBe(2);
    state.answer = jwks(publicJwk('k1'), toJwk(p256.publicKey, { kid: 'k2' }));
    state.nowMs += TTL_MS;
    await source.poll();
    expect(state.events.map((event) => event.type === 'loaded' && event.changed)).toEqual([
      true,
      false,
      true,
    ]);
  });

  test('poll obeys the back-off', async () => {
    const { state, source } = await setUp(down);
    for (let round = 0; round < 5; round++) await source.poll();
    expect(state.requests).toBe(1);
    state.nowMs += 1_000;
    await source.poll();
    expect(state.requests).toBe(2);
  });

  test('two poolers that start together refresh apart', async () => {
    const due = async (random: number): Promise<number> => {
      let nowMs = 0;
      let requests = 0;
      const text = jwks(publicJwk('k1'));
      const fetch = () => Promise.resolve({ text, maxAgeMs: null, n: requests++ });
      const source = new JwksSource({ fetch, cacheTtlMs: TTL_MS, clock: () => nowMs, random: () => random });
      for (; requests < 2; nowMs += 1_000) await source.poll();
      return nowMs;
    };
    const [first, second, third] = [await due(0), await due(0.5), await due(1)];
    expect([first, second]).toEqual([226_000, 241_000]);
    expect(third).toBeGreaterThan(255_000);
    expect(third).toBeLessThan(258_000);
  });

  test.each([
    ['max-age=100', 300, 80],
    ['public, max-age=100, immutable', 300, 80],
    ['max-age=1', 300, 48],
    ['no-store', 300, 240],
    ['max-age=86400', 300, 240],
    ['s-max-age=1', 300, 240],
    ['max-age=-5', 300, 240],
    ['max-age=1', 10, 8],
    [undefined, 1_000_000, 69_120],
  ])('cache-control %j with a time to live of %i s: refreshed after %i s', async (header, ttlSeconds, seconds) => {
    const state = { nowMs: 0, requests: 0 };
    const url = await listen((_request, response) => {
      state.requests++;
      if (header !== undefined) response.setHeader('cache-control', header);
      response.end(jwks(publicJwk('k1')));
    });
    const source = new JwksSource({
      fetch: fetchFromUrl(url, { allowHttp: 'loopback', ca: null }),
      cacheTtlMs: ttlSeconds * 1_000,
      random: () => 0.5,
      clock: () => state.nowMs,
    });
    await source.poll();
    state.nowMs = seconds * 1_000 - 1;
    await source.poll();
    expect(state.requests).toBe(1);
    state.nowMs += 1;
    await source.poll();
    expect(state.requests).toBe(2);
  });

  test('a key is held until a set without it was read; a twin of its kid is another key', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1'), publicJwk('k2')));
    expect(source.holds('k1', null)).toBe(true);
    const { fingerprint } = await source.keyFor(header('k1'));
    expect(source.holds('k1', fingerprint)).toBe(true);
    expect(source.holds('k1', 'another')).toBe(false);
    expect(source.holds('k3', null)).toBe(false);
    state.answer = down;
    state.nowMs += TTL_MS + JWKS_STALE_MAX_MS * 2;
    await source.poll();
    expect(source.holds('k1', fingerprint)).toBe(true);
    state.answer = jwks(publicJwk('k2'), toJwk(otherRsa.publicKey, { kid: 'k1' }));
    state.nowMs += 60_000;
    await source.poll();
    expect([source.holds('k1', fingerprint), source.holds('k1', null)]).toEqual([false, true]);
  });
});

describe('an endpoint that is away', () => {
  test('down at the start: logins are told that keys are unavailable, and come in later', async () => {
    const { state, source } = await setUp(down);
    const wanted = { reason: 'keys_unavailable', kind: 'keys_unavailable' };
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject(wanted);
    state.answer = jwks(publicJwk('k1'));
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject(wanted);
    state.nowMs += 1_000;
    await expect(source.keyFor(header('k1'))).resolves.toMatchObject({ keyId: 'k1' });
    expect(state.requests).toBe(2);
  });

  test('1,000 logins while it is down are one request per back-off step, from 1 s to 60 s', async () => {
    const { state, source } = await setUp(down);
    for (const [index, backoff] of [1, 2, 4, 8, 16, 32, 60, 60].entries()) {
      const logins = Array.from({ length: 125 }, () => source.keyFor(header('k1')));
      const results = await Promise.allSettled(logins);
      expect(results.every((result) => result.status === 'rejected')).toBe(true);
      expect(state.requests).toBe(index + 1);
      expect(state.events.at(-1)).toMatchObject({ retryInMs: backoff * 1_000, serving: 'nothing' });
      state.nowMs += backoff * 1_000 - 1;
      await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ kind: 'keys_unavailable' });
      expect(state.requests).toBe(index + 1);
      state.nowMs += 1;
    }
  });

  test('down later: a fresh set serves on, an old one for an hour with a warning, then no more', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await source.keyFor(header('k1'));
    state.answer = down;
    state.nowMs += TTL_MS * 0.9;
    await source.keyFor(header('k1'));
    await expect.poll(() => state.events.at(-1)).toMatchObject({ serving: 'fresh' });
    state.nowMs += TTL_MS * 0.1;
    await source.keyFor(header('k1'));
    await expect.poll(() => state.events.at(-1)).toMatchObject({ type: 'fetch_failed', serving: 'stale' });
    const { requests } = state;
    await Promise.all(Array.from({ length: 100 }, () => source.keyFor(header('k1'))));
    expect(state.requests).toBe(requests);
    state.nowMs += JWKS_STALE_MAX_MS - 1;
    await source.keyFor(header('k1'));
    state.nowMs += 1;
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ kind: 'keys_unavailable' });
    state.nowMs += 60_000;
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ kind: 'keys_unavailable' });
    expect(state.events.at(-1)).toMatchObject({ serving: 'nothing' });
  });

  test('once refreshing has failed nobody waits for an endpoint that hangs', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')), 200);
    await source.keyFor(header('k1'));
    state.answer = () => undefined;
    state.nowMs += TTL_MS;
    await source.keyFor(header('k1'));
    expect(state.events.at(-1)).toMatchObject({ type: 'fetch_failed', serving: 'stale' });
    state.nowMs += 60_000;
    const { requests, events } = state;
    const told = events.length;
    await Promise.all(Array.from({ length: 100 }, () => source.keyFor(header('k1'))));
    // All of them are in, and the request that they set off is still under way.
    expect(events).toHaveLength(told);
    await expect.poll(() => state.requests).toBe(requests + 1);
    await expect.poll(() => events.length).toBe(told + 1);
  });

  const failures: [string, string | Handler, RegExp][] = [
    ['an endpoint that hangs before it answers', () => undefined, /no whole answer within 200 ms/],
    [
      'an endpoint that hangs in the middle of its answer',
      (_request, response) => void response.write('{"keys":'),
      /no whole answer within 200 ms/,
    ],
    ['a closed connection', down, /cannot be reached/],
    ['status 500', (_request, response) => response.writeHead(500).end(jwks(publicJwk('k1'))), /status 500/],
    ['status 204', (_request, response) => response.writeHead(204).end(), /status 204/],
    ['a page of HTML', '<html>sign in</html>', /not JSON/],
    ['an empty answer', '', /not JSON/],
    ['an empty object', '{}', /no list of keys/],
    ['keys that are an object', '{"keys":{}}', /no list of keys/],
    ['a bare array', '[1]', /no list of keys/],
    ['no key at all', jwks(), /no usable key/],
    ['only unfit keys', jwks({ kty: 'oct', k: 'AA', kid: 'k1' }, 5, null), /no usable key/],
    [
      'bytes that are not UTF-8',
      (_request, response) => response.end(Buffer.from([0x22, 0xff, 0x22])),
      /not UTF-8/,
    ],
    [
      'a body of 10 MiB',
      (_request, response) => response.end(Buffer.alloc(10 * 1_024 * 1_024, 0x20)),
      /longer than 64 KiB/,
    ],
    [
      'an endless body',
      (_request, response) => {
        const write = (): void => {
          while (!response.destroyed && response.write(Buffer.alloc(16_384, 0x20)));
        };
        response.on('drain', write);
        write();
      },
      /longer than 64 KiB/,
    ],
    [
      'a body that breaks off',
      (_request, response) => void response.write(jwks(publicJwk('k1')), () => response.destroy()),
      /cannot be reached|broke off/,
    ],
    [
      'a compression that nobody knows',
      (_request, response) => response.writeHead(200, { 'content-encoding': 'zstd' }).end('x'),
      /unknown way/,
    ],
    [
      'a compression that is none',
      (_request, response) => response.writeHead(200, { 'content-encoding': 'gzip' }).end('x'.repeat(100)),
      /cannot be reached/,
    ],
    [
      'a small body that decompresses to 10 MiB',
      (_request, response) => {
        response.setHeader('content-encoding', 'gzip');
        response.end(gzipSync(Buffer.alloc(10 * 1_024 * 1_024, 0x20)));
      },
      /longer than 64 KiB/,
    ],
  ];
  test.each(failures)('%s keeps the old set and is reported', async (_what, answer, fault) => {
    const { state, source, faults } = await setUp(jwks(publicJwk('k1')), 200);
    await source.keyFor(header('k1'));
    state.answer = answer;
    state.nowMs += TTL_MS;
    await expect(source.keyFor(header('k1'))).resolves.toMatchObject({ keyId: 'k1' });
    expect(faults()).toHaveLength(1);
    expect(faults()[0]).toMatch(fault);
    expect(source.status()).toMatchObject({ generation: 1, lastFault: faults()[0] });
  });

  test.each([301, 302, 303, 307, 308])('a redirect of status %i is not followed', async (status) => {
    let followed = 0;
    const target = await listen((_request, response) => {
      followed++;
      response.end(jwks(publicJwk('k1')));
    });
    const { source, faults } = await setUp((_request, response) =>
      response.writeHead(status, { location: target }).end(),
    );
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ kind: 'keys_unavailable' });
    expect(faults()).toEqual([`the endpoint answered with status ${status}`]);
    expect(followed).toBe(0);
  });

  test('a body of exactly 64 KiB is read and one byte more is not', async () => {
    const body = jwks(publicJwk('k1'));
    const { state, source, faults } = await setUp(body.padEnd(JWKS_BYTES_MAX + 1));
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ kind: 'keys_unavailable' });
    expect(faults()).toEqual(['the answer is longer than 64 KiB']);
    state.answer = body.padEnd(JWKS_BYTES_MAX);
    state.nowMs += 1_000;
    await expect(source.keyFor(header('k1'))).resolves.toMatchObject({ keyId: 'k1' });
  });

  test('a set that is compressed all the same is read', async () => {
    const { source } = await setUp((_request, response) =>
      response.writeHead(200, { 'content-encoding': 'gzip' }).end(gzipSync(jwks(publicJwk('k1')))),
    );
    await expect(source.keyFor(header('k1'))).resolves.toMatchObject({ keyId: 'k1' });
  });

  test('an injected fetch that throws anything is a failed request; its words stay inside', async () => {
    const events: JwksEvent[] = [];
    const source = new JwksSource({
      cacheTtlMs: TTL_MS,
      fetch: () => Promise.reject(new TypeError('the peer said secret')),
      onEvent: (event) => events.push(event),
    });
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ kind: 'keys_unavailable' });
    expect(events).toMatchObject([{ message: 'the endpoint cannot be reached' }]);
  });

  test('a listener that throws does not spoil a good set', async () => {
    const url = await listen((_request, response) => response.end(jwks(publicJwk('k1'))));
    const onEvent = (): never => {
      throw new Error('listener');
    };
    const fetch = fetchFromUrl(url, { allowHttp: 'loopback', ca: null });
    const source = new JwksSource({ fetch, cacheTtlMs: TTL_MS, onEvent });
    await expect(source.keyFor(header('k1'))).resolves.toMatchObject({ keyId: 'k1' });
  });
});

describe('key ids', () => {
  test('rotation: the first token with a new kid is one request and then accepted', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await source.keyFor(header('k1'));
    state.answer = jwks(publicJwk('k1'), publicJwk('k2'));
    const logins = Array.from({ length: 20 }, () => source.keyFor(header('k2')));
    await Promise.all(logins);
    expect(state.requests).toBe(2);
  });

  test('a flood of 10,000 unknown kids is one request in 30 s, and known kids go on', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await source.keyFor(header('k1'));
    for (let batch = 0; batch < 10; batch++) {
      const flood = Array.from({ length: 1_000 }, (_, index) => source.keyFor(header(`x${batch}-${index}`)));
      const results = await Promise.allSettled([...flood, source.keyFor(header('k1'))]);
      expect(results.filter((result) => result.status === 'fulfilled')).toHaveLength(1);
      expect(results[0]).toMatchObject({ reason: { reason: 'unknown_kid', kind: 'invalid' } });
    }
    expect(state.requests).toBe(2);
    state.nowMs += JWKS_UNKNOWN_KID_INTERVAL_MS - 1;
    await expect(source.keyFor(header('x'))).rejects.toMatchObject({ reason: 'unknown_kid' });
    expect(state.requests).toBe(2);
    state.nowMs += 1;
    await expect(source.keyFor(header('x'))).rejects.toMatchObject({ reason: 'unknown_kid' });
    expect(state.requests).toBe(3);
  });

  test('unknown kids while the endpoint fails obey the back-off too, and stay invalid', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await source.keyFor(header('k1'));
    state.answer = down;
    for (let round = 0; round < 20; round++) {
      await expect(source.keyFor(header('x'))).rejects.toMatchObject({ kind: 'invalid' });
    }
    expect(state.requests).toBe(2);
  });

  test('a token without kid is refused without a request', async () => {
    const { state, source } = await setUp(jwks(publicJwk('k1')));
    await expect(source.keyFor(header(null))).rejects.toMatchObject({ reason: 'unknown_kid' });
    expect(state.requests).toBe(0);
  });

  test.each([
    '../../etc/passwd',
    "' OR 1=1 --",
    '__proto__',
    'constructor',
    'a\r\nb',
    '\u001b[31m',
    '',
  ])('the kid %j is a kid like any other that does not exist', async (kid) => {
    const { source } = await setUp(jwks(publicJwk('k1')));
    await expect(source.keyFor(header(kid))).rejects.toMatchObject({ reason: 'unknown_kid' });
  });

  test('a kid that two keys share serves nobody, the others do', async () => {
    const twin = toJwk(otherRsa.publicKey, { kid: 'k1' });
    const { state, source } = await setUp(jwks(publicJwk('k1'), twin, publicJwk('k2'), publicJwk('k1')));
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({ reason: 'ambiguous_key' });
    await expect(source.keyFor(header('k2'))).resolves.toMatchObject({ keyId: 'k2' });
    expect(state.events[0]).toMatchObject({ type: 'loaded', keys: 1 });
  });

  test('a set of nothing but twins makes their tokens bad, not keys unavailable', async () => {
    const { source } = await setUp(jwks(publicJwk('k1'), toJwk(otherRsa.publicKey, { kid: 'k1' })));
    await expect(source.keyFor(header('k1'))).rejects.toMatchObject({
      reason: 'ambiguous_key',
      kind: 'invalid',
    });
    await expect(source.keyFor(header('k2'))).rejects.toMatchObject({ reason: 'unknown_kid' });
  });

  test('keys that cannot be used are told of once, and again when they are others', async () => {
    const leak = toJwk(otherRsa.privateKey, { kid: 'x' });
    const { state, source } = await setUp(jwks(publicJwk('k1'), leak));
    const told = (): boolean[] => state.events.map((event) => event.type === 'loaded' && event.skippedAnew);
    for (const answer of [state.answer, jwks(publicJwk('k1')), jwks(publicJwk('k1'), leak)]) {
      await source.poll();
      state.answer = answer;
      state.nowMs += TTL_MS;
    }
    await source.poll();
    expect(told()).toEqual([true, false, true, true]);
  });

  test('a key bound to one algorithm refuses another; EdDSA and Ed25519 are one', async () => {
    const { source } = await setUp(
      jwks(publicJwk('k1', { alg: 'RS256' }), toJwk(ed25519.publicKey, { kid: 'k2', alg: 'EdDSA' })),
    );
    await expect(source.keyFor(header('k1', 'PS256'))).rejects.toMatchObject({ reason: 'key_alg_mismatch' });
    await expect(source.keyFor(header('k2', 'Ed25519'))).resolves.toMatchObject({ keyId: 'k2' });
  });
});

describe('each key of a set is vetted on its own', () => {
  const small = generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey;
  const weak = generateKeyPairSync('ec', { namedCurve: 'secp256k1' }).publicKey;
  const x25519 = generateKeyPairSync('x25519').publicKey;
  const skipped: [string, unknown, RegExp, boolean?][] = [
    ['a number', 7, /not a JSON object/],
    ['null', null, /not a JSON object/],
    ['an unknown kty', { kty: 'AKP', kid: 'x', pub: 'AA' }, /unknown kty/],
    ['a kty from the prototype', { kty: 'constructor', kid: 'x' }, /unknown kty/],
    ['a symmetric key', { kty: 'oct', kid: 'x', k: 'AAAA' }, /symmetric/, true],
    ['a private RSA key', toJwk(otherRsa.privateKey, { kid: 'x' }), /private key was published/, true],
    ['a private EC key', toJwk(p256.privateKey, { kid: 'x' }), /private key was published/, true],
    ['a key for encryption', publicJwk('x', { use: 'enc' }), /use is not sig/],
    ['a key for signing only', publicJwk('x', { key_ops: ['sign'] }), /key_ops/],
    ['key_ops of a wrong type', publicJwk('x', { key_ops: 'verify' }), /key_ops/],
    ['no kid', toJwk(rsa.publicKey), /no kid/],
    ['a kid that is a number', publicJwk('x', { kid: 5 }), /no kid/],
    ['RSA of 1024 bits', toJwk(small, { kid: 'x' }), /1024 bits/],
    ['an RSA exponent of 1', publicJwk('x', { e: 'AQ' }), /exponent|decoded/],
    ['an even RSA exponent', publicJwk('x', { e: 'BA' }), /exponent|decoded/],
    ['a curve that is not for signatures here', toJwk(weak, { kid: 'x' }), /curve/],
    ['a key agreement curve', toJwk(x25519, { kid: 'x' }), /unsupported kind/],
    ['a modulus that is a number', publicJwk('x', { n: 5 }), /its n is missing/],
    ['a point that is not on its curve', toJwk(p256.publicKey, { kid: 'x', x: 'A'.repeat(43) }), /decoded/],
    ['an alg that does not fit the key', publicJwk('x', { alg: 'ES256' }), /alg does not fit/],
    ['an alg of another world', publicJwk('x', { alg: 'HS256' }), /alg does not fit/],
    ['an alg that is a number', publicJwk('x', { alg: 5 }), /alg does not fit/],
  ];
  test.each(skipped)('%s is skipped among good ones', (_what, jwk, reason, leaked = false) => {
    const { keys, usable, skipped: list } = decodeJwks(jwks(publicJwk('k1'), jwk));
    expect(usable).toBe(1);
    expect([...keys.keys()]).toEqual(['k1']);
    expect(list).toHaveLength(1);
    expect(list[0]!.reason).toMatch(reason);
    expect(list[0]!.leaked).toBe(leaked);
  });

  test('RSA, EC and Ed25519 keys with every harmless member are used', () => {
    const { usable, skipped: list } = decodeJwks(
      jwks(
        publicJwk('a', {
          use: 'sig',
          key_ops: ['verify'],
          alg: 'RS256',
          x5c: ['junk'],
          x5u: 'https://x.example',
        }),
        toJwk(p256.publicKey, { kid: 'b', alg: 'ES256' }),
        toJwk(ed25519.publicKey, { kid: 'c' }),
      ),
    );
    expect(list).toEqual([]);
    expect(usable).toBe(3);
  });

  test('a list of more keys than the bound is refused as a whole', () => {
    const filler = Array.from({ length: JWKS_KEYS_MAX - 1 }, () => 0);
    expect(decodeJwks(jwks(publicJwk('k1'), ...filler)).usable).toBe(1);
    expect(() => decodeJwks(jwks(publicJwk('k1'), 0, ...filler))).toThrow('more than 256 keys');
  });
});

describe('the discovery document', () => {
  test.each([
    ['', '/.well-known/openid-configuration'],
    ['/', '/.well-known/openid-configuration'],
    ['/tenant/a', '/tenant/a/.well-known/openid-configuration'],
    ['/tenant/a/', '/tenant/a/.well-known/openid-configuration'],
  ])('of the issuer at path %j is asked for at %s', async (path, wanted) => {
    const asked: string[] = [];
    const origin = (
      await listen((request, response) => {
        asked.push(request.url ?? '');
        const document = JSON.stringify({ issuer: `${origin}${path}`, jwks_uri: `${origin}/k` });
        response.end(request.url === '/k' ? jwks(publicJwk('k1')) : document);
      })
    ).replace('/keys', '');
    const fetch = fetchByDiscovery({
      issuer: `${origin}${path}`,
      origins: [],
      allowHttp: 'loopback',
      ca: null,
    });
    const source = new JwksSource({ fetch, cacheTtlMs: TTL_MS });
    await expect(source.keyFor(header('k1'))).resolves.toMatchObject({ keyId: 'k1' });
    expect(asked).toEqual([wanted, '/k']);
  });

  test('has the same deadline, size and rule for redirects as the key set, together with it', async () => {
    for (const [answer, fault] of [
      [() => undefined, /no whole answer within 200 ms/],
      [
        (_request, response) => response.writeHead(302, { location: 'https://evil.example' }).end(),
        /status 302/,
      ],
      [(_request, response) => response.end('x'.repeat(JWKS_BYTES_MAX + 1)), /longer than 64 KiB/],
      [(_request, response) => response.end('<html>'), /not JSON/],
    ] as [Handler, RegExp][]) {
      const issuer = (await listen(answer)).replace('/keys', '');
      const fetch = fetchByDiscovery({ issuer, origins: [], allowHttp: 'loopback', ca: null });
      const source = new JwksSource({ fetch, cacheTtlMs: TTL_MS, timeoutMs: 200 });
      await source.poll();
      expect(source.status().lastFault).toMatch(fault);
    }
  });

  test.each([
    ['http://idp.example', 'must begin with https'],
    ['https://idp.example/?a=b', 'query or a fragment'],
    ['https://idp.example/#x', 'query or a fragment'],
    ['idp', 'is not a URL'],
  ])('the issuer %s has none', (issuer, fault) => {
    expect(() => fetchByDiscovery({ issuer, origins: [], allowHttp: 'loopback', ca: null })).toThrow(fault);
  });
});

test.each([
  ['https://idp.example/keys', 'never', true],
  ['http://idp.example/keys', 'loopback', false],
  ['http://idp.example/keys', 'always', true],
  ['http://127.0.0.1:8080/keys', 'never', false],
  ['http://127.0.0.1:8080/keys', 'loopback', true],
  ['http://127.255.0.9/keys', 'loopback', true],
  ['http://2130706433/keys', 'loopback', true],
  ['http://[::1]/keys', 'loopback', true],
  ['http://localhost/keys', 'loopback', true],
  ['http://localhost.evil.example/keys', 'loopback', false],
  ['http://127.0.0.1.evil.example/keys', 'loopback', false],
  ['http://127.0.0.1@evil.example/keys', 'loopback', false],
  ['http://0.0.0.0/keys', 'loopback', false],
  ['http://169.254.169.254/keys', 'loopback', false],
  ['https://user:password@idp.example/keys', 'always', false],
  ['file:///etc/passwd', 'always', false],
  ['data:application/json,{}', 'always', false],
  ['not a url', 'always', false],
] as const)('the address %s with allow_http_issuers %s', (url, allowHttp, isFine) => {
  expect(findJwksUrlFault(url, allowHttp) === null).toBe(isFine);
  if (!isFine) expect(() => fetchFromUrl(url, { allowHttp, ca: null })).toThrow(RangeError);
});
