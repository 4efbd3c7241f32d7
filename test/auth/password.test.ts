/** md5 and cleartext passwords. */
import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { md5Response, verifyMd5, verifyPlain } from '../../src/auth/password.ts';
import { Secret } from '../../src/base/secret.ts';

const salt = Buffer.from([1, 2, 3, 255]);
const secrets = (...values: string[]): Secret[] => values.map((value) => new Secret(value));

describe('md5', () => {
  test('the response is PostgreSQL’s formula, over the bytes of the salt', () => {
    const inner = createHash('md5').update('wordalice').digest('hex');
    const outer = createHash('md5')
      .update(Buffer.concat([Buffer.from(inner), salt]))
      .digest('hex');
    expect(md5Response('alice', 'word', salt)).toBe(`md5${outer}`);
  });

  test('one of several passwords is enough; another user, salt or prefix is not', () => {
    const response = md5Response('alice', 'word', salt);
    expect(verifyMd5(response, 'alice', secrets('old', 'word'), salt)).toBe(true);
    expect(verifyMd5(response, 'alice', secrets('old'), salt)).toBe(false);
    expect(verifyMd5(response, 'bob', secrets('word'), salt)).toBe(false);
    expect(verifyMd5(response, 'alice', secrets('word'), Buffer.alloc(4))).toBe(false);
    expect(verifyMd5(response.slice(3), 'alice', secrets('word'), salt)).toBe(false);
    expect(verifyMd5(response.toUpperCase(), 'alice', secrets('word'), salt)).toBe(false);
    expect(verifyMd5('word', 'alice', secrets('word'), salt)).toBe(false);
  });

  test('a user without a password never gets in, not even by the answer for an empty one', () => {
    expect(verifyMd5(md5Response('alice', '', salt), 'alice', [], salt)).toBe(false);
    expect(verifyMd5(md5Response('alice', '', salt), 'alice', secrets(''), salt)).toBe(false);
  });
});

describe('cleartext', () => {
  test.each([
    ['word', ['word'], true],
    ['word', ['old', 'word', 'new'], true],
    ['word', ['word', 'word'], true],
    ['Word', ['word'], false],
    ['word ', ['word'], false],
    ['word', [], false],
    ['', [], false],
    ['', [''], false],
    ['x'.repeat(100_000), ['word'], false],
  ])('%s against %j', (presented, passwords, expected) => {
    expect(verifyPlain(presented.slice(0, 200_000), secrets(...passwords))).toBe(expected);
  });
});
