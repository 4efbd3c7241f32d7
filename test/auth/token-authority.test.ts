/** All issuers together, with real files and real servers: who is asked, who is not, and what changes do. */
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { TokenAuthority, type TokenListeners } from '../../src/auth/token-authority.ts';
import { TokenRejected } from '../../src/auth/token-rejected.ts';
import { tokenRulesOf } from '../../src/auth/token-rules.ts';
import { TokenVerifier } from '../../src/auth/token-verifier.ts';
import { USED_TOKEN_IDS_MAX, UsedTokenIds } from '../../src/auth/used-token-ids.ts';
import type { Config } from '../../src/config/config.ts';
import { type Issuer, type IssuerOptions, startIssuer } from '../../src/demo/issuer.ts';
import { makeCertificate } from '../support/certificates.ts';
import {
  countingSource,
  ed25519,
  makeConfig,
  makeIssuer,
  makeToken,
  NOW_MS,
  NOW_SECONDS,
  otherRsa,
  p256,
  rsa,
  signParts,
  toJwk,
  toPem,
} from './support.ts';

const A = 'https://a.example';
const B = 'https://b.example';

let directory: string;
const opened: { stop(): unknown }[] = [];
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'turnstile-authority-'));
});
afterEach(async () => {
  await Promise.all(opened.splice(0).map((one) => one.stop()));
  await rm(directory, { recursive: true });
});

async function open(config: Config, listeners: TokenListeners = {}): Promise<TokenAuthority> {
  const authority = await TokenAuthority.open(config, listeners);
  opened.push(authority);
  return authority;
}
async function issuerOf(options: IssuerOptions = {}): Promise<Issuer> {
  const issuer = await startIssuer(options);
  opened.push(issuer);
  return issuer;
}
async function file(name: string, text: string): Promise<string> {
  const path = join(directory, name);
  await writeFile(`${path}.new`, text);
  await rename(`${path}.new`, path);
  return path;
}
const reasonOf = (outcome: Promise<unknown>): Promise<string> =>
  outcome.then(
    () => 'accepted',
    (error: unknown) => (error instanceof TokenRejected ? error.reason : String(error)),
  );
const es256 = (claims: Record<string, unknown>): string =>
  signParts(
    { alg: 'ES256', kid: 'k1' },
    { sub: 'alice', exp: NOW_SECONDS + 300, ...claims },
    p256.privateKey,
  );

