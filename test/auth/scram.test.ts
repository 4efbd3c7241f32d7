/** SCRAM-SHA-256: the vector of RFC 7677, both of our sides against each other, and every rule broken once. */
import { describe, expect, test } from 'vitest';
import { saslPrep } from '../../src/auth/sasl-prep.ts';
import { SCRAM_ITERATIONS_MAX, ScramClient } from '../../src/auth/scram-client.ts';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { SCRAM_MESSAGE_BYTES_MAX } from '../../src/auth/scram-message.ts';
import { ScramServer } from '../../src/auth/scram-server.ts';
import { Secret } from '../../src/base/secret.ts';

/** RFC 7677 section 3. */
const rfc = {
  password: new Secret('pencil'),
  clientNonce: 'rOprNGfwEbeRWgbNEkqO',
  serverNonce: '%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0',
  salt: Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64'),
  clientFirst: 'n,,n=user,r=rOprNGfwEbeRWgbNEkqO',
  serverFirst: 'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096',
  clientFinal:
    'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=',
  serverFinal: 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=',
};
const keys = new ScramKeys(Buffer.alloc(32, 7));

const makeServer = (passwords: readonly string[] = ['pencil'], user = 'user'): ScramServer =>
  new ScramServer({ keys, user, passwords: passwords.map((password) => new Secret(password)) });
const rfcServer = (): ScramServer =>
  new ScramServer({ keys, user: 'user', passwords: [rfc.password], nonce: rfc.serverNonce, salt: rfc.salt });
const makeClient = (
  password = 'pencil',
  mechanisms = ['SCRAM-SHA-256'],
  certificateHash: Buffer | null = null,
) => new ScramClient({ keys, password: new Secret(password), mechanisms, certificateHash });
const rfcClient = (): ScramClient =>
  new ScramClient({
    keys,
    password: rfc.password,
    mechanisms: ['SCRAM-SHA-256'],
    certificateHash: null,
    user: 'user',
    nonce: rfc.clientNonce,
  });

async function logIn(server: ScramServer, client: ScramClient): Promise<boolean> {
  const final = await server.finish(await client.answer(server.first(client.first())));
  if (final !== null) client.finish(final);
  return final !== null;
}

describe('the vector of RFC 7677', () => {
  test('our client says what the RFC says', async () => {
    const client = rfcClient();
    expect(client.first().toString()).toBe(rfc.clientFirst);
    expect((await client.answer(Buffer.from(rfc.serverFirst))).toString()).toBe(rfc.clientFinal);
    client.finish(Buffer.from(rfc.serverFinal));
  });

  test('our server says what the RFC says', async () => {
    const server = rfcServer();
    expect(server.first(Buffer.from(rfc.clientFirst)).toString()).toBe(rfc.serverFirst);
    expect((await server.finish(Buffer.from(rfc.clientFinal)))?.toString()).toBe(rfc.serverFinal);
  });
});

describe('who gets in', () => {
  test('the right password, any of several, and nobody else', async () => {
    expect(await logIn(makeServer(), makeClient())).toBe(true);
    expect(await logIn(makeServer(['old', 'pencil', 'other']), makeClient())).toBe(true);
    expect(await logIn(makeServer(), makeClient('Pencil'))).toBe(false);
    expect(await logIn(makeServer(['old', 'new']), makeClient())).toBe(false);
    expect(await logIn(makeServer(), makeClient(''))).toBe(false);
    expect(await logIn(makeServer(['']), makeClient(''))).toBe(false);
  });

  test('a user without a password never gets in, and sees an exchange like any other', async () => {
    const server = makeServer([], 'nobody');
    const client = makeClient();
    const first = server.first(client.first()).toString();
    expect(first).toMatch(/^r=.{48},s=[A-Za-z0-9+/]{22}==,i=4096$/);
    expect(await server.finish(await client.answer(Buffer.from(first)))).toBeNull();
  });

  test('a salt is the same each time for a name, known or not, and differs between names and processes', () => {
    expect(keys.saltFor('nobody')).toEqual(keys.saltFor('nobody'));
    expect(keys.saltFor('nobody')).not.toEqual(keys.saltFor('alice'));
    expect(new ScramKeys().saltFor('nobody')).not.toEqual(new ScramKeys().saltFor('nobody'));
    const saltOf = (passwords: string[]): string | undefined =>
      makeServer(passwords, 'alice').first(makeClient().first()).toString().split(',')[1];
    expect(saltOf([])).toBe(saltOf(['pencil']));
  });

  test('a prepared user has the keys at hand', async () => {
    const own = new ScramKeys();
    await own.prepare('alice', [new Secret('pencil')]);
    const derived = own.derive('pencil', own.saltFor('alice'), 4_096);
    const first = await Promise.race([derived, new Promise((resolve) => setImmediate(resolve))]);
    expect(first).toBe(await derived);
  });

  test('keys are derived once per password, salt and count', async () => {
    const salt = Buffer.alloc(16, 1);
    const first = await keys.derive('pencil', salt, 4_096);
    expect(await keys.derive('pencil', salt, 4_096)).toBe(first);
    expect(await keys.derive('pencil', salt, 4_095)).not.toEqual(first);
    expect(await keys.derive('pencils', salt, 4_096)).not.toEqual(first);
  });
});

