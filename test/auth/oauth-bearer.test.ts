import { describe, expect, test } from 'vitest';
import {
  bearerToken,
  decodeOauthResponse,
  encodeOauthRefusal,
  isRefusalAcknowledged,
} from '../../src/auth/oauth-bearer.ts';
import type { PgError } from '../../src/protocol/pg-error.ts';

const K = '\u0001';

function refusalOf(message: string | Buffer): PgError {
  try {
    decodeOauthResponse(Buffer.from(message as string, 'latin1'));
  } catch (error) {
    return error as PgError;
  }
  throw new Error('the message was taken');
}

describe('the initial response', () => {
  test.each([
    ['what libpq sends', `n,,${K}auth=Bearer abc${K}${K}`, 'Bearer abc'],
    ['y: the client could bind a channel', `y,,${K}auth=Bearer abc${K}${K}`, 'Bearer abc'],
    ['discovery', `n,,${K}auth=${K}${K}`, ''],
    ['host and port, which are ignored', `n,,${K}host=h${K}port=1${K}auth=x${K}a=b${K}${K}`, 'x'],
    ['a value with an equals sign', `n,,${K}auth=Bearer a==${K}${K}`, 'Bearer a=='],
    ['white space of every permitted kind', `n,,${K}auth=\t \r\nx${K}${K}`, '\t \r\nx'],
  ])('%s', (_name, message, auth) => {
    expect(decodeOauthResponse(Buffer.from(message))).toBe(auth);
  });

  test.each([
    ['no bytes', '', 'The message is empty.'],
    ['a NUL inside', `n,,${K}auth=x\0${K}${K}`, 'Message length does not match input length.'],
    [
      'channel binding',
      `p=tls-unique,,${K}auth=x${K}${K}`,
      'The server does not support channel binding for OAuth, but the client message includes channel binding data.',
    ],
    ['another flag', `x,,${K}auth=x${K}${K}`, 'Unexpected channel-binding flag "\'x\'".'],
    ['a flag that is no text', `${K},,`, 'Unexpected channel-binding flag "0x01".'],
    ['a flag alone', 'n', 'Comma expected, but found character "0x00".'],
    ['no comma', 'n.', 'Comma expected, but found character "\'.\'".'],
    ['another attribute', `n,b=c,${K}`, 'Unexpected attribute "\'b\'" in client-first-message.'],
    ['no separator', 'n,,auth=x', 'Key-value separator expected, but found character "\'a\'".'],
    [
      'a high byte where the separator is',
      'n,,\u00e9',
      'Key-value separator expected, but found character "0xe9".',
    ],
    ['nothing behind the separator', `n,,${K}`, 'Message did not contain a final terminator.'],
    ['a pair without its end', `n,,${K}auth=x`, 'Message contains an unterminated key/value pair.'],
    ['no final separator', `n,,${K}auth=x${K}`, 'Message did not contain a final terminator.'],
    ['no pair', `n,,${K}${K}`, 'Message does not contain an auth value.'],
    ['no auth', `n,,${K}host=x${K}${K}`, 'Message does not contain an auth value.'],
    ['Auth with a capital', `n,,${K}Auth=x${K}${K}`, 'Message does not contain an auth value.'],
    ['auth twice', `n,,${K}auth=x${K}auth=${K}${K}`, 'Message contains multiple auth values.'],
    [
      'bytes behind the end',
      `n,,${K}auth=x${K}${K}${K}`,
      'Message contains additional data after the final terminator.',
    ],
    ['a key without a value', `n,,${K}auth${K}${K}`, 'Message contains a key without a value.'],
    ['an empty key', `n,,${K}=x${K}${K}`, 'Message contains an empty key name.'],
    ['a key with a digit', `n,,${K}k1=x${K}${K}`, 'Message contains an invalid key name.'],
    ['a value with a control character', `n,,${K}auth=\u0002${K}${K}`, 'Message contains an invalid value.'],
    ['a value with a high byte', `n,,${K}host=\u00e9${K}${K}`, 'Message contains an invalid value.'],
  ])('%s is 08P01 in PostgreSQL’s words', (_name, message, detail) => {
    expect(refusalOf(message)).toMatchObject({
      code: '08P01',
      severity: 'FATAL',
      message: 'malformed OAUTHBEARER message',
      detail,
    });
  });

  test('an authorization identity is 0A000', () => {
    expect(refusalOf(`n,a=bob,${K}auth=x${K}${K}`)).toMatchObject({
      code: '0A000',
      message: 'client uses authorization identity, but it is not supported',
    });
  });

  test('no error says anything of a value', () => {
    for (const message of [`n,,${K}auth=s3cret\u0002${K}${K}`, `n,,${K}auth=s3cret${K}auth=s3cret${K}${K}`]) {
      expect(JSON.stringify({ ...refusalOf(message), text: refusalOf(message).message })).not.toContain(
        's3cret',
      );
    }
  });
});

test.each([
  ['Bearer abc', 'abc'],
  ['bEARER abc.def-_~+/==', 'abc.def-_~+/=='],
  ['Bearer    abc', 'abc'],
  ['Bearer', null],
  ['Bearer ', null],
  ['Bearer\tabc', null],
  ['Basic abc', null],
  ['Bearer a b', null],
  ['Bearer abc ', null],
  ['Bearer a=b', null],
  ['Bearer =', null],
  [' Bearer abc', null],
])('the token of %j is %j', (auth, token) => {
  expect(bearerToken(auth)).toBe(token);
});

test('the refusal has the bytes of PostgreSQL, quotes escaped', () => {
  expect(encodeOauthRefusal('https://id.example.com', 'openid a')).toBe(
    '{ "status": "invalid_token", "openid-configuration": "https://id.example.com/.well-known/openid-configuration", "scope": "openid a" }',
  );
  expect(JSON.parse(encodeOauthRefusal('https://x/.well-known/oauth-authorization-server/"', 's"'))).toEqual({
    status: 'invalid_token',
    'openid-configuration': 'https://x/.well-known/oauth-authorization-server/"',
    scope: 's"',
  });
});

test('a lone separator acknowledges it, nothing else does', () => {
  expect(isRefusalAcknowledged(Buffer.from(K))).toBe(true);
  for (const other of ['', `${K}${K}`, '\0', 'x'])
    expect(isRefusalAcknowledged(Buffer.from(other))).toBe(false);
});
