/** Claims as settings: which names there are, what each carries, and what the signature covers. */
import { createHmac } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import type { TokenFacts } from '../../src/auth/identity.ts';
import { Secret } from '../../src/base/secret.ts';
import {
  ClaimSettingSets,
  type ClaimSettings,
  claimSettingNames,
  claimSettingsOf,
  claimsMac,
} from '../../src/session/claim-settings.ts';

type ClaimsConfig = ConstructorParameters<typeof ClaimSettingSets>[0];

function configOf(
  rows: Record<string, string> = {},
  claimsSetting = 'request.jwt.claims',
  macKey: string | null = null,
): ClaimsConfig {
  return {
    claimSettings: Object.entries(rows).map(([setting, claim]) => ({ setting, claim })),
    turnstile: {
      claimsSetting,
      claimsMacKey: macKey === null ? null : new Secret(macKey),
      claimsMacKeyId: 'k1',
    },
  };
}

function tokenOf(claims: Record<string, unknown>, more: Partial<TokenFacts> = {}): TokenFacts {
  return {
    source: null,
    issuer: null,
    subject: 'alice',
    tokenId: null,
    sessionId: null,
    keyId: null,
    algorithm: 'ES256',
    issuedAtMs: null,
    expiresAtMs: 0,
    actor: null,
    subjectRole: null,
    claims,
    payload: JSON.stringify(claims),
    ...more,
  };
}

/** The values of a Bind in text format, by the names of the form. */
function valuesOf(settings: ClaimSettings, connection = CONNECTION): Record<string, string> {
  const bytes = settings.request(connection, true);
  expect(bytes.toString('latin1', 0, 1)).toBe('B');
  let at = bytes.indexOf(0, 5) + 1;
  at = bytes.indexOf(0, at) + 1;
  const formats = bytes.readUInt16BE(at);
  at += 2 + 2 * formats;
  const count = bytes.readUInt16BE(at);
  at += 2;
  expect(count).toBe(settings.form.names.length);
  const values: Record<string, string> = {};
  for (const name of settings.form.names) {
    const length = bytes.readInt32BE(at);
    const text = bytes.toString('latin1', at + 4, at + 4 + length);
    expect(text).toMatch(/^\\x(?:[0-9a-f]{2})*$/);
    values[name] = Buffer.from(text.slice(2), 'hex').toString('utf8');
    at += 4 + length;
  }
  return values;
}

const CONNECTION = { processId: 4711, backendStart: '1763800000123456' };

describe('the names', () => {
  test('are the whole payload, what older functions read before it, and who acts', () => {
    expect(claimSettingNames(configOf())).toEqual([
      'request.jwt.claims',
      'request.jwt.claim.sub',
      'request.jwt.claim.role',
      'request.jwt.claim.email',
      'request.jwt.actor',
      'request.jwt.subject',
    ]);
  });

  test('are in lower case, once each, and end with the signature where there is a key', () => {
    const names = claimSettingNames(configOf({ 'App.Tenant': 'a', 'app.tenant': 'b' }, 'App.Claims', 'key'));
    expect(names).toEqual([
      'app.claims',
      'app.tenant',
      'request.jwt.actor',
      'request.jwt.subject',
      'turnstile.mac',
    ]);
  });

  test('are none when nothing is to be sent, and none is signed without the payload', () => {
    expect(claimSettingNames(configOf({}, 'none', 'key'))).toEqual([]);
    expect(claimSettingsOf(tokenOf({}), configOf({}, 'none'))).toBeNull();
    expect(claimSettingNames(configOf({ 'app.a': 'a' }, 'none', 'key'))).not.toContain('turnstile.mac');
  });
});

describe('the values', () => {
  test.each<[string, unknown, string]>([
    ['text', 'x', 'x'],
    ['an integer', 42, '42'],
    ['a negative one', -1, '-1'],
    ['true', true, 'true'],
    ['false', false, 'false'],
    ['the largest integer that JSON keeps', Number.MAX_SAFE_INTEGER, '9007199254740991'],
    ['one that was rounded', 2 ** 53, ''],
    ['a fraction', 0.5, ''],
    ['null', null, ''],
    ['nothing', undefined, ''],
    ['a list', ['x'], ''],
    ['an object', { x: 1 }, ''],
    ['text with NUL', 'a\0b', ''],
    ['half a character', 'a\ud800', ''],
    ['a whole one', '\ud834\udd1e', '\ud834\udd1e'],
    ['a statement', "'); DROP TABLE x; --", "'); DROP TABLE x; --"],
  ])('of %s', (_, claim, expected) => {
    const settings = claimSettingsOf(tokenOf({ a: { b: claim } }), configOf({ 'app.value': 'a.b' }))!;
    expect(valuesOf(settings)['app.value']).toBe(expected);
  });

  test('are empty for every name that the token does not fill, so that nothing older is left', () => {
    const values = valuesOf(claimSettingsOf(tokenOf({}), configOf({ 'app.value': 'constructor' }))!);
    expect(values).toEqual({
      'request.jwt.claims': '{}',
      'app.value': '',
      'request.jwt.claim.sub': '',
      'request.jwt.claim.role': '',
      'request.jwt.claim.email': '',
      'request.jwt.actor': '',
      'request.jwt.subject': '',
    });
  });

  test('name actor and subject of a delegated token only', () => {
    const values = valuesOf(claimSettingsOf(tokenOf({}, { actor: 'robot' }), configOf())!);
    expect([values['request.jwt.actor'], values['request.jwt.subject']]).toEqual(['robot', 'alice']);
  });

  test('a configured row beats the older name of its setting', () => {
    const config = configOf({ 'request.jwt.claim.sub': 'sub' });
    expect(valuesOf(claimSettingsOf(tokenOf({ sub: 'x' }), config)!)['request.jwt.claim.sub']).toBe('x');
  });

  test('the payload is the same JSON in ASCII', () => {
    const claims = { city: 'Zürich ☃ 𝄞', more: '\\u00fc "' };
    const value = valuesOf(claimSettingsOf(tokenOf(claims), configOf())!)['request.jwt.claims']!;
    expect(value).toMatch(/^[\0-\x7f]*$/);
    expect(JSON.parse(value)).toEqual(claims);
  });
});

