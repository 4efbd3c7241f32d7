/**
 * Tokens that lie about their form, their header, their claims or their time, tried one by one at a pooler with two
 * issuers and two databases. Each row says what the client must see; what else must hold of every refusal (one
 * sentence for all bad tokens, one line in the log, no trace of a claim, no pool, no server connection) is checked
 * for each by `expectOutcome`.
 */
import { createHmac, generateKeyPairSync } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encode, otherRsa, p256, rsa, signParts, toPem } from '../test/auth/support.ts';
import {
  type AttackWorld,
  AUDIENCE,
  badToken,
  deniedDatabase,
  entersAs,
  expectOutcome,
  makeAttackWorld,
  type Outcome,
  refusedRole,
} from './support/attacks.ts';
import {
  cleanUp,
  expectNoSecrets,
  type LoginPooler,
  secretToken,
  type Table,
} from './support/login-support.ts';

let world: AttackWorld;
let pooler: LoginPooler;
beforeAll(async () => {
  world = await makeAttackWorld();
  pooler = await world.start();
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
});

const nowSeconds = (): number => Math.floor(Date.now() / 1000);
const changePart = (token: string, index: number, text: string): string =>
  token
    .split('.')
    .map((part, at) => (at === index ? text : part))
    .join('.');

/** The claims of a good token as JSON text, to be signed after a change that no serializer would make. */
function signText(change: (text: string) => string, header: Table = {}): string {
  const now = nowSeconds();
  const claims = { iss: world.issuerA, sub: world.alice, aud: AUDIENCE, iat: now, exp: now + 300 };
  return secretToken(
    signParts({ alg: 'RS256', kid: 'a1', ...header }, change(JSON.stringify(claims)), rsa.privateKey),
  );
}

/** The last character with a bit set that no decoder looks at: another spelling of the same signature. */
function withStrayBits(token: string): string {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  const last = alphabet.indexOf(token.at(-1)!);
  return token.slice(0, -1) + alphabet[last ^ 1];
}

function hmacToken(): string {
  const input = `${encode({ alg: 'HS256', kid: 'a1' })}.${encode({ sub: world.alice, iss: world.issuerA, aud: AUDIENCE, exp: nowSeconds() + 300 })}`;
  // The classic mix-up: the public key's text as the secret of an HMAC.
  const signature = createHmac('sha256', toPem(rsa.publicKey)).update(input).digest('base64url');
  return secretToken(`${input}.${signature}`);
}

type Case = [name: string, secret: () => string, outcome?: () => Outcome];
const alice = (): Outcome => badToken(world.alice);
const isIn = (): Outcome => entersAs(world.alice);

function run(name: string, cases: readonly Case[], options: { noNetwork?: boolean } = {}): void {
  describe(name, () => {
    test.each(cases)('%s', async (_name, secret, outcome = alice) => {
      const attempt = {
        user: world.alice,
        database: world.database,
        secret: secretToken(secret()),
        ...options,
      };
      await expectOutcome(pooler, world, attempt, outcome());
    });
  });
}

run(
  'the form of a token: refused before any key is looked for',
  [
    ['an empty password', () => ''],
    ['a word that is no token', () => 'not-a-jwt'],
    ['two parts', () => world.token().split('.').slice(0, 2).join('.')],
    ['four parts', () => `${world.token()}.x`],
    ['five parts, as an encrypted token has', () => `${world.token()}.x.y`],
    ['an empty header', () => changePart(world.token(), 0, '')],
    ['an empty payload', () => changePart(world.token(), 1, '')],
    ['an empty signature', () => changePart(world.token(), 2, '')],
    ['a space in front', () => ` ${world.token()}`],
    ['the word Bearer in front', () => `Bearer ${world.token()}`],
    ['a line end behind, which a lenient decoder skips', () => `${world.token()}\n`],
    ['padding behind the signature', () => `${world.token()}==`],
    [
      'stray bits in the last character: a second spelling of a known token',
      () => withStrayBits(world.token()),
    ],
    ['the alphabet with + and /', () => changePart(world.token(), 2, '+/+/')],
    ['a header that is no JSON', () => changePart(world.token(), 0, encode('{'))],
    ['a header that is a list', () => changePart(world.token(), 0, encode([{ alg: 'RS256' }]))],
    [
      'a header nested ten thousand deep',
      () => changePart(world.token(), 0, encode('['.repeat(5_000) + ']'.repeat(5_000))),
    ],
    [
      'a payload nested ten thousand deep',
      () => changePart(world.token(), 1, encode(`{"a":${'['.repeat(5_000)}${']'.repeat(5_000)}}`)),
    ],
    [
      'sub twice, of which a parser takes the last',
      () => signText((text) => text.replace('{', '{"sub":"postgres",')),
    ],
    ['one byte more than 16 KiB', () => `${world.token()}${'A'.repeat(16_385 - world.token().length)}`],
  ],
  { noNetwork: true },
);