describe('which issuer’s token it is', () => {
  /** A verifier over counted sources: `A` with RSA, `B` with P-256, and the `jwt_*` keys with Ed25519. */
  function counted(more: { flat?: boolean; jwtIssuer?: string | null } = {}) {
    const config = makeConfig({
      issuers: [makeIssuer(A), makeIssuer(B, { algorithms: ['ES256'] })],
      jwt: { publicKeyFile: more.flat ? 'there.pem' : null },
      turnstile: { jwtIssuer: more.jwtIssuer ?? null },
    });
    const sources = [
      countingSource(rsa.publicKey),
      countingSource(p256.publicKey),
      countingSource(ed25519.publicKey),
    ];
    let checks = 0;
    const rules = tokenRulesOf(config);
    const verifier = new TokenVerifier({
      entries: rules.map((entry, i) => ({ rules: entry, keys: sources[i]! })),
    });
    const verify = (token: string) =>
      verifier.verify(token, NOW_MS, () => {
        checks++;
        return true;
      });
    return { verify, asked: () => sources.map((source) => source.asked), checks: () => checks };
  }
  const byEd25519 = (claims: Record<string, unknown>): string =>
    signParts(
      { alg: 'EdDSA', kid: 'k1' },
      { sub: 'alice', exp: NOW_SECONDS + 300, ...claims },
      ed25519.privateKey,
    );

  test('each issuer has its own keys, though they share a kid', async () => {
    const { verify, asked } = counted();
    expect((await verify(makeToken({ iss: A }))).facts).toMatchObject({ source: A, issuer: A, keyId: 'k1' });
    expect((await verify(es256({ iss: B }))).facts).toMatchObject({ source: B, issuer: B, keyId: 'k1' });
    expect(asked()).toEqual([1, 1, 0]);
  });

  test.each<[string, unknown]>([
    ['none', undefined],
    ['an empty one', ''],
    ['a stranger', 'https://evil.example'],
    ['a slash more', `${A}/`],
    ['other letters', 'https://A.example'],
    ['a name that ours begins with', 'https://a'],
    ['a name that begins with ours', `${A}.evil.example`],
    ['a list with ours', [A]],
    ['null', null],
    ['a number', 5],
    ['ours with a space', `${A} `],
    ['ours with a NUL', `${A}\0`],
  ])('an iss that is %s: no key is asked for, no signature checked', async (_what, iss) => {
    const { verify, asked, checks } = counted();
    expect(await reasonOf(verify(makeToken({ iss })))).toBe('unknown_issuer');
    expect([...asked(), checks()]).toEqual([0, 0, 0, 0]);
  });

  test('the issuer of one signed by the key of another is refused by its own', async () => {
    const { verify, asked } = counted();
    expect(
      await reasonOf(
        verify(
          signParts({ alg: 'ES256', kid: 'k1' }, { sub: 'a', iss: A, exp: NOW_SECONDS + 9 }, p256.privateKey),
        ),
      ),
    ).toBe('key_alg_mismatch');
    expect(await reasonOf(verify(makeToken({ iss: A }, {}, otherRsa.privateKey)))).toBe('bad_signature');
    expect(asked()).toEqual([2, 0, 0]);
  });

  test('an algorithm that another issuer may use is refused without asking for a key', async () => {
    const { verify, asked, checks } = counted();
    expect(await reasonOf(verify(makeToken({ iss: B })))).toBe('alg_not_allowed');
    expect([...asked(), checks()]).toEqual([0, 0, 0, 0]);
  });

  test('a bad form, an expired budget and a remembered signature cost no check', async () => {
    const { verify, checks } = counted();
    await reasonOf(verify('junk'));
    expect(checks()).toBe(0);
    const token = makeToken({ iss: A });
    await verify(token);
    await verify(token);
    expect(checks()).toBe(1);
  });

  test('the jwt_* keys take what no row does; a row never falls back to them', async () => {
    const { verify, asked } = counted({ flat: true });
    expect((await verify(byEd25519({ iss: 'https://else' }))).facts).toMatchObject({ source: null });
    expect((await verify(byEd25519({}))).facts).toMatchObject({ source: null, issuer: null });
    expect(await reasonOf(verify(byEd25519({ iss: A })))).toBe('key_alg_mismatch');
    expect(asked()).toEqual([1, 0, 2]);
  });

  test('the jwt_* keys with jwt_issuer take that one alone', async () => {
    const { verify, asked } = counted({ flat: true, jwtIssuer: 'https://flat' });
    expect((await verify(byEd25519({ iss: 'https://flat' }))).facts).toMatchObject({
      issuer: 'https://flat',
    });
    expect(await reasonOf(verify(byEd25519({ iss: 'https://else' })))).toBe('unknown_issuer');
    expect(await reasonOf(verify(byEd25519({})))).toBe('unknown_issuer');
    expect(asked()).toEqual([0, 0, 1]);
  });

  test('the log gets the iss of an issuer on the list, and a digest of any other', async () => {
    const { verify } = counted();
    const issuerOfRejection = (token: string) => verify(token).catch((error: TokenRejected) => error.issuer);
    expect(await issuerOfRejection(makeToken({ iss: A, exp: 1 }))).toBe(A);
    expect(await issuerOfRejection(makeToken({ iss: 'https://evil.example' }))).toMatch(
      /^sha256:[0-9a-f]{12}$/,
    );
    expect(await issuerOfRejection(makeToken({}))).toBeNull();
  });

  test('a token for the audience of one database passes, and one for neither does not', async () => {
    const config = makeConfig({
      issuers: [
        makeIssuer(A, { audiences: ['pool'], publicKeyFile: await file('a.pem', toPem(rsa.publicKey)) }),
      ],
      turnstileDatabases: [
        { name: 'app', audiences: ['app.db'], backendIdentity: null, backendCluster: null },
      ],
    });
    const authority = await open(config);
    const aud = (value: unknown) => reasonOf(authority.verify(makeToken({ iss: A, aud: value }), NOW_MS));
    expect(await Promise.all(['pool', ['x', 'app.db'], 'x', undefined, 5].map(aud))).toEqual([
      'accepted',
      'accepted',
      'bad_audience',
      'bad_audience',
      'bad_audience',
    ]);
  });
});