describe('the statement', () => {
  test('holds the names as literals and no value', () => {
    const { form } = claimSettingsOf(tokenOf({ t: 'canary' }), configOf({ "app.o'neill": 't' }))!;
    const text = form.parse.toString('latin1');
    expect(text).toContain(
      "pg_catalog.set_config('app.o''neill', pg_catalog.convert_from($2, 'UTF8'), false)",
    );
    expect(text).not.toContain('canary');
    expect(form.statementName).toMatch(/^turnstile_claims_[0-9a-f]{12}$/);
  });

  test('calls no function with more arguments than PostgreSQL takes', () => {
    const rows = Object.fromEntries(Array.from({ length: 250 }, (_, n) => [`app.c${n}`, 'c']));
    const { form } = claimSettingsOf(tokenOf({}), configOf(rows))!;
    const calls = form.parse.toString('latin1').split('num_nulls(').slice(1);
    expect(calls.map((call) => call.split('set_config(').length - 1)).toEqual([100, 100, 56]);
  });

  test('has another name when it is another statement', () => {
    const names = [
      configOf(),
      configOf({ 'app.a': 'a' }),
      configOf({ 'app.b': 'a' }),
      configOf({}, 'app.c', 'k'),
    ];
    const statements = names.map((config) => claimSettingsOf(tokenOf({}), config)!.form.statementName);
    expect(new Set(statements).size).toBe(4);
  });
});

describe('one object', () => {
  test('serves all sessions of equal tokens, and no other', () => {
    const sets = new ClaimSettingSets(configOf({ 'app.t': 't' }));
    const one = sets.of(tokenOf({ t: 'x' }));
    expect(sets.of(tokenOf({ t: 'x' }))).toBe(one);
    expect(sets.of(tokenOf({ t: 'y' }))).not.toBe(one);
    expect(sets.of(tokenOf({ t: 'x' }, { actor: 'robot' }))).not.toBe(one);
  });

  test('serves the logins of one token however many others came between', () => {
    const sets = new ClaimSettingSets(configOf({ 'app.t': 't' }));
    const facts = tokenOf({ t: 'x' });
    const one = sets.of(facts);
    for (let index = 0; index < 2_100; index++) sets.of(tokenOf({ t: `other ${index}` }));
    expect(sets.of(facts)).toBe(one);
  });

  test('is not taken for another whose values only join to the same text', () => {
    const sets = new ClaimSettingSets(configOf({ 'app.a': 'a', 'app.b': 'b' }, 'none'));
    const one = sets.of(tokenOf({ a: 'x', b: 'yz' }, { payload: '{}' }));
    expect(sets.of(tokenOf({ a: 'xy', b: 'z' }, { payload: '{}' }))).not.toBe(one);
  });

  test('unsigned sends the same bytes everywhere; signed others on each connection', () => {
    const plain = claimSettingsOf(tokenOf({}), configOf())!;
    expect(plain.request(CONNECTION, true)).toBe(plain.request({ ...CONNECTION, processId: 1 }, true));
    const signed = claimSettingsOf(tokenOf({ a: 1 }), configOf({}, 'request.jwt.claims', 'key'))!;
    const macs = [CONNECTION, { ...CONNECTION, processId: 1 }, { ...CONNECTION, backendStart: '1' }].map(
      (connection) => valuesOf(signed, connection)['turnstile.mac'],
    );
    expect(new Set(macs).size).toBe(3);
    const expected = createHmac('sha256', 'key').update('4711:1763800000123456|{"a":1}').digest('hex');
    expect(macs[0]).toBe(`k1.${expected}`);
    expect(claimsMac(new Secret('key'), CONNECTION, '{"a":1}')).toBe(expected);
  });

  test('prints no claim', () => {
    const settings = claimSettingsOf(
      tokenOf({ a: 'canary' }),
      configOf({}, 'request.jwt.claims', 'the-key'),
    )!;
    expect(JSON.stringify(settings)).not.toMatch(/canary|the-key|63616e617279/);
  });
});