describe('channel binding towards PostgreSQL', () => {
  const both = ['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256'];
  const hash = Buffer.alloc(32, 9);
  test('with a certificate and the offer, the certificate is bound', async () => {
    const client = makeClient('pencil', both, hash);
    expect(client.mechanism).toBe('SCRAM-SHA-256-PLUS');
    const first = client.first().toString();
    expect(first).toMatch(/^p=tls-server-end-point,,n=,r=/);
    const nonce = first.slice(first.indexOf('r=') + 2);
    const answer = await client.answer(Buffer.from(`r=${nonce}x,s=AAAA,i=4096`));
    const bound = Buffer.from(/^c=([^,]*),/.exec(answer.toString())![1]!, 'base64');
    expect(bound).toEqual(Buffer.concat([Buffer.from('p=tls-server-end-point,,'), hash]));
  });

  test('without the offer we say that we could have; without a certificate, nothing', () => {
    expect(makeClient('pencil', ['SCRAM-SHA-256'], hash).first().toString()).toMatch(/^y,,/);
    expect(makeClient('pencil', both, null).first().toString()).toMatch(/^n,,/);
    expect(makeClient('pencil', both, null).mechanism).toBe('SCRAM-SHA-256');
  });

  test.each([
    [['SCRAM-SHA-256-PLUS']],
    [['OAUTHBEARER']],
    [[]],
  ])('an offer of %j alone cannot be used', (offer) => {
    expect(() => makeClient('pencil', offer)).toThrow(expect.objectContaining({ code: '0A000' }));
  });

  test('a client of ours that could bind may log in where binding is not offered', async () => {
    expect(await logIn(makeServer(), makeClient('pencil', ['SCRAM-SHA-256'], hash))).toBe(true);
  });
});

describe('a client that breaks the rules', () => {
  test.each([
    ['nothing', '', '08P01'],
    ['no GS2 header', 'n=,r=abc', '08P01'],
    ['a third kind of GS2 flag', 'x,,n=,r=abc', '08P01'],
    ['channel binding that was not offered', 'p=tls-server-end-point,,n=,r=abc', '08P01'],
    ['an authorization identity', 'n,a=admin,n=,r=abc', '0A000'],
    ['an extension that we must understand', 'n,,m=x,n=,r=abc', '0A000'],
    ['no user attribute', 'n,,r=abc', '08P01'],
    ['no nonce', 'n,,n=', '08P01'],
    ['an empty nonce', 'n,,n=,r=', '08P01'],
    ['a nonce with a space', 'n,,n=,r=a b', '08P01'],
    ['a nonce beyond ASCII', 'n,,n=,r=é', '08P01'],
    ['a NUL', 'n,,n=,r=a\0', '08P01'],
    ['junk behind', 'n,,n=,r=abc,', '08P01'],
    ['a message too long', `n,,n=,r=${'a'.repeat(SCRAM_MESSAGE_BYTES_MAX)}`, '08P01'],
  ])('first message: %s', (_what, message, code) => {
    expect(() => makeServer().first(Buffer.from(message))).toThrow(expect.objectContaining({ code }));
  });

  test('bytes that are not UTF-8 are no message', () => {
    expect(() => makeServer().first(Buffer.from([0x6e, 0x2c, 0x2c, 0xff]))).toThrow('malformed SCRAM');
  });

  const nonce = rfc.clientNonce + rfc.serverNonce;
  const proof = rfc.clientFinal.slice(rfc.clientFinal.indexOf('p='));
  test.each([
    ['nothing', ''],
    ['another GS2 header than before', `c=eSws,r=${nonce},${proof}`],
    ['no binding', `r=${nonce},${proof}`],
    ['a nonce that is only the client’s', `c=biws,r=${rfc.clientNonce},${proof}`],
    ['a nonce with one more character', `c=biws,r=${nonce}x,${proof}`],
    ['no proof', `c=biws,r=${nonce}`],
    ['a proof that is not last', `c=biws,r=${nonce},${proof},x=y`],
    ['a proof of 31 bytes', `c=biws,r=${nonce},p=${Buffer.alloc(31).toString('base64')}`],
    ['a proof that is no base64', `c=biws,r=${nonce},p=${'*'.repeat(44)}`],
    ['a proof without its padding', `c=biws,r=${nonce},${proof.slice(0, -1)}`],
  ])('final message: %s', async (_what, message) => {
    const server = rfcServer();
    server.first(Buffer.from(rfc.clientFirst));
    await expect(server.finish(Buffer.from(message))).rejects.toMatchObject({ code: '08P01' });
  });

  test('every single altered bit of the proof fails', async () => {
    const bytes = Buffer.from(proof.slice(2), 'base64');
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const altered = Buffer.from(bytes);
      altered[bit >> 3]! ^= 1 << (bit & 7);
      const server = rfcServer();
      server.first(Buffer.from(rfc.clientFirst));
      const message = `c=biws,r=${nonce},p=${altered.toString('base64')}`;
      expect(await server.finish(Buffer.from(message))).toBeNull();
    }
  });

  test('an optional extension before the proof is part of what is proven', async () => {
    const server = rfcServer();
    server.first(Buffer.from(rfc.clientFirst));
    expect(await server.finish(Buffer.from(`c=biws,r=${nonce},x=y,${proof}`))).toBeNull();
  });

  test('steps out of order are our own mistake', async () => {
    await expect(makeServer().finish(Buffer.from('x'))).rejects.toThrow('finish before first');
    const server = makeServer();
    server.first(makeClient().first());
    expect(() => server.first(makeClient().first())).toThrow('called twice');
  });
});