describe('files', () => {
  test('a JWKS file and a PEM file, changed while the pooler runs', async () => {
    const events: string[] = [];
    const jwksFile = await file('a.json', JSON.stringify({ keys: [toJwk(rsa.publicKey, { kid: 'k1' })] }));
    const publicKeyFile = await file('b.pem', toPem(p256.publicKey));
    const issuers = [makeIssuer(A, { jwksFile }), makeIssuer(B, { publicKeyFile })];
    const authority = await open(makeConfig({ issuers }), {
      onFileLoaded: (issuer, what) => events.push(`${issuer} ${what}`),
      onFileFault: (issuer, what) => events.push(`${issuer} ${what}`),
    });
    let changes = 0;
    authority.onChange(() => changes++);
    const a = await authority.verify(makeToken({ iss: A }), NOW_MS);
    const b = await authority.verify(es256({ iss: B }), NOW_MS);
    expect([authority.standing(a.facts), authority.standing(b.facts)]).toEqual(['good', 'good']);

    await file('a.json', JSON.stringify({ keys: [toJwk(otherRsa.publicKey, { kid: 'k1' })] }));
    await file('b.pem', 'half a k');
    await expect.poll(() => events, { timeout: 5_000 }).toHaveLength(3);
    expect(events.sort()).toEqual([
      `${A} 1 keys from the JWKS file`,
      `${A} 1 keys from the JWKS file`,
      `${B} the file holds no PEM public key`,
    ]);
    expect(changes).toBe(1);
    // The kid is the same, the key is not.
    expect([authority.standing(a.facts), authority.standing(b.facts)]).toEqual(['key_removed', 'good']);
    expect(authority.isVerified(makeToken({ iss: A }), NOW_MS)).toBe(false);
    expect(await reasonOf(authority.verify(makeToken({ iss: A }), NOW_MS))).toBe('bad_signature');
    expect(await reasonOf(authority.verify(es256({ iss: B }), NOW_MS))).toBe('accepted');
  });

  test.each<[string, string, RegExp]>([
    ['jwksFile', '{}', /no list of keys/],
    ['jwksFile', 'no', /the JWKS file is not JSON/],
    ['jwksFile', '{"keys":[]}', /no usable key/],
    ['publicKeyFile', 'no', /no PEM/],
    ['caFile', 'no', /no PEM certificate/],
  ])('an unfit %s is a fault at the start', async (key, text, fault) => {
    const row = makeIssuer(A, {
      [key]: await file('x', text),
      ...(key === 'caFile' && { jwksUrl: 'https://x.example' }),
    });
    await expect(open(makeConfig({ issuers: [row] }))).rejects.toThrow(fault);
  });

  test('revocations strike new logins and those that are in', async () => {
    const revocationFile = await file('revoked.json', '[]');
    const publicKeyFile = await file('a.pem', toPem(rsa.publicKey));
    const config = makeConfig({ jwt: { publicKeyFile }, turnstile: { revocationFile } });
    const sizes: number[] = [];
    const authority = await open(config, { onRevocations: ({ size }) => sizes.push(size) });
    let changes = 0;
    authority.onChange(() => changes++);
    const token = makeToken({ jti: 'j1', iss: A });
    const { facts } = await authority.verify(token, NOW_MS);
    await file('revoked.json', `[{"jti":"j1","iss":"${A}"}]`);
    await expect.poll(() => changes, { timeout: 5_000 }).toBe(1);
    expect(authority.standing(facts)).toBe('revoked');
    expect(authority.isVerified(token, NOW_MS)).toBe(true);
    expect(await reasonOf(authority.verify(token, NOW_MS))).toBe('revoked');
    expect(await reasonOf(authority.verify(makeToken({ jti: 'j2', iss: A }), NOW_MS))).toBe('accepted');
    expect(sizes).toEqual([0, 1]);
  });

  test('facts of one authority are judged by the next: an issuer that is gone, a key that is another', async () => {
    const key = await file('a.pem', toPem(rsa.publicKey));
    const other = await file('b.pem', toPem(otherRsa.publicKey));
    const withRow = (publicKeyFile: string) => makeConfig({ issuers: [makeIssuer(A, { publicKeyFile })] });
    const { facts } = await (await open(withRow(key))).verify(makeToken({ iss: A }), NOW_MS);
    expect((await open(withRow(key))).standing(facts)).toBe('good');
    expect((await open(withRow(other))).standing(facts)).toBe('key_removed');
    const flat = await open(makeConfig({ jwt: { publicKeyFile: key } }));
    expect(flat.standing(facts)).toBe('issuer_removed');
    const known = await flat.verify(makeToken({ iss: A }), NOW_MS);
    const pinned = await open(makeConfig({ jwt: { publicKeyFile: key }, turnstile: { jwtIssuer: B } }));
    expect(pinned.standing(known.facts)).toBe('issuer_removed');
  });
});

