/** The attack list on tokens: form, header, claims, clock. Each case says what the attacker hopes for. */
import { createHmac, generateKeyPairSync } from 'node:crypto';
import { inspect } from 'node:util';
import { describe, expect, test } from 'vitest';
import { claimAt } from '../../src/auth/claim-path.ts';
import { fingerprintOf, TOKEN_ALGORITHMS } from '../../src/auth/key-source.ts';
import { TOKEN_BYTES_MAX } from '../../src/auth/token-form.ts';
import { TokenRejected } from '../../src/auth/token-rejected.ts';
import type { TokenRules } from '../../src/auth/token-rules.ts';
import {
  KEYS_WAITING_MAX,
  VERIFICATIONS_MAX,
  VERIFICATIONS_WAITING_MAX,
  VERIFIED_BYTES_MAX,
} from '../../src/auth/token-verifier.ts';
import { JWT_ALGORITHMS } from '../../src/config/schema.ts';
import {
  countingSource,
  ed25519,
  encode,
  goodClaims,
  makeToken,
  makeVerifier,
  NOW_MS,
  NOW_SECONDS,
  otherRsa,
  p256,
  rsa,
  signParts,
  toJwk,
  toPem,
} from './support.ts';

async function rejectionOf(
  token: string,
  more: Partial<TokenRules> = {},
  keys = countingSource(),
  nowMs: number = NOW_MS,
): Promise<TokenRejected> {
  const verifier = makeVerifier(more, keys);
  const error: unknown = await verifier.verify(token, nowMs).then(
    () => null,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(TokenRejected);
  const rejection = error as TokenRejected;
  // Nothing of the token may travel with the error, however it is printed.
  const printed = inspect(rejection, { depth: 10 }) + JSON.stringify(rejection) + String(rejection.stack);
  for (const part of token.split('.')) if (part.length > 12) expect(printed).not.toContain(part);
  expect(printed).not.toContain('alice');
  expect(rejection.cause).toBeUndefined();
  expect(verifier.load).toBe(0);
  return rejection;
}

const accept = (token: string, more: Partial<TokenRules> = {}, nowMs: number = NOW_MS) =>
  makeVerifier(more).verify(token, nowMs);

const good = makeToken();
const [h, p, s] = good.split('.') as [string, string, string];
/** The last character of a 256-byte signature carries four unused bits; this sets one. */
const strayBit = ((): string => {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  return good.slice(0, -1) + alphabet[alphabet.indexOf(good.at(-1)!) | 1];
})();
const nested = (depth: number): string => '['.repeat(depth) + ']'.repeat(depth);

describe('the form of a token is judged before any key is asked for', () => {
  const cases: [string, string, string][] = [
    ['an empty password', '', 'empty_token'],
    ['a plain password', 'not-a-jwt', 'not_jwt'],
    ['two parts', `${h}.${p}`, 'malformed'],
    ['four parts', `${good}.x`, 'malformed'],
    ['five parts, as an encrypted token has', `${good}.x.y`, 'malformed'],
    ['16,000 parts', '.'.repeat(16_000), 'malformed'],
    ['an empty header', `.${p}.${s}`, 'malformed'],
    ['an empty payload', `${h}..${s}`, 'malformed'],
    ['an empty signature', `${h}.${p}.`, 'malformed'],
    ['a leading space', ` ${good}`, 'non_canonical'],
    ['a Bearer prefix', `Bearer ${good}`, 'non_canonical'],
    ['a trailing line break, which jose takes', `${good}\n`, 'non_canonical'],
    ['padding, which jose takes', `${good}==`, 'non_canonical'],
    ['a second spelling of the last character, which jose takes', strayBit, 'non_canonical'],
    ['the other base64 alphabet', `${h}.${p}.${'+/'.repeat(171)}`, 'non_canonical'],
    ['a part of an impossible length', `${h}.${p}.AAAAA`, 'non_canonical'],
    ['letters beyond ASCII', `${h}.${p}.é`, 'non_canonical'],
    ['a NUL', `${good}\0`, 'non_canonical'],
    ['a header that is no JSON', signParts('{"alg":"RS256"', goodClaims), 'malformed'],
    ['a header that is an array', signParts(['RS256'], goodClaims), 'malformed'],
    ['a header that is null', signParts('null', goodClaims), 'malformed'],
    ['a header with a byte order mark', signParts('\ufeff{"alg":"RS256"}', goodClaims), 'malformed'],
    ['a header nested 4,000 deep', signParts(nested(4_000), goodClaims), 'too_deep'],
    [
      'a header nested 1,600 deep that never closes',
      signParts('{"a":'.repeat(1_600), goodClaims),
      'too_deep',
    ],
    ['a payload nested 33 deep', signParts({ alg: 'RS256' }, `{"a":${nested(32)}}`), 'too_deep'],
    ['a payload that is an array', signParts({ alg: 'RS256' }, [goodClaims]), 'malformed'],
    ['a payload that is a string', signParts({ alg: 'RS256' }, '"alice"'), 'malformed'],
    ['a header of 8 KiB and one byte', makeToken({}, { x: 'a'.repeat(8_193) }), 'header_too_large'],
    [
      'a payload with sub twice',
      signParts({ alg: 'RS256' }, '{"sub":"a","exp":1,"sub":"b"}'),
      'duplicate_member',
    ],
    [
      'a payload with sub twice, once spelled by an escape',
      signParts({ alg: 'RS256' }, '{"sub":"a","s\\u0075b":"b"}'),
      'duplicate_member',
    ],
    [
      'a nested claim twice',
      signParts({ alg: 'RS256' }, '{"x":[{"role":"a","role" :"b"}]}'),
      'duplicate_member',
    ],
    ['a header with alg twice', signParts('{"alg":"none","alg":"RS256"}', goodClaims), 'duplicate_member'],
  ];
  test.each(cases)('%s is refused', async (_what, token, reason) => {
    const keys = countingSource();
    expect((await rejectionOf(token, {}, keys)).reason).toBe(reason);
    expect(keys.asked).toBe(0);
  });

  test('bytes that are not UTF-8 are refused in header and payload', async () => {
    const bad = Buffer.from([0x7b, 0xff, 0x7d]).toString('base64url');
    expect((await rejectionOf(`${bad}.${p}.${s}`)).reason).toBe('malformed');
    expect((await rejectionOf(`${h}.${bad}.${s}`)).reason).toBe('malformed');
  });

  test('a token of exactly 16 KiB is accepted and one byte more is not', async () => {
    const make = (fill: number): string => makeToken({ fill: 'x'.repeat(fill) });
    let fill = 11_500;
    while (make(fill + 1).length <= TOKEN_BYTES_MAX) fill++;
    const largest = make(fill);
    expect(TOKEN_BYTES_MAX - largest.length).toBeLessThan(4);
    await expect(accept(largest)).resolves.toMatchObject({ role: 'alice' });
    expect((await rejectionOf('a'.repeat(TOKEN_BYTES_MAX + 1))).reason).toBe('too_large');
    expect((await rejectionOf('a'.repeat(TOKEN_BYTES_MAX))).reason).toBe('not_jwt');
    expect((await rejectionOf('é'.repeat(TOKEN_BYTES_MAX / 2 + 1))).reason).toBe('too_large');
  });

  test('a member name inside a string value, or equal names in different objects, are no duplicates', async () => {
    const payload = `{"x":"{\\"sub\\":1,\\"sub\\":2}","b":{"sub":1},"c":[{"sub":1},{"sub":2}],"sub":"alice","exp":${NOW_SECONDS + 9}}`;
    await expect(accept(signParts({ alg: 'RS256' }, payload))).resolves.toMatchObject({ role: 'alice' });
  });
});

describe('tricks with the header', () => {
  const hs256 = (secret: string): string => {
    const input = `${encode({ alg: 'HS256', kid: 'k1' })}.${encode(goodClaims)}`;
    return `${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`;
  };
  const refusedEarly: [string, string, string][] = [
    ['alg none with a signature part', makeToken({}, { alg: 'none' }), 'alg_not_allowed'],
    ['alg nOnE', makeToken({}, { alg: 'nOnE' }), 'alg_not_allowed'],
    ['no alg at all', signParts({ kid: 'k1' }, goodClaims), 'alg_not_allowed'],
    ['alg as a number', makeToken({}, { alg: 256 }), 'alg_not_allowed'],
    ['alg as an array', makeToken({}, { alg: ['RS256'] }), 'alg_not_allowed'],
    ['HS256 with the public key as its secret', hs256(toPem(rsa.publicKey)), 'alg_not_allowed'],
    ['RS512 when only RS256 is allowed', makeToken({}, { alg: 'RS512' }), 'alg_not_allowed'],
    ['PS256 when only RS256 is allowed', makeToken({}, { alg: 'PS256' }), 'alg_not_allowed'],
    ['ES384 when only ES256 is allowed', makeToken({}, { alg: 'ES384' }), 'alg_not_allowed'],
    ['crit with a known name', makeToken({}, { crit: ['exp'] }), 'unexpected_header'],
    ['crit empty', makeToken({}, { crit: [] }), 'unexpected_header'],
    ['crit of a wrong type', makeToken({}, { crit: 'exp' }), 'unexpected_header'],
    ['b64 false with crit', makeToken({}, { b64: false, crit: ['b64'] }), 'unexpected_header'],
    ['b64 true alone', makeToken({}, { b64: true }), 'unexpected_header'],
    ['zip, which jose ignores', makeToken({}, { zip: 'DEF' }), 'unexpected_header'],
    ['cty JWT, a token in a token', makeToken({}, { cty: 'JWT' }), 'unexpected_header'],
    ['enc, the mark of encryption', makeToken({}, { enc: 'A256GCM' }), 'unexpected_header'],
    ['kid as a number', makeToken({}, { kid: 1 }), 'unexpected_header'],
    ['typ as an object', makeToken({}, { typ: {} }), 'unexpected_header'],
    ['a kid of 257 characters', makeToken({}, { kid: 'k'.repeat(257) }), 'unknown_kid'],
  ];
  test.each(refusedEarly)('%s is refused without asking for a key', async (_what, token, reason) => {
    const keys = countingSource();
    expect((await rejectionOf(token, {}, keys)).reason).toBe(reason);
    expect(keys.asked).toBe(0);
  });

  test.each(['jku', 'x5u'])('%s is ignored: good with our key, nothing with the attacker’s', async (name) => {
    const header = { [name]: 'https://attacker.example/keys' };
    await expect(accept(makeToken({}, header))).resolves.toMatchObject({ role: 'alice' });
    expect((await rejectionOf(makeToken({}, header, otherRsa.privateKey))).reason).toBe('bad_signature');
  });

  test.each([
    ['jwk', { jwk: toJwk(otherRsa.publicKey) }],
    ['x5c', { x5c: ['MIIB'] }],
    ['x5t', { x5t: 'AAAA' }],
  ])('a key that travels in the token as %s is ignored', async (_name, header) => {
    await expect(accept(makeToken({}, header))).resolves.toMatchObject({ role: 'alice' });
    expect((await rejectionOf(makeToken({}, header, otherRsa.privateKey))).reason).toBe('bad_signature');
  });

  test('an algorithm that does not fit the key is refused before the signature is looked at', async () => {
    const es256 = signParts({ alg: 'ES256' }, goodClaims, p256.privateKey);
    expect((await rejectionOf(es256)).reason).toBe('key_alg_mismatch');
    expect((await rejectionOf(es256, {}, countingSource(ed25519.publicKey))).reason).toBe('key_alg_mismatch');
  });

  test('RSA, P-256 and Ed25519 signatures are accepted by their keys', async () => {
    for (const [alg, pair] of [
      ['ES256', p256],
      ['EdDSA', ed25519],
    ] as const) {
      const verifier = makeVerifier({}, countingSource(pair.publicKey));
      const token = signParts({ alg }, goodClaims, pair.privateKey);
      await expect(verifier.verify(token, NOW_MS)).resolves.toMatchObject({ facts: { algorithm: alg } });
    }
    await expect(accept(good)).resolves.toMatchObject({ facts: { algorithm: 'RS256', keyId: 'k1' } });
  });

  test('an RSA key that jose dislikes by a TypeError is a refusal and not a crash', async () => {
    const small = generateKeyPairSync('rsa', { modulusLength: 1024 });
    const rejection = await rejectionOf(
      makeToken({}, {}, small.privateKey),
      {},
      countingSource(small.publicKey),
    );
    expect(rejection).toMatchObject({ reason: 'verifier_failed', kind: 'invalid' });
  });

  test('each altered part breaks the signature', async () => {
    const forged = encode({ ...goodClaims, sub: 'admin2' });
    expect((await rejectionOf(`${h}.${forged}.${s}`)).reason).toBe('bad_signature');
    expect((await rejectionOf(`${encode({ alg: 'RS256', kid: 'k2' })}.${p}.${s}`)).reason).toBe(
      'bad_signature',
    );
    expect((await rejectionOf(`${h}.${p}.${encode('short')}`)).reason).toBe('bad_signature');
  });

  test('what the header says of itself reaches the log escaped and cut', async () => {
    const rejection = await rejectionOf(
      makeToken({}, { kid: `../../etc/passwd\r\n\u001b[31m${'x'.repeat(100)}` }, otherRsa.privateKey),
    );
    expect(rejection.keyId).toMatch(/^\.\.\/\.\.\/etc\/passwd\\u\{d\}\\u\{a\}\\u\{1b\}\[31mx+…$/);
    expect(rejection.algorithm).toBe('RS256');
  });

  test('what jwt_algorithms may name is what the keys can verify', () => {
    expect([...JWT_ALGORITHMS].sort()).toEqual([...TOKEN_ALGORITHMS].sort());
  });

  test('an HMAC algorithm in the allow-list is a fault of the configuration', () => {
    expect(() => makeVerifier({ algorithms: ['RS256', 'HS256'] })).toThrow(RangeError);
  });
});

describe('claims and clock', () => {
  const raw = (text: string): string => signParts({ alg: 'RS256' }, text);
  const refused: [string, string, string, Partial<TokenRules>?][] = [
    ['no exp', makeToken({ exp: undefined }), 'exp_missing'],
    ['exp as a string', makeToken({ exp: String(NOW_SECONDS + 9) }), 'bad_exp'],
    ['exp null', makeToken({ exp: null }), 'bad_exp'],
    ['exp true', makeToken({ exp: true }), 'bad_exp'],
    ['exp 1e999, which reads as for ever', raw('{"sub":"alice","exp":1e999}'), 'exp_out_of_range'],
    ['exp past the end of time', makeToken({ exp: 8.64e12 + 1 }), 'exp_out_of_range'],
    ['exp -1e999', raw('{"sub":"alice","exp":-1e999}'), 'exp_out_of_range'],
    ['exp only by inheritance', raw('{"sub":"alice","__proto__":{"exp":9999999999}}'), 'exp_missing'],
    ['exp = now', makeToken({ exp: NOW_SECONDS }), 'expired'],
    ['exp a long time ago', makeToken({ exp: 1 }), 'expired'],
    ['exp = now - leeway', makeToken({ exp: NOW_SECONDS - 30 }), 'expired', { leewaySeconds: 30 }],
    ['nbf one second ahead', makeToken({ nbf: NOW_SECONDS + 1 }), 'not_yet_valid'],
    ['nbf far ahead', makeToken({ nbf: NOW_SECONDS + 100 }), 'not_yet_valid'],
    ['nbf past the leeway', makeToken({ nbf: NOW_SECONDS + 31 }), 'not_yet_valid', { leewaySeconds: 30 }],
    ['nbf as a string', makeToken({ nbf: '0' }), 'bad_nbf'],
    ['nbf -1e999', raw(`{"sub":"alice","exp":${NOW_SECONDS + 9},"nbf":-1e999}`), 'bad_nbf'],
    ['iat one second ahead, which jose takes', makeToken({ iat: NOW_SECONDS + 1 }), 'iat_in_future'],
    ['iat as a string', makeToken({ iat: 'now' }), 'bad_iat'],
    ['iat 1e999', raw(`{"sub":"alice","exp":${NOW_SECONDS + 9},"iat":1e999}`), 'bad_iat'],
    ['no sub', makeToken({ sub: undefined }), 'bad_role_claim'],
    ['sub empty', makeToken({ sub: '' }), 'bad_role_claim'],
    ['sub null, which must not become the role "null"', makeToken({ sub: null }), 'bad_role_claim'],
    ['sub as a number', makeToken({ sub: 7 }), 'bad_role_claim'],
    ['sub as an array', makeToken({ sub: ['alice'] }), 'bad_role_claim'],
    ['sub as an object', makeToken({ sub: { name: 'alice' } }), 'bad_role_claim'],
    ['sub with a NUL', makeToken({ sub: 'alice\0' }), 'bad_role_claim'],
    ['sub with half a surrogate pair', raw(`{"sub":"\\ud800","exp":${NOW_SECONDS + 9}}`), 'bad_role_claim'],
    ['aud missing though one is asked for', makeToken(), 'bad_audience', { audiences: ['db'] }],
    ['aud as a number', makeToken({ aud: 5 }), 'bad_audience', { audiences: ['db'] }],
    ['aud as an object', makeToken({ aud: {} }), 'bad_audience', { audiences: ['db'] }],
    ['aud null', makeToken({ aud: null }), 'bad_audience', { audiences: ['db'] }],
    ['aud as an empty list', makeToken({ aud: [] }), 'bad_audience', { audiences: ['db'] }],
    ['aud with ours beside a null', makeToken({ aud: ['db', null] }), 'bad_audience', { audiences: ['db'] }],
    ['the audience of another database', makeToken({ aud: 'db2' }), 'bad_audience', { audiences: ['db'] }],
    ['the audience in other letters', makeToken({ aud: 'DB' }), 'bad_audience', { audiences: ['db'] }],
    ['a dotted path that ends early', makeToken({ a: {} }), 'bad_role_claim', { usernameClaim: 'a.role' }],
    ['a dotted path into an array', makeToken({ a: ['x'] }), 'bad_role_claim', { usernameClaim: 'a.0' }],
    ['a dotted path into a string', makeToken({ a: 'xy' }), 'bad_role_claim', { usernameClaim: 'a.length' }],
    [
      'a dotted path along the prototype',
      makeToken(),
      'bad_role_claim',
      { usernameClaim: 'constructor.name' },
    ],
  ];
  test.each(refused)('%s is refused', async (_what, token, reason, more = {}) => {
    expect(await rejectionOf(token, more)).toMatchObject({ reason, kind: 'invalid' });
  });

  const accepted: [string, string, Partial<TokenRules>?][] = [
    ['exp = now + 1', makeToken({ exp: NOW_SECONDS + 1 })],
    ['exp with a fraction', makeToken({ exp: NOW_SECONDS + 0.5 })],
    ['exp = now - leeway + 1', makeToken({ exp: NOW_SECONDS - 29 }), { leewaySeconds: 30 }],
    ['nbf = now', makeToken({ nbf: NOW_SECONDS, iat: NOW_SECONDS })],
    [
      'nbf and iat within the leeway',
      makeToken({ nbf: NOW_SECONDS + 30, iat: NOW_SECONDS + 30 }),
      { leewaySeconds: 30 },
    ],
    ['aud as a string', makeToken({ aud: 'db' }), { audiences: ['db'] }],
    ['aud as a list with ours', makeToken({ aud: ['web', 'db'] }), { audiences: ['db'] }],
    ['any aud when none is asked for', makeToken({ aud: 5 })],
    ['typ at+jwt', makeToken({}, { typ: 'at+jwt' })],
    ['no kid, as far as the verifier is concerned', makeToken({}, { kid: undefined })],
    ['a claim at a dotted path', makeToken({ sub: 5, x: { b: 'alice' } }), { usernameClaim: 'x.b' }],
    [
      'a claim whose name is a URL',
      makeToken({ sub: 5, 'https://x.example/role': 'alice' }),
      { usernameClaim: 'https://x.example/role' },
    ],
  ];
  test.each(accepted)('%s is accepted', async (_what, token, more = {}) => {
    await expect(accept(token, more)).resolves.toMatchObject({ role: 'alice' });
  });

  test('a token with a fractional nbf serves from that millisecond on, and not one before', async () => {
    const token = makeToken({ nbf: NOW_SECONDS + 0.7, iat: NOW_SECONDS + 0.7 });
    await expect(accept(token, {}, NOW_MS + 700)).resolves.toMatchObject({ role: 'alice' });
    expect((await rejectionOf(token, {}, countingSource(), NOW_MS + 699)).reason).toBe('not_yet_valid');
    const ends = makeToken({ exp: NOW_SECONDS + 0.7 });
    await expect(accept(ends, {}, NOW_MS + 699)).resolves.toMatchObject({ role: 'alice' });
    expect((await rejectionOf(ends, {}, countingSource(), NOW_MS + 700)).reason).toBe('expired');
  });

  test('the facts are kept, in milliseconds; ones of a wrong type or size are left out', async () => {
    const { facts, role } = await accept(makeToken({ iss: 'https://idp', jti: 'j1', role: 'r' }), {
      usernameClaim: 'role',
    });
    expect(role).toBe('r');
    const claims = { sub: 'alice', exp: NOW_SECONDS + 300, iss: 'https://idp', jti: 'j1', role: 'r' };
    expect(facts).toEqual({
      source: null,
      issuer: 'https://idp',
      subject: 'alice',
      tokenId: 'j1',
      sessionId: null,
      keyId: 'k1',
      keyFingerprint: fingerprintOf(rsa.publicKey),
      algorithm: 'RS256',
      issuedAtMs: null,
      expiresAtMs: (NOW_SECONDS + 300) * 1_000,
      actor: null,
      subjectRole: null,
      claims,
      payload: JSON.stringify(claims),
    });
    const odd = await accept(makeToken({ iss: 5, jti: 'j'.repeat(1_025) }));
    expect(odd.facts).toMatchObject({ issuer: null, tokenId: null });
  });

  test('claimAt reads own members of objects only', () => {
    const claims: unknown = JSON.parse('{"__proto__":{"x":"y"},"a":{"b":"c"}}');
    expect(claimAt(claims as Record<string, unknown>, '__proto__.x')).toBe('y');
    expect(claimAt({}, '__proto__.constructor')).toBeUndefined();
    expect(claimAt({ a: null }, 'a.b')).toBeUndefined();
    expect(claimAt({ '': 'x' }, '')).toBe('x');
  });
});

describe('bounds', () => {
  test('a key source that fails in its own way gives "keys unavailable" and tells nothing', async () => {
    const keys = { ...countingSource(), keyFor: () => Promise.reject(new Error('alice said secret')) };
    expect(await rejectionOf(good, {}, keys)).toMatchObject({
      reason: 'keys_unavailable',
      kind: 'keys_unavailable',
    });
  });

  test('tokens past the bound of the waiting line are turned away, and those in line are served', async () => {
    const verifier = makeVerifier();
    const total = VERIFICATIONS_MAX + VERIFICATIONS_WAITING_MAX + 10;
    // Key look-ups are bounded as well, so the line is filled in two steps.
    const first = Array.from({ length: KEYS_WAITING_MAX }, () => verifier.verify(good, NOW_MS));
    const counted = Promise.allSettled(first);
    for (let turn = 0; turn < 5; turn++) await Promise.resolve();
    const second = Promise.allSettled(
      Array.from({ length: total - KEYS_WAITING_MAX }, () => verifier.verify(good, NOW_MS)),
    );
    const results = [...(await counted), ...(await second)];
    const refusals = results.filter((result) => result.status === 'rejected');
    expect(refusals).toHaveLength(10);
    for (const refusal of refusals) {
      expect(refusal.reason).toMatchObject({ reason: 'overloaded', kind: 'overloaded' });
    }
    expect(verifier.load).toBe(0);
  });

  test('tokens that wait for a key beyond the bound are turned away at once', async () => {
    let release: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    const fingerprint = fingerprintOf(rsa.publicKey);
    const key = { key: rsa.publicKey, keyId: null, fingerprint, description: '' };
    const keys = { ...countingSource(), keyFor: () => gate.then(() => key) };
    const verifier = makeVerifier({}, keys);
    const waiting = Array.from({ length: KEYS_WAITING_MAX }, () => verifier.verify(good, NOW_MS));
    await expect(verifier.verify(good, NOW_MS)).rejects.toMatchObject({ kind: 'overloaded' });
    expect(verifier.load).toBe(KEYS_WAITING_MAX);
    release();
    const results = await Promise.allSettled(waiting);
    expect(results.every((result) => result.status === 'fulfilled')).toBe(true);
    expect(verifier.load).toBe(0);
  });

  test('what is remembered of large tokens is bounded by their size, not by their number', async () => {
    const verifier = makeVerifier({}, countingSource(ed25519.publicKey));
    const fill = 'x'.repeat(12_000);
    const make = (index: number): string =>
      signParts({ alg: 'EdDSA' }, { ...goodClaims, index, fill }, ed25519.privateKey);
    const bytes = make(10).length;
    const most = Math.floor(VERIFIED_BYTES_MAX / bytes);
    const [first, second] = [make(10), make(11)];
    await verifier.verify(first, NOW_MS);
    await verifier.verify(second, NOW_MS);
    for (let index = 1_000; index < 1_000 + most + 10; index++) await verifier.verify(make(index), NOW_MS);
    expect(verifier.knownCount).toBeLessThanOrEqual(most);
    expect(verifier.knownCount).toBeGreaterThan(most * 0.9);
    expect(verifier.isVerified(first, NOW_MS)).toBe(false);
    expect(verifier.isVerified(make(1_000 + most + 9), NOW_MS)).toBe(true);
  });

  test('random damage to a good token is always a refusal (seed printed)', async () => {
    const seed = Date.now() % 1_000_000;
    console.log(`token damage seed ${seed}`);
    let state = seed;
    const random = (below: number): number => {
      state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
      return Math.floor((state / 2_147_483_648) * below);
    };
    for (let round = 0; round < 300; round++) {
      const characters = [...good];
      const index = random(characters.length);
      const character = String.fromCharCode(random(128));
      if (characters[index] === character) continue;
      characters[index] = character;
      await rejectionOf(characters.join(''));
    }
  });
});