describe('the size of a token', () => {
  test('16 KiB exactly is read', async () => {
    const bare = world.token({ pad: '' }).length;
    // Base64 grows by steps of four characters for three; the padding claim is tuned to the byte.
    let token = '';
    for (let length = Math.floor(((16_384 - bare) * 3) / 4); token.length < 16_383; length++) {
      token = world.token({ pad: 'x'.repeat(length) });
    }
    expect(token.length).toBeLessThanOrEqual(16_384);
    await expectOutcome(
      pooler,
      world,
      { user: world.alice, database: world.database, secret: token },
      isIn(),
    );
  });
});

run(
  'the header of a token: refused before any key is looked for',
  [
    ['alg none', () => signParts({ alg: 'none', kid: 'a1' }, { sub: world.alice })],
    ['alg nOnE', () => world.token({}, { alg: 'nOnE' })],
    ['no alg', () => world.token({}, { alg: undefined })],
    ['alg as a number', () => world.token({}, { alg: 256 })],
    ['alg as a list', () => world.token({}, { alg: ['RS256'] })],
    ['HS256 keyed by the public key', hmacToken],
    ['RS512, which is not on the list', () => world.token({}, { alg: 'RS512' })],
    ['PS256, which is not on the list', () => world.token({}, { alg: 'PS256' })],
    ['ES384, which is not on the list', () => world.token({}, { alg: 'ES384' })],
    ['crit that names a claim', () => world.token({}, { crit: ['exp'] })],
    ['crit that is empty', () => world.token({}, { crit: [] })],
    ['crit that is no list', () => world.token({}, { crit: 'exp' })],
    ['b64 false, named in crit', () => world.token({}, { crit: ['b64'], b64: false })],
    ['a compressed payload, which a library ignores', () => world.token({}, { zip: 'DEF' })],
    ['a token inside the token', () => world.token({}, { cty: 'JWT' })],
    ['an iss that nobody listed', () => world.token({ iss: 'http://127.0.0.1:1/x' })],
    ['no iss', () => world.token({ iss: undefined })],
    ['iss with a slash more', () => world.token({ iss: `${world.issuerA}/` })],
    ['iss in capitals', () => world.token({ iss: world.issuerA.toUpperCase() })],
    ['iss as a list', () => world.token({ iss: [world.issuerA] })],
    ['iss that only begins like ours', () => world.token({ iss: `${world.issuerA}.evil.example` })],
  ],
  { noNetwork: true },
);

run('the header of a token: keys come from the configuration alone', [
  [
    'a jku beside a good signature is not followed',
    () => world.token({}, { jku: world.keys.url('/evil') }),
    isIn,
  ],
  [
    'an x5u beside a good signature is not followed',
    () => world.token({}, { x5u: world.keys.url('/evil') }),
    isIn,
  ],
  ['a jku to the key that did sign', () => world.token({}, { jku: world.keys.url('/b/jwks') }, otherRsa)],
  [
    'the signing key itself in jwk',
    () => world.token({}, { jwk: otherRsa.publicKey.export({ format: 'jwk' }) }, otherRsa),
  ],
  ['a certificate chain in x5c', () => world.token({}, { x5c: [toPem(otherRsa.publicKey)] }, otherRsa)],
  ['no kid', () => world.token({}, { kid: undefined })],
  ['a path as kid', () => world.token({}, { kid: '../../etc/passwd' })],
  ['SQL as kid', () => world.token({}, { kid: "' OR 1=1 --" })],
  ['line ends and terminal codes in kid', () => world.token({}, { kid: 'a\r\n\u001b[31mb' })],
  ['a kid of ten thousand characters', () => world.token({}, { kid: 'k'.repeat(5_000) })],
  ["the kid of another issuer's key", () => world.token({}, { kid: 'b1' }, otherRsa)],
  ["another allowed issuer's key under our kid", () => world.token({}, {}, otherRsa)],
  [
    'an iss of one and the key of the other allowed issuer',
    () => world.token({ iss: world.issuerB }, { kid: 'b1' }, rsa),
  ],
  ['ES256 by the key under its kid', () => world.token({}, { kid: 'a2' }, p256), isIn],
  ['RS256 under the kid of an EC key', () => world.token({}, { kid: 'a2' })],
]);