describe('remembered tokens', () => {
  test('one token has one set of facts, also past the minute after which its signature is checked again', async () => {
    const publicKeyFile = await file('a.pem', toPem(rsa.publicKey));
    const authority = await open(makeConfig({ jwt: { publicKeyFile } }));
    const token = makeToken({ exp: NOW_SECONDS + 3_000 });
    const { facts } = await authority.verify(token, NOW_MS);
    expect(authority.isVerified(token, NOW_MS + 59_999)).toBe(true);
    expect(authority.isVerified(token, NOW_MS + 60_000)).toBe(false);
    for (const later of [0, 59_999, 60_000, 130_000]) {
      expect((await authority.verify(token, NOW_MS + later)).facts).toBe(facts);
    }
    expect(authority.isVerified(token, NOW_MS + 130_000)).toBe(true);
    expect(authority.isVerified(token.slice(0, -1), NOW_MS)).toBe(false);
  });

  test('the clock is asked at every use', async () => {
    const publicKeyFile = await file('a.pem', toPem(rsa.publicKey));
    const authority = await open(makeConfig({ jwt: { publicKeyFile } }));
    const token = makeToken({ exp: NOW_SECONDS + 5 });
    await authority.verify(token, NOW_MS);
    expect(authority.isVerified(token, NOW_MS + 5_000)).toBe(false);
    expect(await reasonOf(authority.verify(token, NOW_MS + 5_000))).toBe('expired');
  });

  test('single_use_jti: the second login is refused, of two at once as well, and also another token of that id', async () => {
    const publicKeyFile = await file('a.pem', toPem(rsa.publicKey));
    const authority = await open(makeConfig({ jwt: { publicKeyFile }, turnstile: { singleUseJti: true } }));
    const token = makeToken({ jti: 'j1' });
    const both = await Promise.all(
      [authority.verify(token, NOW_MS), authority.verify(token, NOW_MS)].map(reasonOf),
    );
    expect(both.sort()).toEqual(['accepted', 'jti_used']);
    expect(await reasonOf(authority.verify(makeToken({ jti: 'j1', x: 1 }), NOW_MS))).toBe('jti_used');
    // The id is unique per issuer only.
    expect(await reasonOf(authority.verify(makeToken({ jti: 'j1', iss: A }), NOW_MS))).toBe('accepted');
    expect(await reasonOf(authority.verify(makeToken({ jti: 'j2', exp: 1 }), NOW_MS))).toBe('expired');
    expect(await reasonOf(authority.verify(makeToken({ jti: 'j2' }), NOW_MS))).toBe('accepted');
  });

  test('the store of used ids has a bound, at which nobody new gets in until old ones have expired', () => {
    const ids = new UsedTokenIds(3);
    for (const id of ['a', 'b', 'c']) expect(ids.use(null, id, 10_000, 0)).toBe('first');
    expect(ids.use(null, 'd', 20_000, 5_000)).toBe('full');
    expect(ids.use(null, 'a', 20_000, 5_000)).toBe('used');
    expect(ids.use(null, 'd', 20_000, 10_000)).toBe('first');
    expect(ids.size).toBe(1);
    expect(ids.use(null, 'a', 20_000, 10_000)).toBe('first');
    expect(USED_TOKEN_IDS_MAX).toBe(100_000);
  });
});

