/** Where keys come from: a PEM file that is replaced on disk, and an issuer that rotates, vanishes and misbehaves. */
import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Issuer, type IssuerBehaviour, type MintOptions, startIssuer } from '../src/demo/issuer.ts';
import { ed25519, otherRsa, p256, rsa, toJwk, toPem } from '../test/auth/support.ts';
import {
  cleanUp,
  expectNoSecrets,
  hasPsql,
  type LoginPooler,
  makeWorld,
  mint,
  psql,
  scratchDirectory,
  secretToken,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

let world: World;
const issuers: Issuer[] = [];
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(async () => {
  expectNoSecrets();
  await Promise.all(issuers.map((issuer) => issuer.stop()));
  cleanUp();
  await world.drop();
});

function start(general: Table, turnstile: Table = {}): Promise<LoginPooler> {
  return startLoginPooler({ general: world.jwt(general), turnstile, databases: [world.row()] });
}

async function newIssuer(options: Parameters<typeof startIssuer>[0] = {}): Promise<Issuer> {
  const issuer = await startIssuer(options);
  issuers.push(issuer);
  return issuer;
}

const tokenOf = async (issuer: Issuer, more: Partial<MintOptions> = {}): Promise<string> =>
  secretToken(await issuer.mint({ subject: world.alice, ...more }));
const login = (password: string): Table => ({ user: world.alice, password, database: world.database });
const UNAVAILABLE = {
  severity: 'FATAL',
  code: '57P03',
  message: 'authentication is temporarily unavailable',
};

/** Resolves once the clock of the pooler has gone so far, since its own limits are measured by it. */
const pass = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

describe.concurrent('jwt_public_key_file', () => {
  test('replaced on disk takes effect without a restart; a bad replacement leaves the old key in use', async () => {
    const directory = scratchDirectory();
    const file = path.join(directory, 'issuer.pem');
    writeFileSync(file, toPem(rsa.publicKey));
    const pooler = await start({ jwt_public_key_file: file });
    const old = mint(rsa, world.alice);
    const fresh = mint(p256, world.alice);
    await pooler.ask(login(old));
    expect((await pooler.refusal(login(fresh))).code).toBe('28P01');

    writeFileSync(file, '-----BEGIN PUBLIC KEY-----\nMFkw'); // Half of a write.
    await pass(1_050);
    await pooler.ask(login(old));
    expect(pooler.logged('key file: ').map((line) => line['reason'])).toEqual(['key_file']);

    writeFileSync(`${file}.new`, toPem(p256.publicKey));
    renameSync(`${file}.new`, file);
    await pass(1_050);
    await pooler.ask(login(fresh));
    expect((await pooler.refusal(login(old))).code).toBe('28P01');
    expect(pooler.logged('key file loaded')).toHaveLength(1);

    rmSync(file);
    await pass(1_050);
    await pooler.ask(login(fresh));
    pooler.stop();
  });

  test.each([
    ['a private key', () => otherRsa.privateKey.export({ type: 'pkcs8', format: 'pem' }), 'private key'],
    ['no key', () => 'hello', 'is not PEM of the kind that belongs here'],
    ['two keys', () => toPem(rsa.publicKey) + toPem(p256.publicKey), 'more than one PEM block'],
  ])('that holds %s is a fault of the configuration', async (_, text, words) => {
    const file = path.join(scratchDirectory(), 'issuer.pem');
    writeFileSync(file, text());
    await expect(start({ jwt_public_key_file: file })).rejects.toThrow(words);
  });

  test('beats jwt_jwks_url, with a warning, and the issuer is never asked', async () => {
    const issuer = await newIssuer();
    const file = path.join(scratchDirectory(), 'issuer.pem');
    writeFileSync(file, toPem(rsa.publicKey));
    const pooler = await start({ jwt_public_key_file: file, jwt_jwks_url: issuer.jwksUrl });
    await pooler.ask(login(mint(rsa, world.alice)));
    expect(issuer.requests).toBe(0);
    expect(pooler.warnings.join('\n')).toContain('jwt_jwks_url: has no effect beside jwt_public_key_file');
    pooler.stop();
  });
});

describe.concurrent('jwt_jwks_url', () => {
  test.each(['ES256', 'RS256', 'EdDSA'] as const)('with %s keys lets pg and psql in', async (algorithm) => {
    const issuer = await newIssuer({ algorithm });
    const pooler = await start({ jwt_jwks_url: issuer.jwksUrl });
    const token = await tokenOf(issuer);
    expect(await pooler.ask(login(token))).toMatchObject({ current_user: world.alice });
    if (hasPsql) {
      const connection = { port: pooler.port, user: world.alice, dbname: world.database, password: token };
      expect((await psql(connection, 'SELECT current_user')).stdout).toBe(`${world.alice}\n`);
    }
    expect(issuer.requests).toBe(1);
    pooler.stop();
  });

  test('fifty cold logins at once are one request', async () => {
    const issuer = await newIssuer();
    issuer.setBehaviour('down');
    const pooler = await start({ jwt_jwks_url: issuer.jwksUrl });
    const token = await tokenOf(issuer);
    expect(await pooler.refusal(login(token))).toEqual(UNAVAILABLE);
    issuer.setBehaviour('ok');
    await pass(1_050); // The back-off after one failure.
    const before = issuer.requests;
    const clients = await Promise.all(Array.from({ length: 50 }, () => pooler.connect(login(token))));
    expect(issuer.requests - before).toBeLessThanOrEqual(1);
    await Promise.all(clients.map((client) => client.end()));
    pooler.stop();
  });

  test('a rotated key is fetched at once, once; unknown kids then cost no request for 30 s', async () => {
    const issuer = await newIssuer();
    const pooler = await start({ jwt_jwks_url: issuer.jwksUrl });
    const old = await tokenOf(issuer);
    await pooler.ask(login(old));
    const kid = await issuer.rotate(true);
    await pooler.ask(login(await tokenOf(issuer)));
    expect(pooler.logged('client logged in').at(-1)).toMatchObject({ kid });
    expect(issuer.requests).toBe(2);
    expect((await pooler.refusal(login(old))).code).toBe('28P01');
    for (const keyId of ['../../etc/passwd', 'x'.repeat(5_000), 'a\r\nb\u001b[31m', 'k']) {
      expect((await pooler.refusal(login(await tokenOf(issuer, { keyId })))).code).toBe('28P01');
    }
    expect(issuer.requests).toBe(2);
    expect(new Set(pooler.logged('auth_reject').map((line) => line['reason']))).toEqual(
      new Set(['unknown_kid']),
    );
    expect(Math.max(...pooler.logged('auth_reject').map((line) => String(line['kid']).length))).toBeLessThan(
      200,
    );
    expect(JSON.stringify(pooler.lines)).not.toMatch(/[\u0000-\u001f]|\\u001b|\\r/);
    pooler.stop();
  });

  test('a forged token under a published kid is refused', async () => {
    const issuer = await newIssuer();
    const pooler = await start({ jwt_jwks_url: issuer.jwksUrl });
    const forged = await tokenOf(issuer, { forged: true });
    expect((await pooler.refusal(login(forged))).code).toBe('28P01');
    expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'bad_signature' });
    pooler.stop();
  });

  test.each<IssuerBehaviour>([
    'down',
    'reset',
    'redirect',
    'huge',
    'html',
  ])('an issuer that answers "%s" from the start: the pooler runs, logins get 57P03, requests back off', async (behaviour) => {
    const issuer = await newIssuer();
    issuer.setBehaviour(behaviour);
    const pooler = await start({ jwt_jwks_url: issuer.jwksUrl });
    const token = await tokenOf(issuer);
    const startedAtMs = performance.now();
    for (let attempt = 0; attempt < 10; attempt++) {
      expect(await pooler.refusal(login(token))).toEqual(UNAVAILABLE);
    }
    // One at the start, and one more for each back-off that has passed: a second, then two, then four.
    const seconds = (performance.now() - startedAtMs) / 1_000;
    expect(issuer.requests).toBeLessThanOrEqual(2 + Math.floor(Math.log2(1 + seconds)));
    expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'keys_unavailable', code: '57P03' });
    expect(pooler.logged('issuer keys: ')[0]).toMatchObject({ level: 'warn', serving: 'nothing' });
    // Bad by its form alone is bad whether or not there are keys.
    expect((await pooler.refusal(login('no token'))).code).toBe('28P01');
    issuer.setBehaviour('ok');
    await until('the keys', () => pooler.logged('issuer keys loaded').length > 0);
    await pooler.ask(login(token));
    pooler.stop();
  });

  test('that hangs is given up after 5 s: 57P03 without a set, the old set with one; others are not held up', async () => {
    const cold = await newIssuer();
    const warm = await newIssuer();
    cold.setBehaviour('hang');
    const [first, second] = await Promise.all([
      start({ jwt_jwks_url: cold.jwksUrl }),
      start({ jwt_jwks_url: warm.jwksUrl, jwt_jwks_cache_ttl: 1 }),
    ]);
    await second.ask(login(await tokenOf(warm)));
    warm.setBehaviour('hang');
    await pass(1_050);
    const startedAtMs = performance.now();
    const [refused] = await Promise.all([
      tokenOf(cold).then((token) => first.refusal(login(token))),
      tokenOf(warm).then((token) => second.ask(login(token))),
    ]);
    expect(refused).toEqual(UNAVAILABLE);
    expect(performance.now() - startedAtMs).toBeLessThan(6_500);
    expect(second.logged('issuer keys: ').at(-1)).toMatchObject({ serving: 'stale' });
    for (const pooler of [first, second]) pooler.stop();
  });

  test('jwt_jwks_cache_ttl: a set past it is fetched anew, and served stale while the issuer is away', async () => {
    const issuer = await newIssuer();
    const pooler = await start({ jwt_jwks_url: issuer.jwksUrl, jwt_jwks_cache_ttl: 1 });
    await pooler.ask(login(await tokenOf(issuer)));
    const atFirst = issuer.requests;
    await until('a refresh', () => issuer.requests > atFirst);
    await pooler.ask(login(await tokenOf(issuer)));
    issuer.setBehaviour('down');
    await until('a failure', () => pooler.logged('issuer keys: ').length > 0);
    await pooler.ask(login(await tokenOf(issuer)));
    await until('staleness', () => pooler.logged('issuer keys: ').at(-1)?.['serving'] === 'stale');
    await pooler.ask(login(await tokenOf(issuer)));
    expect(pooler.logged('issuer keys: ').at(-1)).toMatchObject({ level: 'warn' });
    pooler.stop();
  });

  test('unfit keys of a set are passed over and the good one works; a private key in it is an ERROR', async () => {
    const keys = [
      toJwk(rsa.publicKey, { kid: 'good', alg: 'RS256', use: 'sig' }),
      toJwk(p256.publicKey, { kid: 'enc', use: 'enc' }),
      toJwk(ed25519.publicKey, { kid: 'sign', key_ops: ['sign'] }),
      toJwk(otherRsa.privateKey, { kid: 'leaked' }),
      { kty: 'AKP', kid: 'new', alg: 'ML-DSA-44', pub: 'AAAA' },
      { kty: 'oct', kid: 'shared', k: 'c2VjcmV0' },
      toJwk(p256.publicKey, { kid: 'twice' }),
      toJwk(ed25519.publicKey, { kid: 'twice' }),
    ];
    const server = createServer((_: IncomingMessage, response: ServerResponse) => {
      response.setHeader('content-type', 'application/json').end(JSON.stringify({ keys }));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`;
    const pooler = await start({ jwt_jwks_url: url });
    await pooler.ask(login(mint(rsa, world.alice, {}, { kid: 'good' })));
    for (const [keysOf, kid] of [
      [p256, 'enc'],
      [ed25519, 'sign'],
      [otherRsa, 'leaked'],
      [p256, 'twice'],
      [ed25519, 'twice'],
    ] as const) {
      expect((await pooler.refusal(login(mint(keysOf, world.alice, {}, { kid })))).code, kid).toBe('28P01');
    }
    expect((await pooler.refusal(login(mint(rsa, world.alice)))).code, 'no kid').toBe('28P01');
    expect(pooler.logged('private or symmetric key')[0]).toMatchObject({ level: 'error' });
    expect(JSON.stringify(pooler.lines)).not.toContain(String(toJwk(otherRsa.privateKey)['d']).slice(0, 20));
    pooler.stop();
    server.close();
  });

  test('allow_http_issuers: http for loopback only unless told otherwise', async () => {
    const issuer = await newIssuer();
    const elsewhere = 'http://issuer.example/keys';
    await expect(start({ jwt_jwks_url: elsewhere })).rejects.toThrow(
      /jwt_jwks_url: must be https: allow_http_issuers permits http for loopback hosts only/,
    );
    await expect(start({ jwt_jwks_url: issuer.jwksUrl }, { allow_http_issuers: 'never' })).rejects.toThrow(
      /permits http for no host/,
    );
    const pooler = await start({ jwt_jwks_url: issuer.jwksUrl }, { allow_http_issuers: 'always' });
    await pooler.ask(login(await tokenOf(issuer)));
    expect(pooler.warnings.join('\n')).toContain('allow_http_issuers: always');
    pooler.stop();
  });

  test('https with a certificate that nobody vouches for is no key source', async () => {
    const { makeCertificate } = await import('../test/support/certificates.ts');
    const https = await import('node:https');
    const certificate = makeCertificate({ name: '127.0.0.1' });
    let asked = 0;
    const server = https.createServer({ cert: certificate.cert, key: certificate.key }, (_, response) => {
      asked++;
      response.end('{"keys":[]}');
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const port = (server.address() as AddressInfo).port;
    const pooler = await start({ jwt_jwks_url: `https://127.0.0.1:${port}/keys` });
    expect(await pooler.refusal(login(mint(rsa, world.alice, {}, { kid: 'k' })))).toEqual(UNAVAILABLE);
    expect(asked).toBe(0);
    pooler.stop();
    server.close();
  });
});