run('claims and the clock', [
  ['no exp', () => world.token({ exp: undefined })],
  ['exp as text', () => world.token({ exp: '9999999999' })],
  ['exp as a boolean', () => world.token({ exp: true })],
  ['exp null', () => world.token({ exp: null })],
  ['exp 1e999, which reads as for ever', () => signText((text) => text.replace(/"exp":\d+/, '"exp":1e999'))],
  ['exp with a fraction', () => world.token({ exp: nowSeconds() + 60.5 }), isIn],
  ['exp now, without leeway', () => world.token({ exp: nowSeconds() })],
  ['exp a moment ago', () => world.token({ exp: nowSeconds() - 1 })],
  ['a life of more than a day', () => world.token({ exp: nowSeconds() + 86_400 * 2 })],
  [
    'a life of more than a day, told from now for want of iat',
    () => world.token({ iat: undefined, exp: nowSeconds() + 86_400 * 2 }),
  ],
  ['nbf in the future', () => world.token({ nbf: nowSeconds() + 60 })],
  ['iat in the future, which libraries let pass', () => world.token({ iat: nowSeconds() + 60 })],
  ['no sub', () => world.token({ sub: undefined })],
  ['an empty sub', () => world.token({ sub: '' })],
  ['sub null', () => world.token({ sub: null })],
  ['sub as a number', () => world.token({ sub: 5 })],
  ['sub as a list', () => world.token({ sub: [world.alice] })],
  ['sub as an object', () => world.token({ sub: { name: world.alice } })],
  ['NUL in sub', () => world.token({ sub: `${world.alice}\0` })],
  ['no aud', () => world.token({ aud: undefined })],
  ['aud as a number, which libraries let pass', () => world.token({ aud: 5 })],
  ['an empty list as aud', () => world.token({ aud: [] })],
  ['ours beside null in aud', () => world.token({ aud: [AUDIENCE, null] })],
  ['the audience of another application', () => world.token({ aud: 'other.example.com' })],
  ['ours in a list of audiences', () => world.token({ aud: ['x', AUDIENCE] }), isIn],
]);

const denied = (): Outcome => deniedDatabase(world.database);
run('the databases that a token may enter', [
  ['ns that is the database', () => world.token({ ns: world.database }), isIn],
  ['ns that is another one', () => world.token({ ns: world.other }), denied],
  ['ns as a list without it', () => world.token({ ns: [world.other, 'x'] }), denied],
  ['ns as a list with it', () => world.token({ ns: [world.other, world.database] }), isIn],
  ['ns as an empty list', () => world.token({ ns: [] })],
  ['ns empty', () => world.token({ ns: '' })],
  ['ns null', () => world.token({ ns: null })],
  ['ns as a number', () => world.token({ ns: 5 })],
  ['ns as an object', () => world.token({ ns: {} })],
  ['ns as a list with a number', () => world.token({ ns: [world.database, 5] })],
  ['an asterisk, which is a name here', () => world.token({ ns: '*' }), denied],
  ['ns in other letters', () => world.token({ ns: world.database.toUpperCase() }), denied],
  [
    'an alias that says otherwise than ns',
    () => world.token({ ns: world.database, id: world.other }),
    denied,
  ],
]);

run('access', [
  ['a: ro', () => world.token({ a: 'ro' }), isIn],
  ['a: rw', () => world.token({ a: 'rw' }), isIn],
  ['a in capitals', () => world.token({ a: 'RW' })],
  ['a that is no access', () => world.token({ a: 'admin' })],
  ['a as a number', () => world.token({ a: 5 })],
  ['p that holds the database for writing', () => world.token({ p: { rw: { ns: [world.database] } } }), isIn],
  ['p that holds it for reading', () => world.token({ p: { ro: { ns: [world.database] } } }), isIn],
  ['p that holds another one', () => world.token({ p: { rw: { ns: [world.other] } } }), denied],
  ['p as text', () => world.token({ p: 'rw' })],
  ['p with a list where an object must be', () => world.token({ p: { rw: [world.database] } })],
]);