describe('issuers over the network', () => {
  const now = (): number => Date.now();

  test('discovery over https with a private CA: document, keys, login', async () => {
    const ca = makeCertificate({ name: 'ca', authority: true });
    const { cert, key } = makeCertificate({ name: '127.0.0.1', issuer: ca });
    const issuer = await issuerOf({ tls: { cert, key } });
    const row = makeIssuer(issuer.url, { discovery: true, caFile: await file('ca.pem', ca.cert) });
    const config = makeConfig({ issuers: [row], turnstile: { allowHttpIssuers: 'never' } });
    const authority = await open(config);
    const { role, facts } = await authority.verify(await issuer.mint({ subject: 'alice' }), now());
    expect([role, facts.source]).toEqual(['alice', issuer.url]);
    expect([issuer.discoveryRequests, issuer.requests]).toEqual([1, 1]);
  });

  test.each<[string, boolean, string]>([
    ['no CA of ours', false, '127.0.0.1'],
    ['a certificate for another host', true, 'other.example'],
  ])('%s: no keys, and no way around it', async (_what, trusted, name) => {
    const ca = makeCertificate({ name: 'ca', authority: true });
    const { cert, key } = makeCertificate({ name, issuer: ca });
    const issuer = await issuerOf({ tls: { cert, key } });
    const caFile = trusted ? await file('ca.pem', ca.cert) : null;
    const faults: string[] = [];
    const config = makeConfig({ issuers: [makeIssuer(issuer.url, { jwksUrl: issuer.jwksUrl, caFile })] });
    const authority = await open(config, {
      onJwksEvent: (_issuer, event) => event.type === 'fetch_failed' && faults.push(event.message),
    });
    const token = await issuer.mint({ subject: 'alice' });
    await expect(authority.verify(token, now())).rejects.toMatchObject({ kind: 'keys_unavailable' });
    expect(faults[0]).toMatch(/cannot be reached \((UNABLE_TO|ERR_TLS|SELF_SIGNED|DEPTH)/);
    expect(issuer.requests).toBe(0);
  });

  test.each<[string, Record<string, unknown>, RegExp]>([
    ['another issuer', { issuer: 'http://127.0.0.1' }, /its issuer differs/],
    ['an issuer with a slash more', { issuer: 'SLASH' }, /its issuer differs/],
    ['no issuer', { issuer: undefined }, /its issuer differs/],
    ['an issuer that is a list', { issuer: ['x'] }, /its issuer differs/],
    ['no jwks_uri', { jwks_uri: undefined }, /missing or not allowed/],
    ['a jwks_uri that is a file', { jwks_uri: 'file:///etc/passwd' }, /missing or not allowed/],
    [
      'a jwks_uri in the clear elsewhere',
      { jwks_uri: 'http://169.254.169.254/keys' },
      /missing or not allowed/,
    ],
    ['a jwks_uri on another port', { jwks_uri: 'http://127.0.0.1:1/keys' }, /another origin/],
    ['a jwks_uri on another host', { jwks_uri: 'https://keys.example/keys' }, /another origin/],
    ['a jwks_uri with a password', { jwks_uri: 'https://u:p@keys.example/keys' }, /missing or not allowed/],
  ])('a discovery document with %s is refused', async (_what, members, fault) => {
    const issuer = await issuerOf();
    issuer.setDiscovery(members['issuer'] === 'SLASH' ? { issuer: `${issuer.url}/` } : members);
    const faults: string[] = [];
    const authority = await open(makeConfig({ issuers: [makeIssuer(issuer.url, { discovery: true })] }), {
      onJwksEvent: (_issuer, event) => event.type === 'fetch_failed' && faults.push(event.message),
    });
    const token = await issuer.mint({ subject: 'alice' });
    await expect(authority.verify(token, now())).rejects.toMatchObject({ kind: 'keys_unavailable' });
    expect(faults[0]).toMatch(fault);
    expect([issuer.discoveryRequests, issuer.requests]).toEqual([1, 0]);
  });

  test('jwks_origins lets the document point there', async () => {
    const [issuer, keys] = [await issuerOf(), await issuerOf()];
    issuer.setDiscovery({ jwks_uri: keys.jwksUrl });
    const row = makeIssuer(issuer.url, { discovery: true, jwksOrigins: [`${keys.url}/any/path`] });
    const authority = await open(makeConfig({ issuers: [row] }));
    const token = await keys.mint({ subject: 'alice', claims: { iss: issuer.url } });
    expect((await authority.verify(token, now())).role).toBe('alice');
  });

  test('one that hangs holds up neither another nor a file, and is asked once for a thousand logins', async () => {
    const [hanging, healthy] = [await issuerOf(), await issuerOf()];
    hanging.setBehaviour('hang');
    const issuers = [hanging, healthy].map((one) => makeIssuer(one.url, { jwksUrl: one.jwksUrl }));
    const authority = await open(makeConfig({ issuers }));
    const bad = await hanging.mint({ subject: 'alice' });
    const waiting = Array.from({ length: 1_000 }, () => authority.verify(bad, now()));
    const outcomes = Promise.allSettled(waiting);
    const good = await healthy.mint({ subject: 'bob' });
    expect((await authority.verify(good, now())).role).toBe('bob');
    expect(authority.load).toBe(1_000);
    // The bound is that issuer's own.
    const more = Array.from({ length: 100 }, () => authority.verify(bad, now()));
    const refused = (await Promise.allSettled(more.slice(24))).map(
      (result) => result.status === 'rejected' && result.reason.kind,
    );
    expect(new Set(refused)).toEqual(new Set(['overloaded']));
    expect((await authority.verify(await healthy.mint({ subject: 'carol' }), now())).role).toBe('carol');
    authority.stop();
    const reasons = (await outcomes).map((result) => result.status === 'rejected' && result.reason.reason);
    expect(new Set(reasons)).toEqual(new Set(['keys_unavailable']));
    await Promise.allSettled(more);
    expect(hanging.requests).toBe(1);
  });

  test('a key that the issuer has withdrawn is seen without a login, and its sessions are told', async () => {
    const issuer = await issuerOf();
    const row = makeIssuer(issuer.url, { jwksUrl: issuer.jwksUrl, jwksCacheTtlSeconds: 1 });
    const authority = await open(makeConfig({ issuers: [row] }));
    const old = await authority.verify(await issuer.mint({ subject: 'alice' }), now());
    let changes = 0;
    authority.onChange(() => changes++);
    await issuer.rotate();
    await expect.poll(() => changes, { timeout: 5_000 }).toBe(1);
    expect(authority.standing(old.facts)).toBe('good');
    issuer.withdraw('key-1');
    await expect.poll(() => changes, { timeout: 5_000 }).toBe(2);
    expect(authority.standing(old.facts)).toBe('key_removed');
    issuer.setBehaviour('down');
    const { requests } = issuer;
    await expect.poll(() => issuer.requests, { timeout: 5_000 }).toBeGreaterThan(requests);
    expect(authority.standing(old.facts)).toBe('key_removed');
    expect(changes).toBe(2);
  });

  test('a stopped authority asks nobody any more', async () => {
    const issuer = await issuerOf();
    const row = makeIssuer(issuer.url, { jwksUrl: issuer.jwksUrl });
    const authority = await open(makeConfig({ issuers: [row] }));
    authority.stop();
    await authority.poll();
    expect(await reasonOf(authority.verify(await issuer.mint({ subject: 'a' }), now()))).toBe(
      'keys_unavailable',
    );
    expect(issuer.requests).toBeLessThanOrEqual(1);
  });

  test('allow_missing_kid serves a token without kid while the issuer has one key, and not with two', async () => {
    const noKid = signParts({ alg: 'RS256' }, { sub: 'alice', iss: A, exp: NOW_SECONDS + 9 });
    const jwks = (...keys: unknown[]): string => JSON.stringify({ keys });
    const one = toJwk(rsa.publicKey, { kid: 'k1' });
    for (const [text, allowed, reason] of [
      [jwks(one), false, 'unknown_kid'],
      [jwks(one), true, 'accepted'],
      [jwks(toJwk(rsa.publicKey)), true, 'accepted'],
      [jwks(one, toJwk(otherRsa.publicKey, { kid: 'k2' })), true, 'ambiguous_key'],
      [jwks(one, toJwk(otherRsa.publicKey)), true, 'ambiguous_key'],
    ] as const) {
      const jwksFile = await file('keys.json', text);
      const config = makeConfig({
        issuers: [makeIssuer(A, { jwksFile })],
        turnstile: { allowMissingKid: allowed },
      });
      expect(await reasonOf((await open(config)).verify(noKid, NOW_MS))).toBe(reason);
    }
  });
});

describe('what is open in a configuration', () => {
  const insecure = async (config: Config): Promise<string[]> => (await open(config)).insecureReasons();
  test('nothing pinned, one thing after the other', async () => {
    const publicKeyFile = await file('a.pem', toPem(rsa.publicKey));
    const jwt = { publicKeyFile };
    expect(await insecure(makeConfig({ jwt }))).toEqual(['any_issuer', 'any_audience']);
    expect(
      await insecure(makeConfig({ jwt: { publicKeyFile, audience: 'db' }, databases: ['a', 'b'] })),
    ).toEqual(['any_issuer', 'any_database']);
    const pinned = { jwtIssuer: A, databaseClaimRequired: true };
    expect(
      await insecure(
        makeConfig({ jwt: { ...jwt, audience: 'db' }, databases: ['a', 'b'], turnstile: pinned }),
      ),
    ).toEqual([]);
    expect(
      await insecure(
        makeConfig({ jwt: { ...jwt, audience: 'db', usernameClaim: 'email' }, turnstile: pinned }),
      ),
    ).toEqual(['unverified_email']);
    const row = makeIssuer(A, { publicKeyFile, audiences: ['db'] });
    expect(await insecure(makeConfig({ issuers: [row] }))).toEqual([]);
    expect(await insecure(makeConfig({ issuers: [row], databases: ['a', 'b'] }))).toEqual(['any_database']);
    expect(
      await insecure(makeConfig({ issuers: [{ ...row, databases: ['a'] }], databases: ['a', 'b'] })),
    ).toEqual([]);
  });
});