describe('a server that breaks the rules', () => {
  const good = rfc.clientNonce + rfc.serverNonce;
  test.each([
    ['nothing', ''],
    ['a nonce that is not ours', 'r=zzz,s=AAAA,i=4096'],
    ['our nonce and nothing more', `r=${rfc.clientNonce},s=AAAA,i=4096`],
    ['an empty salt', `r=${good},s=,i=4096`],
    ['a salt that is no base64', `r=${good},s=A,i=4096`],
    ['no iterations', `r=${good},s=AAAA`],
    ['no round at all', `r=${good},s=AAAA,i=0`],
    ['a negative count', `r=${good},s=AAAA,i=-1`],
    ['a count with a leading zero', `r=${good},s=AAAA,i=04096`],
    ['a count in words of numbers', `r=${good},s=AAAA,i=4e3`],
    ['more rounds than we give', `r=${good},s=AAAA,i=${SCRAM_ITERATIONS_MAX + 1}`],
    ['more rounds than a number holds', `r=${good},s=AAAA,i=${'9'.repeat(400)}`],
    ['an extension that we must understand', `m=x,r=${good},s=AAAA,i=4096`],
  ])('first message: %s', async (_what, message) => {
    const client = rfcClient();
    client.first();
    await expect(client.answer(Buffer.from(message))).rejects.toMatchObject({ code: '08P01' });
  });

  test.each([
    ['an error', 'e=other-error'],
    ['nothing', ''],
    ['no signature', 'x=y'],
    ['a signature of another length', 'v=AAAA'],
    ['the signature of one who does not know the password', `v=${Buffer.alloc(32).toString('base64')}`],
  ])('final message: %s', async (_what, message) => {
    const client = rfcClient();
    client.first();
    await client.answer(Buffer.from(rfc.serverFirst));
    expect(() => client.finish(Buffer.from(message))).toThrow(expect.objectContaining({ code: '08P01' }));
  });

  test('one round is enough for a server that is set so', async () => {
    const client = rfcClient();
    client.first();
    await expect(client.answer(Buffer.from(`r=${good},s=AAAA,i=1`))).resolves.toBeInstanceOf(Buffer);
  });
});

describe('SASLprep', () => {
  test.each([
    ['plain ASCII', 'pencil', 'pencil'],
    ['ASCII control characters, which PostgreSQL leaves', 'a\u0007b', 'a\u0007b'],
    ['a soft hyphen, mapped to nothing (RFC 4013)', 'I\u00adX', 'IX'],
    ['a Roman numeral (RFC 4013)', '\u2168', 'IX'],
    ['a feminine ordinal (RFC 4013)', '\u00aa', 'a'],
    ['a no-break space', 'a\u00a0b', 'a b'],
    ['an ideographic space', 'a\u3000b', 'a b'],
    ['a decomposed letter', 'e\u0301', 'é'],
    ['a prohibited character: bytes as they are', '\u2168\u0080', '\u2168\u0080'],
    ['private use: bytes as they are', '\u2168\ue000', '\u2168\ue000'],
    ['only things mapped to nothing: bytes as they are', '\u00ad', '\u00ad'],
    ['an emoji, unassigned in Unicode 3.2: bytes as they are', '\u2168😀', '\u2168😀'],
    ['Hebrew letters', '\u05d0\u05d1', '\u05d0\u05d1'],
    ['both directions mixed: bytes as they are', '\u2168\u05d0', '\u2168\u05d0'],
    ['Arabic that ends in a digit: bytes as they are (RFC 4013)', '\u06271\u2160', '\u06271\u2160'],
  ])('%s', (_what, password, prepared) => {
    expect(saslPrep(password)).toBe(prepared);
  });

  test('two spellings of one password are one password', async () => {
    expect(await logIn(makeServer(['caf\u00e9 \u2168']), makeClient('cafe\u0301\u00a0IX'))).toBe(true);
  });
});