run('delegation: the actor is who logs in', [
  ['act without sub', () => world.token({ act: {} })],
  ['act as text', () => world.token({ act: 'bob' })],
  ['act.sub as a list', () => world.token({ act: { sub: [world.bob] } })],
]);

describe('delegation', () => {
  const attempt = (secret: string): { user: string; database: string; secret: string } => ({
    user: 'jwt',
    database: world.database,
    secret,
  });
  const act = (...names: string[]): Table =>
    names.reduceRight<Table>(
      (inner, sub) => (Object.keys(inner).length > 0 ? { sub, act: inner } : { sub }),
      {},
    );

  test('the session is the outermost actor, what is nested inside is history', async () => {
    const token = world.token({ act: act(world.bob, 'somebody', 'before', 'that') });
    await expectOutcome(pooler, world, attempt(token), entersAs(world.bob));
  });

  test.each([
    ['a role that does not exist', 'nobody_at_all'],
    ['a role that expired', 'expired'],
    ['a role that may not log in', 'nologin'],
    ['a superuser', 'superuser'],
  ])('an actor that is %s is refused, and the subject is no way around it', async (_name, which) => {
    const role = world.roles[which as 'expired'] ?? which;
    const token = world.token({ act: { sub: role } });
    await expectOutcome(pooler, world, attempt(token), refusedRole(role));
  });

  test.each([
    ['does not exist', 'nobody_at_all'],
    ['expired', 'expired'],
    ['may not log in', 'nologin'],
  ])('an actor who is fine does not help a subject that %s', async (_name, which) => {
    const subject = world.roles[which as 'expired'] ?? which;
    const token = world.token({ sub: subject, act: { sub: world.bob } });
    await expectOutcome(pooler, world, attempt(token), refusedRole(subject));
  });
});

describe('rules that an issuer or a database may have', () => {
  const tryAt = async (one: LoginPooler, secret: string, outcome: Outcome, more: Table = {}): Promise<void> =>
    expectOutcome(one, world, { user: world.alice, database: world.database, secret, ...more }, outcome);

  test('typ: access tokens of RFC 9068 enter in every spelling, ID and logout tokens do not', async () => {
    const strict = await world.start({ issuerA: { typ: 'at+jwt' } });
    for (const typ of ['at+jwt', 'AT+JWT', 'application/at+jwt']) {
      await tryAt(strict, world.token({}, { typ }), isIn());
    }
    for (const typ of ['JWT', 'logout+jwt', 'at+jwt+x', undefined]) {
      await tryAt(strict, world.token({}, { typ }), alice());
    }
    strict.stop();
  });

  test('a kid may be missing only where that is allowed and the issuer has one key', async () => {
    const lenient = await world.start({ turnstile: { allow_missing_kid: true } });
    await tryAt(lenient, world.token({ iss: world.issuerB }, { kid: undefined }, otherRsa), isIn());
    await tryAt(lenient, world.token({}, { kid: undefined }), alice());
    lenient.stop();
  });

  test('an email is a name only when the issuer has verified it', async () => {
    const byEmail = await world.start({ issuerA: { username_claim: 'email' } });
    await tryAt(byEmail, world.token({ email: world.alice, email_verified: true }), isIn());
    for (const verified of [false, undefined, 'true', 1]) {
      await tryAt(byEmail, world.token({ email: world.alice, email_verified: verified }), alice());
    }
    byEmail.stop();
  });

  test('a token for another client of the issuer is refused', async () => {
    const narrow = await world.start({ issuerA: { allowed_clients: ['psql'] } });
    await tryAt(narrow, world.token({ azp: 'psql' }), isIn());
    await tryAt(narrow, world.token({ client_id: 'psql' }), isIn());
    for (const claims of [
      { azp: 'web' },
      { client_id: 'web' },
      {},
      { azp: ['psql'] },
      { azp: 'web', client_id: 'psql' },
    ]) {
      await tryAt(narrow, world.token(claims), alice());
    }
    narrow.stop();
  });

  test('a role outside of what the issuer may name is refused, whoever signed for it', async () => {
    const narrow = await world.start({ issuerA: { allowed_roles: [world.alice, '/team_.*'] } });
    await tryAt(narrow, world.token(), isIn());
    await tryAt(narrow, world.token({ sub: world.bob }), refusedRole(world.bob), { user: world.bob });
    await tryAt(narrow, world.token({ sub: `x${world.alice}` }), refusedRole(`x${world.alice}`), {
      user: 'jwt',
    });
    narrow.stop();
  });

  test('a claim with a list of roles is one role only when exactly one of them is allowed', async () => {
    const select = await world.start({
      issuerA: { allowed_roles: [world.alice, world.bob] },
      turnstile: { role_rules: [{ claim: 'realm.roles', list: true }] },
    });
    await tryAt(select, world.token({ realm: { roles: ['x', world.alice] } }), isIn());
    for (const roles of [[], ['x'], [world.alice, world.bob], [world.alice, 5], world.alice, undefined]) {
      if (roles === world.alice) continue;
      await tryAt(select, world.token({ realm: { roles } }), alice());
    }
    select.stop();
  });

  test("another database's audience does not open this one", async () => {
    const perDatabase = await world.start({
      issuerA: { audiences: ['one', 'two'] },
      turnstile: {
        databases: [
          { name: world.database, audiences: ['one'] },
          { name: world.other, audiences: ['two'] },
        ],
      },
    });
    await tryAt(perDatabase, world.token({ aud: 'one' }), isIn());
    await tryAt(perDatabase, world.token({ aud: ['two', 'one'] }), isIn());
    await tryAt(perDatabase, world.token({ aud: 'two' }), alice());
    await tryAt(perDatabase, world.token({ aud: 'two' }), isIn(), { database: world.other });
    perDatabase.stop();
  });

  test('a token that names no database is refused where it has to', async () => {
    const strict = await world.start({ turnstile: { database_claim_required: true } });
    await tryAt(strict, world.token({ ns: world.database }), isIn());
    await tryAt(strict, world.token(), deniedDatabase(world.database));
    strict.stop();
  });

  test('a database that is not there is answered as one that is, unless the token names it', async () => {
    await tryAt(pooler, world.token({ ns: world.database }), deniedDatabase('no_such'), {
      database: 'no_such',
    });
    await tryAt(
      pooler,
      world.token({ ns: 'no_such' }),
      { kind: 'refused', code: '3D000', message: 'database "no_such" does not exist' },
      { database: 'no_such' },
    );
  });

  test('an id is required, or good for one login, where that is asked for', async () => {
    const required = await world.start({ turnstile: { require_jti: true } });
    await tryAt(required, world.token({ jti: 'j1' }), isIn());
    await tryAt(required, world.token(), alice());
    const token = world.token({ jti: 'j2' });
    await tryAt(required, token, isIn());
    await tryAt(required, token, isIn());
    required.stop();
    const once = await world.start({ turnstile: { single_use_jti: true } });
    const single = world.token({ jti: 'j3' });
    await tryAt(once, single, isIn());
    await tryAt(once, single, alice());
    await tryAt(once, world.token({ jti: 'j3' }), alice());
    await tryAt(once, world.token({ jti: 'j4' }), isIn());
    once.stop();
  });

  test('leeway: what is expired by less than it enters, by exactly as much does not', async () => {
    const forgiving = await world.start({ turnstile: { jwt_leeway: 30 } });
    await tryAt(forgiving, world.token({ exp: nowSeconds() - 25 }), isIn());
    await tryAt(forgiving, world.token({ exp: nowSeconds() - 30 }), alice());
    await tryAt(forgiving, world.token({ nbf: nowSeconds() + 25 }), isIn());
    await tryAt(forgiving, world.token({ iat: nowSeconds() + 25 }), isIn());
    forgiving.stop();
  });

  test('a key by another curve than the token says is no key for it', async () => {
    const p384 = generateKeyPairSync('ec', { namedCurve: 'P-384' });
    const token = world.token({}, { kid: 'a2' }, p384);
    await tryAt(pooler, token, alice());
  });

  test('one token may log in many times: a token is a password until it expires', async () => {
    const token = world.token();
    for (let round = 0; round < 3; round++) await tryAt(pooler, token, isIn());
  });
});
